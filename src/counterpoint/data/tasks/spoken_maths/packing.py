"""Rows of spoken problems: laid out problems are cut, packed, and put side by side."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch, join_batches
from counterpoint.streams.rounds import Places
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream


class Told(NamedTuple):
    """A problem as ids.

    Attributes:
        length: Number of ticks of its row.
        rounds: Its rounds by stream; only one if both streams go on at once.
        named: For every frame that is heard, the word that ends with it and is a target there, or
            `UNSET_ID`; ``None`` for no such targets.
    """

    length: int
    rounds: list[dict[str, Tensor]]
    named: Int[Tensor, " n"] | None = None


def packed(batches: Sequence[Batch], num_ticks: int) -> Batch:
    """Return several rows as one of ``num_ticks``, each a document; the rest is filled up."""
    lengths = [one.document_start.shape[1] for one in batches]
    left = num_ticks - sum(lengths)
    starts = [
        torch.full((1, length), sum(lengths[:number]))
        for number, length in enumerate([*lengths, left])
    ]
    whole = join_batches(batches, 1)
    return replace(
        whole,
        ticks={
            name: F.pad(own, (*(0, 0) * (own.dim() - 2), 0, left))
            for name, own in whole.ticks.items()
        },
        targets={
            name: F.pad(ids, (0, left), value=UNSET_ID) for name, ids in whole.targets.items()
        },
        document_start=torch.cat(starts, 1),
    )


def side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Return ids of several problems as rows, filled up with `UNSET_ID`."""
    return pad_sequence(list(rows), batch_first=True, padding_value=UNSET_ID)


def ended_words(places: Places, problems: Sequence[Told]) -> Int[Tensor, "B N"] | None:
    """Return the word that ends at each place, or `UNSET_ID`; ``None`` if these are no targets."""
    named = [one.named for one in problems if one.named is not None]
    if not named:
        return None
    is_real = torch.arange(places.ids.shape[1]) < places.lengths[:, None]
    ended = torch.full_like(places.ids, UNSET_ID)
    ended[is_real & (places.ids == UNSET_ID)] = torch.cat(named)  # both in the order of the rows
    return ended


def written_rows(layout: Layout, ids: Tensor, heard: Tensor, wanted: Tensor) -> Batch:
    """Return rows for a system that writes one stream of words.

    Args:
        layout: Streams of the system. What is heard goes into the stream that it hears, or into the
            written one if it hears none.
        ids: Ids of shape (B, N) that are written, or read beside what is heard.
        heard: What is heard, of the same shape, or vectors for each place.
        wanted: The ids of the written stream that are targets, `UNSET_ID` elsewhere.
    """
    written = written_stream(layout).name
    own = next(iter(layout.by_role(Role.HEARD)), None)
    content = {written: ids}
    if own is None:
        content[written] = torch.where(heard == UNSET_ID, ids, heard)
    else:
        content[own.name] = heard
    batch = schedule.lay_out(layout, content)
    targets = schedule.lay_out(layout, {**content, written: wanted}).targets
    return replace(batch, targets=targets, elements={})


class ToldRows:
    """Rows, each filled with items of its own.

    Args:
        num_rows: Number of rows.
        row_ticks: Ticks of a row.
        least_ticks: What an item takes at least; so many numbers of items belong to a row.
        told: Returns the item of a number.
        laid_out: Returns items as rows of their own lengths.
        skips_long: Whether an item that fits no row is left out, and not refused.
    """

    def __init__(
        self,
        num_rows: int,
        row_ticks: int,
        least_ticks: int,
        told: Callable[[int], Told],
        laid_out: Callable[[Sequence[Told]], list[Batch]],
        *,
        skips_long: bool = False,
    ) -> None:
        self._num_rows = num_rows
        self._row_ticks = row_ticks
        self._most = row_ticks // least_ticks + 1
        self._told = told
        self._laid_out = laid_out
        self._skips_long = skips_long

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows with these numbers.

        Raises:
            UserError: A row cannot hold an item.
        """
        told = [self._row(int(index)) for index in indices]
        laid_out = self._laid_out([one for row in told for one in row])
        rows = []
        for row in told:
            rows.append(packed(laid_out[: len(row)], self._row_ticks))
            laid_out = laid_out[len(row) :]
        return join_batches(rows)

    def _row(self, index: int) -> list[Told]:
        """Return the items of a row: as many as fit."""
        filled: list[Told] = []
        left = self._row_ticks
        for number in range(index * self._most, (index + 1) * self._most):
            one = self._told(number)
            if self._skips_long and one.length > self._row_ticks:
                continue
            if one.length > left:
                break
            filled.append(one)
            left -= one.length
        if not filled:
            raise UserError(f"`row_ticks` must hold an item: {self._row_ticks} is less than one.")
        return filled


def cut_row(batch: Batch, row: int, length: int) -> Batch:
    """Return the first ticks of one row of a batch."""
    cut = batch.mapped(lambda x: x[row : row + 1, :length])
    return replace(cut, size=sum(int((ids >= 0).sum()) for ids in cut.targets.values()))


def written_stream(layout: Layout) -> Stream:
    """Return the stream that a system of words writes."""
    return next(iter(layout.predicted))


def hearing_numbers(layout: Layout, number: int) -> Layout:
    """Return a layout that hears numbers of frames instead of frames."""
    streams = (
        replace(one, vocab_size=number, width=None) if one.role == Role.HEARD else one
        for one in layout.streams
    )
    return replace(layout, streams=tuple(streams))


def heard_words(layout: Layout) -> Stream | None:
    """Return the stream in which a system hears words; ``None`` if it has none."""
    return next((one for one in layout.by_role(Role.HEARD) if one.is_discrete), None)
