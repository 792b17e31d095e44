"""Rows of spoken problems: laid out problems are cut, packed, and put side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
