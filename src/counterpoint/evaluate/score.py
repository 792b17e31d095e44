"""Bits a byte of a system on units of text, in total and by position since their start.

A unit is scored in one row of its own length: every id is predicted from its true past, as far as
the windows of the model reach. Offline rows equal streaming to float tolerance (the contract of
every system), so a session would give the same numbers. Only units longer than ``batch_ticks`` are
cut; each piece then starts without a past, like rows in training.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.data.text.held_out import BATCH_TICKS, rows_batch
from counterpoint.data.text.shards import Unit
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.contract import System

CountProgress = Callable[[int, int], None]
"""A function called with the numbers of ticks done and of all ticks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Score:
    """The cost of one unit for a system.

    Attributes:
        title: Title of its document.
        nats: Cost of every id of the unit except the first.
        byte_lengths: Bytes of text that each of these ids stands for (0 for the end id).
    """

    title: str
    nats: Float[np.ndarray, " n"]
    byte_lengths: Int[np.ndarray, " n"]

    @property
    def num_bytes(self) -> int:
        """Bytes of the unit's text."""
        return int(self.byte_lengths.sum())

    @property
    def bits(self) -> float:
        """Bits of the whole unit, including its end id."""
        return float(self.nats.sum()) / math.log(2)


def target_nats(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return the nats of each target in float32; 0 where there is no target."""
    scores = logits.float().transpose(1, 2)
    return F.cross_entropy(scores, targets, ignore_index=UNSET_ID, reduction="none")


def part_scores(system: System, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
    """Return the scores of the part behind every tick of a system that writes nothing else."""
    found: list[Tensor] = []

    def choose(stream: str, codebook: int, scores: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        found.append(scores)
        return scores.argmax(-1)

    system.write(hidden.flatten(0, 1), choose)
    return found[0].unflatten(0, hidden.shape[:2])


def score(
    system: nn.Module,
    units: Sequence[Unit],
    byte_lengths: Int[np.ndarray, " V"],
    *,
    block_ticks: int = 1,
    batch_ticks: int = BATCH_TICKS,
    on_progress: CountProgress | None = None,
) -> list[Score]:
    """Compute the nats of every id of every unit.

    The caller sets the precision: wrap the call in `torch.autocast` to score as in training.

    Args:
        system: A system that scores the stream ``part``, in evaluation mode.
        units: Units to score.
        byte_lengths: Bytes of text of each id of the vocabulary (`Tokenizer.byte_lengths`).
        block_ticks: Rows are filled up to a multiple of this (`Layout.block_ticks`).
        batch_ticks: Largest number of ticks of a batch, including padding, and of a row.
        on_progress: Called after each batch.

    Raises:
        UserError: There are no units.
    """
    if not units:
        raise UserError(
            "At least one unit must be held out to be scored: got none. Set `held_out`."
        )
    pieces = [
        (index, start, unit.ids[start : start + batch_ticks + 1])
        for index, unit in enumerate(units)
        for start in range(0, len(unit.ids) - 1, batch_ticks)
    ]
    device = next(system.parameters()).device
    nats = [np.zeros(len(unit.ids) - 1) for unit in units]
    total = sum(len(row) for row in nats)
    done = 0
    for group in _groups(pieces, batch_ticks):
        batch = rows_batch([ids for _, _, ids in group], block_ticks).to(device)
        with torch.no_grad():
            paid = target_nats(system(batch)["part"], batch.targets["part"]).double().cpu().numpy()
        for row, (index, start, ids) in zip(paid, group, strict=True):
            nats[index][start : start + len(ids) - 1] = row[: len(ids) - 1]
            done += len(ids) - 1
        if on_progress is not None:
            on_progress(done, total)
    return [
        Score(title=unit.title, nats=paid, byte_lengths=byte_lengths[unit.ids[1:]])
        for unit, paid in zip(units, nats, strict=True)
    ]


def bits_per_byte(scores: Sequence[Score]) -> float:
    """Return the bits of all units over the bytes of all units."""
    return sum(score.bits for score in scores) / sum(score.num_bytes for score in scores)


def position_edges(num_bytes: int, first: int = 64, per_doubling: int = 1) -> tuple[int, ...]:
    """Return log-spaced edges ``0, first, 2 first ...`` of bins that cover ``num_bytes`` bytes.

    Args:
        num_bytes: Length that is covered.
        first: End of the first bin.
        per_doubling: Number of bins until the length has doubled.
    """
    count = max(math.ceil(math.log2(max(num_bytes, first) / first) * per_doubling), 0)
    return (0, *(round(first * 2 ** (i / per_doubling)) for i in range(count + 1)))


def by_position(
    scores: Sequence[Score], edges: Sequence[int]
) -> tuple[Float[np.ndarray, "N K"], Int[np.ndarray, "N K"]]:
    """Return bits and bytes of each unit in bins of the position since its start.

    Args:
        scores: Scores of N units.
        edges: K + 1 edges in bytes; an id belongs to the bin in which its text starts. Ids outside
            all bins are left out.
    """
    bits = np.zeros((len(scores), len(edges) - 1))
    num_bytes = np.zeros(bits.shape, np.int64)
    for row, unit in enumerate(scores):
        position = np.cumsum(unit.byte_lengths) - unit.byte_lengths
        inside = (position >= edges[0]) & (position < edges[-1])
        place = np.searchsorted(edges, position[inside], side="right") - 1
        np.add.at(bits[row], place, unit.nats[inside] / math.log(2))
        np.add.at(num_bytes[row], place, unit.byte_lengths[inside])
    return bits, num_bytes


def _groups(
    pieces: Sequence[tuple[int, int, Int[np.ndarray, " _n"]]], batch_ticks: int
) -> Iterator[list[tuple[int, int, Int[np.ndarray, " _n"]]]]:
    """Yield pieces of similar lengths, longest first, so that little padding is needed."""
    group: list[tuple[int, int, Int[np.ndarray, " _n"]]] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece[2])):
        if group and (len(group) + 1) * (len(group[0][2]) - 1) > batch_ticks:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
