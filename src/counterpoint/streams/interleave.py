"""Interleaving: chunks of several streams as one sequence in the order in which they exist.

A chunk (`Segment`) is a run of consecutive elements of one stream that becomes available as a
whole, at a tick. The sequence is ordered by moment, so a plain causal model over it obeys the rule
of visibility. Only the order is decided here; what is laid out (ids, embeddings, losses) is up to
the caller: `Interleaving.merge` takes any tensors and `Interleaving.split` gives them back.

Example: SHANKS (arXiv:2510.06917) hears chunk i, thinks about it while chunk i + 1 is spoken, and
so reads heard 1, thought 1, heard 2, thought 2, ...: the thought stream stands before the heard
stream in the layout and lags by one chunk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from counterpoint.streams.clock import available_at
from counterpoint.streams.spec import Layout


class Segment(NamedTuple):
    """A run of elements of one stream that is read as a whole.

    Attributes:
        stream: Name in the layout.
        tick: Tick, within the document, at which the whole run is available.
        length: Elements in the run; 0 is a chunk in which nothing came.
        document: Number of the document; documents follow each other and never mix.
    """

    stream: str
    tick: int
    length: int
    document: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interleaving:
    """The order of one sequence of N elements.

    Attributes:
        layout: Streams of the sequence.
        segments: In the order of the sequence.
        place: Place in the layout of each element's stream.
        step: Step of each element within all that its stream puts into the sequence.
        tick: Tick at which each element's segment is available.
        document_start: Position at which the document of each element starts, as attention spans
            need it.
    """

    layout: Layout
    segments: tuple[Segment, ...]
    place: Int[Tensor, " N"]
    step: Int[Tensor, " N"]
    tick: Int[Tensor, " N"]
    document_start: Int[Tensor, " N"]

    def mask(self, *streams: str) -> Bool[Tensor, " N"]:
        """True at the elements of the given streams: where their loss is, for example."""
        places = self.place.new_tensor([self.layout.place(name) for name in streams])
        return torch.isin(self.place, places)

    def merge(self, content: Mapping[str, Shaped[Tensor, "_n ..."]]) -> Shaped[Tensor, "_N ..."]:
        """Lay the elements of every stream out as one sequence. Differentiable.

        Args:
            content: All elements of each stream of the segments, in order: ids or vectors, one
                shape an element.

        Raises:
            ValueError: A stream is missing or has another number of elements than its segments.
        """
        lengths = self._lengths()
        given = {name: len(elements) for name, elements in content.items()}
        if given != lengths:
            raise ValueError(
                f"`content` must hold as many elements of each stream as its segments: expected "
                f"{lengths}, got {given}."
            )
        if not content:
            raise ValueError("An interleaving without segments has nothing to merge.")
        ordered = [content[s.name] for s in self.layout.streams if s.name in lengths]
        # Elements sorted by (place, step); `order` inverts that sort.
        order = torch.argsort(torch.argsort(self.place, stable=True))
        return torch.cat(ordered)[order.to(ordered[0].device)]

    def split(self, sequence: Shaped[Tensor, "_N ..."]) -> dict[str, Shaped[Tensor, "_n ..."]]:
        """Elements of each stream, in order: the inverse of `merge`."""
        if len(sequence) != len(self.place):
            raise ValueError(
                f"`sequence` must hold one element a position: expected {len(self.place)}, "
                f"got {len(sequence)}."
            )
        return {name: sequence[self.mask(name).to(sequence.device)] for name in self._lengths()}

    def _lengths(self) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for segment in self.segments:
            lengths[segment.stream] = lengths.get(segment.stream, 0) + segment.length
        return lengths


def interleave(segments: Iterable[Segment], layout: Layout) -> Interleaving:
    """Order segments by document, then by moment (tick, place in the layout).

    Segments of one stream keep the order in which they are given.

    Raises:
        ValueError: A length or tick is negative, or the segments of a stream go back in time.
    """
    segments = tuple(segments)
    _check_segments(segments)
    ordered = sorted(segments, key=lambda s: (s.document, s.tick, layout.place(s.stream)))
    next_step: dict[str, int] = {}
    document_start: dict[int, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for segment in ordered:
        first = next_step.get(segment.stream, 0)
        next_step[segment.stream] = first + segment.length
        start = document_start.setdefault(segment.document, len(rows))
        place = layout.place(segment.stream)
        rows += [(place, first + i, segment.tick, start) for i in range(segment.length)]
    place_, step, tick, starts = torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Interleaving(
        layout=layout,
        segments=tuple(ordered),
        place=place_,
        step=step,
        tick=tick,
        document_start=starts,
    )


def chunk(
    layout: Layout, stream: str, num_steps: int, chunk_steps: int, document: int = 0
) -> tuple[Segment, ...]:
    """Cut a stream on the clock into equal segments, the last one possibly shorter.

    Args:
        layout: Gives the tick at which the last step of each segment is available.
        stream: The stream to cut.
        num_steps: Its length.
        chunk_steps: Steps in a segment.
        document: Document of all segments.
    """
    if chunk_steps < 1:
        raise ValueError(f"`chunk_steps` must be >= 1, got {chunk_steps}.")
    segments = []
    for start in range(0, num_steps, chunk_steps):
        stop = min(start + chunk_steps, num_steps)
        tick = available_at(layout, stream, stop - 1).tick
        segments.append(Segment(stream, tick, stop - start, document))
    return tuple(segments)


def _check_segments(segments: tuple[Segment, ...]) -> None:
    latest: dict[str, tuple[int, int]] = {}
    for number, segment in enumerate(segments):
        if segment.length < 0 or segment.tick < 0:
            raise ValueError(
                f"Segment {number} must have `length` >= 0 and `tick` >= 0: got {segment}."
            )
        when = (segment.document, segment.tick)
        if when < latest.get(segment.stream, when):
            raise ValueError(
                f"Segments of a stream must be given in order of (document, tick): segment "
                f"{number} of {segment.stream!r} is at {when}, the one before at "
                f"{latest[segment.stream]}."
            )
        latest[segment.stream] = when
