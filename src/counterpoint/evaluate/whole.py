"""The use of the whole: swap-delta, the cost of having no whole, and signs of collapse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.data.text.held_out import rows_batch
from counterpoint.data.text.shards import Unit
from counterpoint.data.text.tokenizer import Tokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.score import CountProgress, target_nats
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import span
from counterpoint.streams.spec import Role
from counterpoint.systems.contract import HasWhole

SMALLEST_SWAP_DELTA = 0.01
"""Bits a byte that another document's whole must cost before the own whole is called used."""


def has_whole(system: object) -> bool:
    """Return whether a system has a whole, and links that show how it is read."""
    return isinstance(system, HasWhole) and getattr(system.config, "num_links", 1) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeUse:
    """The use of a system's whole, on the beginnings of N units.

    Attributes:
        num_bytes: Bytes scored of each unit.
        own_bits: Bits of each unit under its own whole.
        other_bits: Bits under the whole of a unit of another document.
        none_bits: Bits without any whole; empty if the model was never trained without one.
        null_share: Mean attention on the null key at ticks that could read a block.
        effective_rank: Effective rank of the whole states: 1 if all are multiples of one vector.
        width: Features of the whole states, which is the largest possible rank.
    """

    num_bytes: tuple[int, ...]
    own_bits: tuple[float, ...]
    other_bits: tuple[float, ...]
    none_bits: tuple[float, ...]
    null_share: float
    effective_rank: float
    width: int


def donors(units: Sequence[Unit]) -> list[int]:
    """Return for each unit the unit of another document whose length is nearest.

    Raises:
        UserError: All units belong to one document.
    """
    if len({unit.title for unit in units}) < 2:
        raise UserError(
            "Swapping the whole needs units of at least two documents: got "
            f"{len(units)} of one. Hold out more documents."
        )
    found = []
    for unit in units:
        others = (i for i, other in enumerate(units) if other.title != unit.title)
        found.append(min(others, key=lambda i: abs(len(units[i].ids) - len(unit.ids))))
    return found


def measure_whole(
    system: nn.Module,
    units: Sequence[Unit],
    byte_lengths: Int[np.ndarray, " V"],
    *,
    max_ticks: int = 2048,
    on_progress: CountProgress | None = None,
) -> WholeUse:
    """Score the beginning of every unit under its own whole, under another's and under none.

    Unit and donor are cut to the same number of complete blocks, so that states correspond.

    Args:
        system: A `HasWhole` in evaluation mode.
        units: Units of at least two documents.
        byte_lengths: Bytes of text of each id of the vocabulary.
        max_ticks: Ticks of a unit that are scored.
        on_progress: Called after each unit.

    Raises:
        UserError: The system has no whole that can be read, all units belong to one document, or
            they are shorter than a block.
    """
    if not has_whole(system):
        raise UserError(
            f"The system must have a whole that can be read: {type(system).__name__} has none."
        )
    reader = cast("HasWhole", system)
    alone = without_whole(system)
    bits: dict[str, list[float]] = {"own": [], "other": [], "none": []}
    num_bytes = []
    states = []
    null_shares = []
    partners = donors(units)
    device = next(system.parameters()).device
    for done, (unit, partner) in enumerate(zip(units, partners, strict=True), 1):
        pair = _matched(reader, unit, units[partner], max_ticks, device)
        if pair is None:
            continue
        own, reading, foreign = pair
        for name, value in _bits(reader, alone, own, (reading.whole, foreign)).items():
            bits[name].append(value)
        num_bytes.append(int(byte_lengths[own.targets["part"].cpu().numpy()].sum()))
        states.append(reading.whole[0].float())
        null_shares.append(_null_attention(reading, system))
        if on_progress is not None:
            on_progress(done, len(units))
    if not states:
        ticks = reader.layout.block_ticks
        raise UserError(f"Held-out units must be longer than one block of {ticks} ticks: none is.")
    return WholeUse(
        num_bytes=tuple(num_bytes),
        own_bits=tuple(bits["own"]),
        other_bits=tuple(bits["other"]),
        none_bits=tuple(bits["none"]),
        null_share=float(torch.cat(null_shares).mean()),
        effective_rank=effective_rank(torch.cat(states)),
        width=states[0].shape[-1],
    )


def price_of_another(
    system: nn.Module, tokenizer: Tokenizer, text: str, other: str, max_ticks: int = 1024
) -> tuple[float, float]:
    """Return the bits a byte of a text under its own whole, and under that of another text.

    Args:
        system: A `HasWhole` in evaluation mode.
        tokenizer: Tokeniser of the system.
        text: Text that is scored, from its beginning.
        other: Text whose whole is also used.
        max_ticks: Ticks of the text that are scored.

    Raises:
        UserError: A text has no complete block.
    """
    units = [
        Unit(
            title=str(number),
            heading="",
            ids=np.array([tokenizer.start_id, *tokenizer.encode(one), tokenizer.end_id]),
            num_bytes=len(one.encode()),
        )
        for number, one in enumerate((text, other))
    ]
    found = measure_whole(system, units, tokenizer.byte_lengths, max_ticks=max_ticks)
    num_bytes = found.num_bytes[0]
    return found.own_bits[0] / num_bytes, found.other_bits[0] / num_bytes


def _matched(
    reader: HasWhole, unit: Unit, donor: Unit, max_ticks: int, device: torch.device
) -> tuple[Batch, Any, Tensor] | None:
    """Cut a unit to the blocks that its donor has; return row, reading and the donor's whole."""
    own, other = (rows_batch([u.ids[: max_ticks + 1]], 1).to(device) for u in (unit, donor))
    with torch.no_grad():
        foreign = reader.read_whole(other).whole
        finished = reader.read_whole(own).finished[0]
        num_ticks = int((finished <= foreign.shape[1]).sum())
        if not foreign.shape[1] or not int(finished[num_ticks - 1]):
            return None
        own = rows_batch([unit.ids[: num_ticks + 1]], 1).to(device)
        reading = reader.read_whole(own)
    return own, reading, foreign[:, : reading.whole.shape[1]]


def _bits(
    reader: HasWhole, alone: Any | None, row: Batch, wholes: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Return the bits of a row under its own whole, under another and, if possible, without one."""
    targets = row.targets["part"]
    with torch.no_grad():
        nats = {
            name: target_nats(reader.forward(row, whole=whole)["part"], targets).double().sum()
            for name, whole in zip(("own", "other"), wholes, strict=True)
        }
        if alone is not None:
            nats["none"] = alone.loss(row).nats
    return {name: float(value) / math.log(2) for name, value in nats.items()}


def without_whole(system: Any) -> Any | None:
    """Return a copy of the system that hides the whole in every row, or ``None``.

    Only a system that was trained with `whole_dropout` can do without it.
    """
    if not getattr(system.config, "whole_dropout", 0.0):
        return None
    copy = type(system)(replace(system.config, whole_dropout=1.0))
    copy.load_state_dict(system.state_dict())
    return copy.to(next(system.parameters()).device).train()


def effective_rank(states: Float[Tensor, "N D"]) -> float:
    """Return the exponential of the entropy of the normalised singular values.

    Source: RankMe (arXiv:2210.02885), section 3.1, without centring, so that constant states give
        1.
    """
    values = torch.linalg.svdvals(states.double().cpu())
    share = values / values.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def _null_attention(reading: Any, system: Any) -> Float[Tensor, " _n"]:
    """Return the attention on the null key at ticks where a block could be read instead."""
    layout = system.layout
    finished = reading.finished[0]
    # The part reads the finest whole; the wholes above guide that one.
    wholes = [stream for stream in layout.by_role(Role.WHOLE) if not stream.predicted]
    whole = min(wholes, key=lambda stream: stream.period_ticks)
    tick = torch.arange(len(finished), device=finished.device)
    readable = span(layout, layout.part.name, whole.name, tick + 1, finished=finished).stop > 0
    return reading.attention[0, readable, 0].float()
