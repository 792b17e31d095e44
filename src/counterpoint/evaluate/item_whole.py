"""The use of the whole in answers to items: swap-delta, who is followed, and signs of collapse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.source import item_batch
from counterpoint.errors import UserError
from counterpoint.evaluate.score import target_nats
from counterpoint.evaluate.whole import effective_rank, has_whole
from counterpoint.systems.contract import HasWhole


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """Answers of one kind under the own whole and under the whole of another item.

    Attributes:
        kind: Kind of the question; see `ItemAnswer.kind`.
        num_answers: Number of answers.
        own_bits: Mean bits of the true answer under the own whole.
        other_bits: The same under the whole of another item.
        right: Share of the true answer among the likeliest answers, under the own whole.
        kept: The same under the whole of another item.
        obeyed: Share of the other item's answer under its whole, where the two answers differ.
        num_differing: Number of answers that differ.
    """

    kind: str
    num_answers: int
    own_bits: float
    other_bits: float
    right: float
    kept: float
    obeyed: float
    num_differing: int

    @property
    def swap_delta(self) -> float:
        """Bits an answer that are lost if the whole is that of another item."""
        return self.other_bits - self.own_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemWholeUse:
    """The use of a system's whole in answers.

    Attributes:
        answers: By kind of question.
        null_share: Mean attention on the null key at the ticks that write answers.
        effective_rank: Effective rank of the states of finished blocks.
        width: Features of a state, the largest possible rank.
    """

    answers: tuple[Followed, ...]
    null_share: float
    effective_rank: float
    width: int


@torch.no_grad()
def use_of_whole(system: nn.Module, items: Sequence[Item]) -> ItemWholeUse:
    """Answer items under their own wholes, and each under the whole of the next item.

    All items are read as one batch of whole rows.

    Args:
        system: A `HasWhole` with links, in evaluation mode.
        items: Items of one task, two or more, so that every item has a donor.

    Raises:
        UserError: The system has no whole that can be read, or there is only one item.
    """
    if not has_whole(system):
        raise UserError(
            f"The system must have a whole that can be read: {type(system).__name__} has none."
        )
    if len(items) < 2:
        raise UserError(f"Every item needs another one as donor: got {len(items)} item(s).")
    reader = cast("HasWhole", system)
    batch = item_batch(items, reader.layout).to(next(system.parameters()).device)
    reading = reader.read_whole(batch)
    part = reader.layout.part.name
    own = reader.forward(batch, whole=reading.whole)[part]
    other = reader.forward(batch, whole=reading.whole.roll(-1, 0))[part]
    num_blocks = torch.arange(reading.whole.shape[1], device=own.device)
    real = num_blocks < reading.finished[:, -1:]
    writes = batch.targets[part] >= 0
    return ItemWholeUse(
        answers=followed(items, batch.targets[part], own, other),
        null_share=float(reading.attention[..., 0][writes].float().mean()),
        effective_rank=effective_rank(reading.whole[real].float()),
        width=reading.whole.shape[2],
    )


def followed(
    items: Sequence[Item],
    targets: Int[Tensor, "B T"],
    own: Float[Tensor, "B T V"],
    other: Float[Tensor, "B T V"],
    donors: Sequence[int] | None = None,
) -> tuple[Followed, ...]:
    """Compare the answers of items under their own whole and under that of another item.

    Args:
        items: Items.
        targets: Ids that follow each tick; only answers are read.
        own: Scores under the own whole.
        other: Scores under the whole of the donor.
        donors: Number of each item's donor; by default it is the next item, and the first one for
            the last.
    """
    if donors is None:
        donors = [*range(1, len(items)), 0]
    likeliest = [scores.argmax(-1).tolist() for scores in (own, other)]
    nats = [target_nats(scores, targets).tolist() for scores in (own, other)]
    kinds: dict[str, list[tuple[Any, ...]]] = {}
    for row, (item, lent_by) in enumerate(zip(items, donors, strict=True)):
        donor = items[lent_by]
        for number, answer in enumerate(item.answers):
            ticks = slice(answer.start, answer.start + len(answer.text))
            given = ["".join(map(_symbol, ids[row][ticks])) for ids in likeliest]
            paid = [sum(costs[row][ticks]) / math.log(2) for costs in nats]
            told = (answer.text, _foreign(item, donor, number), *given, *paid)
            kinds.setdefault(answer.kind, []).append(told)
    return tuple(_summed(kind, rows) for kind, rows in sorted(kinds.items()))


def merged(parts: Sequence[Followed]) -> Followed:
    """Join the answers of one kind in several batches.

    Args:
        parts: One or more, with one answer or more each.
    """

    def mean(name: str, weights: Sequence[int]) -> float:
        values = [getattr(one, name) for one in parts]
        return sum(v * w for v, w in zip(values, weights, strict=True)) / max(sum(weights), 1)

    counts = [one.num_answers for one in parts]
    differing = [one.num_differing for one in parts]
    return Followed(
        kind=parts[0].kind,
        num_answers=sum(counts),
        own_bits=mean("own_bits", counts),
        other_bits=mean("other_bits", counts),
        right=mean("right", counts),
        kept=mean("kept", counts),
        obeyed=mean("obeyed", differing),
        num_differing=sum(differing),
    )


def _foreign(item: Item, donor: Item, number: int) -> str:
    """Return the donor's answer to the same question, or the item's own if it is not asked."""
    own = item.answers[number]
    if number >= len(donor.answers):
        return own.text
    theirs = donor.answers[number]
    same = theirs.kind.split(",")[0] == own.kind.split(",")[0]
    return theirs.text if same else own.text


def _summed(kind: str, rows: Sequence[tuple[Any, ...]]) -> Followed:
    count = len(rows)
    differing = [row for row in rows if row[0] != row[1]]
    return Followed(
        kind=kind,
        num_answers=count,
        own_bits=sum(row[4] for row in rows) / count,
        other_bits=sum(row[5] for row in rows) / count,
        right=sum(row[2] == row[0] for row in rows) / count,
        kept=sum(row[3] == row[0] for row in rows) / count,
        obeyed=sum(row[3] == row[1] for row in differing) / max(len(differing), 1),
        num_differing=len(differing),
    )


def _symbol(number: int) -> str:
    return chr(number) if number < 128 else "?"
