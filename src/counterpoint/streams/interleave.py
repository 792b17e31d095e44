"""Interleaving: the elements of several streams as one sequence, ordered by their moments.

A tick of an interleaved layout is a chunk of time, and each stream puts up to ``depth`` elements
into it; `UNSET_ID` marks an empty slot. A stream whose steps cover several ticks puts each into the
tick in which it comes, as `counterpoint.streams.schedule.columns` does. The elements of a row are
put one after another, tick by tick and within a tick in the order of the layout; empty slots are
left out. That is the order of their moments, so a plain causal tower over the sequence obeys the
rule of visibility. This module decides only the order; the caller decides what is laid out (ids,
embeddings or losses).

The same function orders whole rows and the next ticks of a session. The only state of a session is
the number of elements that each row has read.

Example: SHANKS (arXiv:2510.06917) hears chunk i and thinks about it while chunk i + 1 is spoken. It
therefore reads heard 1, thought 1, heard 2, thought 2, and so on: the thought stream stands before
the heard stream in the layout and is delayed by one tick.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks
from counterpoint.tracing import is_traced

Content = Mapping[str, Shaped[Tensor, "B T _K ..."]]
"""For each stream, a tensor with one entry for every element slot of its ticks, empty or not."""


class NoRoomError(UserError):
    """A row has more elements than its sequence has places."""


class Interleaving(NamedTuple):
    """The order of the sequences of a batch.

    A row of the sequence has N places, of which the first ``lengths`` hold elements. A frame has E
    element slots: those that are read, and those that may be written after the end of a document.
    ``source`` and ``at`` number the slots through all ticks of a row as tick * E + slot.

    Attributes:
        depths: Number of slots of each stream that is read, in the order of the frame.
        behind_depths: Number of slots of each stream that may be written after the end of a
            document.
        source: Number of the slot whose element stands at each place of the sequence.
        at: Place of each slot's element in the sequence; -1 for an empty slot.
        lengths: Number of places of each row that hold an element, counted from the left.
        position: Number of elements that the row has read before each place, over all calls.
        document_start: Position at which the document of each place starts, as spans need it.
        first: Place at which the document of each tick starts.
        last: Place of the newest element that is read at or before each tick. It is less than
            ``first`` if the document of the tick has no element yet.
    """

    depths: Mapping[str, int]
    behind_depths: Mapping[str, int]
    source: Int[Tensor, "B N"]
    at: Int[Tensor, "B M"]
    lengths: Int[Tensor, " B"]
    position: Int[Tensor, "B N"]
    document_start: Int[Tensor, "B N"]
    first: Int[Tensor, "B T"]
    last: Int[Tensor, "B T"]

    @property
    def real(self) -> Bool[Tensor, "B N"]:
        """True at the places that hold an element."""
        place = torch.arange(self.source.shape[1], device=self.source.device)
        return place < self.lengths[:, None]

    @property
    def tick(self) -> Int[Tensor, "B N"]:
        """The tick of each place, counted within this call."""
        return self.source // len(self._streams())

    def mask(self, *streams: str) -> Bool[Tensor, "B N"]:
        """Return True at the elements of the given streams, for example to select their losses."""
        chosen = [name in streams for name in self._streams()]
        device = self.source.device
        return torch.tensor(chosen, device=device)[self.source % len(chosen)] & self.real

    def merge(self, content: Content, behind: Content | None = None) -> Shaped[Tensor, "B _N ..."]:
        """Put the values of the elements of every stream into the order of the sequences.

        The operation is differentiable.

        Args:
            content: Ids or vectors of the elements that are read, by stream.
            behind: Ids or vectors of the elements written after the ends of documents, by stream.

        Returns:
            The sequences; values beyond the length of a row are arbitrary.

        Raises:
            UserError: A stream is missing, or has another number of elements.
        """
        frames = [
            *_in_order(content, self.depths, self.last.shape),
            *_in_order(behind or {}, self.behind_depths, self.last.shape),
        ]
        return _take(torch.cat(frames, 2).flatten(1, 2), self.source)

    def split(
        self, sequence: Shaped[Tensor, "B _N ..."]
    ) -> dict[str, Shaped[Tensor, "B _T _K ..."]]:
        """Return the values of the elements that are read, by stream: the inverse of `merge`.

        Empty slots get zeros.

        Raises:
            UserError: ``sequence`` has another number of rows or places.
        """
        if sequence.shape[:2] != self.source.shape:
            raise UserError(
                f"`sequence` must hold one element a place: expected {tuple(self.source.shape)}, "
                f"got {tuple(sequence.shape[:2])}."
            )
        nothing = sequence.new_zeros(len(sequence), 1, *sequence.shape[2:])
        frames = _take(torch.cat((nothing, sequence), 1), self.at + 1)
        frames = frames.unflatten(1, (self.last.shape[1], -1))
        depths = {**self.depths, "": sum(self.behind_depths.values())}
        pieces = frames.split(list(depths.values()), 2)
        return {name: piece for name, piece in zip(depths, pieces, strict=True) if name}

    def places_of(self, other: "Interleaving") -> Int[Tensor, "B M"]:
        """Return the place here of what stands at each place of another order of the same ticks.

        Args:
            other: An order of some of the streams of this one.

        Returns:
            Places; for those of ``other`` that hold no element, any place.
        """
        device = self.source.device
        numbers = torch.arange(len(self._streams()), device=device).split(
            [*self.depths.values(), *self.behind_depths.values()]
        )
        read = dict(zip(self.depths, numbers, strict=False))
        behind = dict(zip(self.behind_depths, numbers[len(read) :], strict=True))
        element = torch.cat(
            [
                *(read[name] for name in other.depths),
                *(behind[name] for name in other.behind_depths),
            ]
        )
        tick = other.source // len(element)
        place = tick * len(self._streams()) + element[other.source % len(element)]
        return self.at.gather(1, place).clamp(min=0)

    def states_at_ticks(
        self, states: Shaped[Tensor, "B N D"], before: Shaped[Tensor, "B D"] | None = None
    ) -> Shaped[Tensor, "B T D"]:
        """Return the state after the newest element that was read at or before each tick.

        Args:
            states: The state at each place, after it has read the element there.
            before: The newest state of the earlier calls. ``None``, at the start, means zeros.
        """
        return _take(_with_first(states, before), self._within(self.last) + 1)

    def states_before(
        self, states: Shaped[Tensor, "B N D"], written: Ticks
    ) -> dict[str, Shaped[Tensor, "B _T _K D"]]:
        """Return the states that produce the elements written after every tick.

        Each element is produced by the state after the element before it, which was either read
        with the tick or written after it. The elements written after a tick must therefore be those
        that are read first with the next tick, or must have been given as ``behind`` if a document
        ends there.

        Args:
            states: The state at each place, after it has read the element there.
            written: The elements written after each tick, by stream, in the order of the layout.
        """
        there = [_present(ids) for ids in written.values()]
        count = _count_before(torch.cat(there, 2))
        place = self._within(self.last[..., None] + count)
        before = _take(_with_first(states, None), place.flatten(1) + 1)
        pieces = before.unflatten(1, count.shape[1:]).split([here.shape[2] for here in there], 2)
        return dict(zip(written, pieces, strict=True))

    def _within(self, place: Int[Tensor, "B T ..."]) -> Int[Tensor, "B T ..."]:
        """Return places in the sequence, or -1 for places before the document of the tick."""
        first = self.first.view(*self.first.shape, *[1] * (place.ndim - 2))
        return torch.where(place < first, -1, place)

    def _streams(self) -> list[str]:
        """Return the stream of each slot of a frame; slots after a document have the name ""."""
        read = [name for name, depth in self.depths.items() for _ in range(depth)]
        return read + [""] * sum(self.behind_depths.values())


def interleave(
    layout: Layout,
    ticks: Ticks,
    *,
    num_read: Int[Tensor, " B"] | None = None,
    num_columns: Int[Tensor, " B"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    document_start: Int[Tensor, "B T"] | None = None,
    behind: Ticks | None = None,
    num_places: int | None = None,
) -> Interleaving:
    """Order the elements of some ticks of every row by their moments.

    The sequences have room for full frames, so that their shape does not depend on which slots are
    empty.

    Args:
        layout: Streams.
        ticks: Elements in arrival order: ids, with `UNSET_ID` in empty slots. A continuous stream
            has an element at every tick in which one of its steps may come.
        num_read: Number of elements that each row has read in earlier calls; ``None`` for whole
            rows.
        num_columns: Number of ticks that each row has read in earlier calls; ``None`` for whole
            rows, and if no continuous stream has steps of several ticks.
        lengths: Number of real ticks of each row, from the left; ``None`` means all.
        document_start: First tick of the document of each tick, for whole rows; ``None`` if a row
            is one document.
        behind: Elements written after each tick, by predicted stream. They are laid out only where
            a document ends; elsewhere the next tick holds them.
        num_places: Length of the sequences, if no row has more elements; ``None`` makes room.

    Raises:
        UserError: The streams do not cover the same ticks, a continuous stream is irregular, or a
            stream of ``behind`` comes later in a frame than a stream that is only read.
        NoRoomError: A row needs more places.
        KeyError: The layout does not have a stream.
    """
    behind = behind or {}
    _check(layout, ticks, behind)
    starts = _document_starts(ticks, document_start)
    read = _filled(layout, ticks, starts, num_columns)
    written = {s.name: _present(behind[s.name]) for s in layout.streams if s.name in behind}
    stands = _real(torch.cat(list(read.values()), 2), lengths)
    frames = torch.cat([stands, *_at_ends(written, starts)], 2)
    num_places = _room(frames, stands.shape[2]) if num_places is None else num_places
    _check_room(frames, num_places)
    source, at = _sequences(frames, num_places)
    first_of_tick = _count_before(frames.sum(2))
    first = first_of_tick.gather(1, starts)
    return Interleaving(
        depths={name: there.shape[2] for name, there in read.items()},
        behind_depths={name: there.shape[2] for name, there in written.items()},
        source=source,
        at=at,
        lengths=frames.flatten(1).sum(1),
        position=_positions(source, num_read),
        document_start=first.gather(1, source // frames.shape[2]),
        first=first,
        last=first_of_tick + stands.sum(2) - 1,
    )


def _document_starts(ticks: Ticks, document_start: Int[Tensor, "B T"] | None) -> Int[Tensor, "B T"]:
    """Return the first tick of the document of each tick; by default a row is one document."""
    if document_start is not None:
        return document_start
    first = next(iter(ticks.values()))
    return torch.zeros(first.shape[:2], dtype=torch.long, device=first.device)


def _filled(
    layout: Layout,
    ticks: Ticks,
    document_start: Int[Tensor, "B T"],
    num_columns: Int[Tensor, " B"] | None,
) -> dict[str, Bool[Tensor, "B T _K"]]:
    """Return which slots are filled, by stream, in the order of the layout.

    Ids say so themselves; a vector of floats is there in every tick in which it may come.
    """
    column = torch.arange(document_start.shape[1], device=document_start.device) - document_start
    if num_columns is not None:
        column = column + num_columns[:, None]
    filled = {}
    for stream in layout.streams:
        if stream.name in ticks:
            present = _present(ticks[stream.name])
            if not stream.is_discrete:
                present = present & schedule.may_stand(layout, stream, column)[..., None]
            filled[stream.name] = present
    return filled


def _real(
    stands: Bool[Tensor, "B T E"], lengths: Int[Tensor, " B"] | None
) -> Bool[Tensor, "B T E"]:
    """Return which slots are filled, limited to the real ticks of each row."""
    if lengths is None:
        return stands
    tick = torch.arange(stands.shape[1], device=stands.device)
    return stands & (tick < lengths[:, None])[..., None]


def _at_ends(
    written: Mapping[str, Bool[Tensor, "B T _K"]], document_start: Int[Tensor, "B T"]
) -> list[Bool[Tensor, "B T _K"]]:
    """Return which written slots are filled, limited to the last tick of each document."""
    ends = F.pad(document_start[:, 1:] != document_start[:, :-1], (0, 1), value=True)
    return [there & ends[..., None] for there in written.values()]


def _room(frames: Bool[Tensor, "B T E"], num_read: int) -> int:
    """Return the number of places of full frames, or more if documents end with more."""
    num_ticks, num_slots = frames.shape[1:]
    if num_slots == num_read or is_traced():
        return num_ticks * num_slots
    return max(num_ticks * num_read, int(frames.flatten(1).sum(1).max()))


def _check_room(frames: Bool[Tensor, "B T E"], num_places: int) -> None:
    if frames.device.type != "cpu" or is_traced():
        return  # on a GPU its kernel complains, and nothing waits for it
    counts = frames.flatten(1).sum(1)
    if len(counts) and int(counts.max()) > num_places:
        row = int(counts.argmax())
        raise NoRoomError(
            f"Every row must fit into {num_places} places: row {row} has {int(counts[row])} "
            "elements."
        )


def _sequences(
    frames: Bool[Tensor, "B T E"], num_places: int
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B M"]]:
    """Return `Interleaving.source` and `Interleaving.at` from the mask of filled slots."""
    there = frames.flatten(1)
    # Every element writes its number into its place; empty slots share one place, which is cut off.
    place = torch.where(there, _count_before(there), num_places)
    element = torch.arange(there.shape[1], device=there.device).expand_as(place)
    source = place.new_zeros(len(place), num_places + 1).scatter(1, place, element)
    return source[:, :num_places], torch.where(there, place, -1)


def _positions(source: Int[Tensor, "B N"], num_read: Int[Tensor, " B"] | None) -> Tensor:
    """Return the number of elements before each place, with ``num_read`` before the first."""
    place = torch.arange(source.shape[1], device=source.device)
    return place.expand_as(source) if num_read is None else num_read[:, None] + place


def _present(elements: Shaped[Tensor, "B T ..."]) -> Bool[Tensor, "B T _K"]:
    """Return True where a slot is filled; a vector of floats always fills it."""
    if elements.is_floating_point():
        return torch.ones_like(elements[..., :1], dtype=torch.bool)
    return (elements if elements.ndim == 3 else elements[..., None]) != UNSET_ID


def _count_before(count: Shaped[Tensor, "B ... n"]) -> Int[Tensor, "B ... n"]:
    """Return the exclusive cumulative sum over the last dimension."""
    count = count.long()
    return count.cumsum(-1) - count


def _take(
    values: Shaped[Tensor, "B _M ..."], index: Int[Tensor, "B _N"]
) -> Shaped[Tensor, "B _N ..."]:
    """Gather values of every row at the given indices."""
    index = index.view(*index.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _with_first(
    states: Shaped[Tensor, "B N D"], first: Shaped[Tensor, "B D"] | None
) -> Shaped[Tensor, "B _M D"]:
    """Return the states with one state put before them: ``first``, or zeros if it is ``None``."""
    if first is None:
        first = states.new_zeros(len(states), states.shape[2])
    return torch.cat((first[:, None].to(states.dtype), states), 1)


def _in_order(
    content: Content, depths: Mapping[str, int], shape: torch.Size
) -> list[Shaped[Tensor, "B T _K ..."]]:
    """Return the content of the given streams in their order, after a check of its shape."""
    given = {name: tuple(values.shape[:3]) for name, values in content.items()}
    expected = {name: (*shape, depth) for name, depth in depths.items()}
    if given != expected:
        raise UserError(
            f"`content` must hold a value for every element of each stream: expected {expected}, "
            f"got {given}."
        )
    return [content[name] for name in depths]


def _check(layout: Layout, ticks: Ticks, behind: Ticks) -> None:
    unknown = [name for name in ticks if layout[name].irregular and not layout[name].is_discrete]
    if unknown:
        raise UserError(
            "A continuous stream must be regular to be interleaved, for floats do not say where "
            f"nothing stands: got {', '.join(unknown)}. Give its steps as ids."
        )
    lengths = {name: tuple(ids.shape[:2]) for name, ids in (*ticks.items(), *behind.items())}
    if not ticks or len(set(lengths.values())) > 1:
        raise UserError(f"All streams must cover the same ticks of the same rows: got {lengths}.")
    first = {stream.name for stream in layout.streams[: len(behind)]}
    if not set(behind) <= first:
        raise UserError(
            f"Streams that are written must come first in the layout, which begins with "
            f"{', '.join(sorted(first))}: got {', '.join(behind)}."
        )
