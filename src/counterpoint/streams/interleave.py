"""Interleaving: chunks of several streams as one sequence in the order in which they exist.

A tick of an interleaved layout is a chunk of time, and each stream puts up to ``depth`` elements
into it; `UNSET_ID` is nothing. The elements of a row are laid one behind the other, tick by tick
and within a tick in the order of the layout, without the gaps. That is the order of their moments,
so a plain causal tower over the sequence obeys the rule of visibility. Only the order is decided
here; what is laid out (ids, embeddings, losses) is up to the caller.

The same function lays out whole rows and what comes next in a session: all that a session carries
is the number of elements that each row has read.

Example: SHANKS (arXiv:2510.06917) hears chunk i, thinks about it while chunk i + 1 is spoken, and
so reads heard 1, thought 1, heard 2, thought 2, ...: the thought stream stands before the heard
stream in the layout and is delayed by one tick.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks

Content = Mapping[str, Shaped[Tensor, "B T _K ..."]]
"""By stream, something of one shape for every element of its ticks, nothing or not."""


class Interleaving(NamedTuple):
    """The order of the sequences of a batch: N places a row, of which the first ones are real.

    A frame has E elements: those that are read, and those that may be written behind the end of a
    document. ``source`` and ``at`` count them through the ticks of a row: tick * E + element.

    Attributes:
        depths: Elements of a frame that are read, by stream, in their order.
        behind_depths: Elements of a frame that may stand behind the end of a document.
        source: The element that stands at each place of the sequence.
        at: The place of each element in the sequence; -1 where it is nothing.
        lengths: Real places of each row, from the left.
        position: Elements that the row has read before each place, in all calls.
        document_start: Position at which the document of each place starts, as spans need it.
        first: Place at which the document of each tick starts.
        last: Place of the newest element that is read with each tick or before it, which is less
            than ``first`` where its document has none yet.
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
        """Places that hold an element."""
        place = torch.arange(self.source.shape[1], device=self.source.device)
        return place < self.lengths[:, None]

    @property
    def tick(self) -> Int[Tensor, "B N"]:
        """The tick of each place, within this call."""
        return self.source // len(self._streams())

    def mask(self, *streams: str) -> Bool[Tensor, "B N"]:
        """True at the elements of the given streams: where their loss is, for example."""
        chosen = [name in streams for name in self._streams()]
        device = self.source.device
        return torch.tensor(chosen, device=device)[self.source % len(chosen)] & self.real

    def merge(self, content: Content, behind: Content | None = None) -> Shaped[Tensor, "B _N ..."]:
        """Lay what belongs to the elements of every stream out as sequences. Differentiable.

        Args:
            content: Ids or vectors of the elements that are read.
            behind: Those of the elements behind the documents.

        Returns:
            The sequences; beyond a row's length stands anything.

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
        """What stands at the elements of each stream that are read: the inverse of `merge`.

        Zeros stand where an element is nothing.
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

    def states_at_ticks(
        self, states: Shaped[Tensor, "B N D"], before: Shaped[Tensor, "B D"] | None = None
    ) -> Shaped[Tensor, "B T D"]:
        """The state behind the newest element that is read with each tick or before it.

        Args:
            states: The state of each place, which has read it.
            before: The newest state of the calls before; ``None`` at the start, which is zero.
        """
        return _take(_with_first(states, before), self._within(self.last) + 1)

    def states_before(
        self, states: Shaped[Tensor, "B N D"], written: Ticks
    ) -> dict[str, Shaped[Tensor, "B _T _K D"]]:
        """The states that produce what is written behind every tick, element by element.

        Each is the state behind the element before, be it read with the tick or written behind it.
        So what is written behind a tick must be what is read first with the next one, or have been
        given as ``behind`` where a document ends.

        Args:
            states: The state of each place, which has read it.
            written: The elements written behind each tick, by stream, in the order of the layout.
        """
        there = [_present(ids) for ids in written.values()]
        count = _count_before(torch.cat(there, 2))
        place = self._within(self.last[..., None] + count)
        before = _take(_with_first(states, None), place.flatten(1) + 1)
        pieces = before.unflatten(1, count.shape[1:]).split([here.shape[2] for here in there], 2)
        return dict(zip(written, pieces, strict=True))

    def _within(self, place: Int[Tensor, "B T ..."]) -> Int[Tensor, "B T ..."]:
        """Places in the sequence, -1 where they are before the document of the tick."""
        first = self.first.view(*self.first.shape, *[1] * (place.ndim - 2))
        return torch.where(place < first, -1, place)

    def _streams(self) -> list[str]:
        """The stream of each element of a frame; none of those behind a document."""
        read = [name for name, depth in self.depths.items() for _ in range(depth)]
        return read + [""] * sum(self.behind_depths.values())


def interleave(
    layout: Layout,
    ticks: Ticks,
    *,
    num_read: Int[Tensor, " B"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    document_start: Int[Tensor, "B T"] | None = None,
    behind: Ticks | None = None,
) -> Interleaving:
    """Order the elements of some ticks of every row by their moments.

    Sequences have room for full chunks, so that their shape does not depend on what stands where.

    Args:
        layout: Streams, each of one tick a step.
        ticks: Elements in order of arrival: ids, `UNSET_ID` where nothing stands; a continuous
            stream has an element at every tick.
        num_read: Elements that each row has read before; ``None`` for whole rows.
        lengths: Ticks of each row that are real, from the left; ``None`` means all.
        document_start: First tick of each tick's document, of whole rows; ``None`` where a row is
            one document.
        behind: What is written behind each tick, by predicted stream. Where a document ends, it is
            laid out too; elsewhere the next tick holds it.

    Raises:
        UserError: A step of a stream covers several ticks, the streams do not cover the same
            ticks, or a stream of ``behind`` comes later in a frame than one that is only read.
        KeyError: The layout does not have a stream.
    """
    behind = {} if behind is None else behind
    _check(layout, ticks, behind)
    read = {s.name: _present(ticks[s.name]) for s in layout.streams if s.name in ticks}
    written = {s.name: _present(behind[s.name]) for s in layout.streams if s.name in behind}
    stands = torch.cat(list(read.values()), 2)
    rows, num_ticks = stands.shape[:2]
    stands = _real(stands, lengths)
    if document_start is None:
        document_start = torch.zeros(rows, num_ticks, dtype=torch.long, device=stands.device)
    ends = F.pad(document_start[:, 1:] != document_start[:, :-1], (0, 1), value=True)
    behind_ends = [there & ends[..., None] for there in written.values()]
    frames = torch.cat([stands, *behind_ends], 2)
    num_places = num_ticks * stands.shape[2]
    if behind:
        num_places = _room(frames, num_places)
    source, at = _sequences(frames, num_places)
    first_of_tick = _count_before(frames.sum(2))
    first = first_of_tick.gather(1, document_start)
    place = torch.arange(source.shape[1], device=source.device)
    return Interleaving(
        depths={name: there.shape[2] for name, there in read.items()},
        behind_depths={name: there.shape[2] for name, there in written.items()},
        source=source,
        at=at,
        lengths=frames.flatten(1).sum(1),
        position=place.expand_as(source) if num_read is None else num_read[:, None] + place,
        document_start=first.gather(1, source // frames.shape[2]),
        first=first,
        last=first_of_tick + stands.sum(2) - 1,
    )


def _real(
    stands: Bool[Tensor, "B T E"], lengths: Int[Tensor, " B"] | None
) -> Bool[Tensor, "B T E"]:
    """What stands at the ticks of each row that are real."""
    if lengths is None:
        return stands
    tick = torch.arange(stands.shape[1], device=stands.device)
    return stands & (tick < lengths[:, None])[..., None]


def _room(frames: Bool[Tensor, "B T E"], num_places: int) -> int:
    """Places for everything: more than those of what is read if documents end with more."""
    if torch.compiler.is_compiling():
        return frames.shape[1] * frames.shape[2]
    return max(num_places, int(frames.flatten(1).sum(1).max()))


def _sequences(
    frames: Bool[Tensor, "B T E"], num_places: int
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B M"]]:
    """`Interleaving.source` and `Interleaving.at`, from where something stands in the frames."""
    there = frames.flatten(1)
    # Every element writes its number into its place; what is nothing shares one that is cut off.
    place = torch.where(there, _count_before(there), num_places)
    element = torch.arange(there.shape[1], device=there.device).expand_as(place)
    source = place.new_zeros(len(place), num_places + 1).scatter(1, place, element)
    return source[:, :num_places], torch.where(there, place, -1)


def _present(elements: Shaped[Tensor, "B T ..."]) -> Bool[Tensor, "B T _K"]:
    """Where something stands; a vector of floats always does."""
    if elements.is_floating_point():
        return torch.ones_like(elements[..., :1], dtype=torch.bool)
    return (elements if elements.ndim == 3 else elements[..., None]) != UNSET_ID


def _count_before(count: Shaped[Tensor, "B ... n"]) -> Int[Tensor, "B ... n"]:
    """The sum of what comes earlier in the last dimension."""
    count = count.long()
    return count.cumsum(-1) - count


def _take(
    values: Shaped[Tensor, "B _M ..."], index: Int[Tensor, "B _N"]
) -> Shaped[Tensor, "B _N ..."]:
    """Some of the values of every row."""
    index = index.view(*index.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _with_first(
    states: Shaped[Tensor, "B N D"], first: Shaped[Tensor, "B D"] | None
) -> Shaped[Tensor, "B _M D"]:
    """States behind one that comes before them: zero if there is none."""
    if first is None:
        first = states.new_zeros(len(states), states.shape[2])
    return torch.cat((first[:, None].to(states.dtype), states), 1)


def _in_order(
    content: Content, depths: Mapping[str, int], shape: torch.Size
) -> list[Shaped[Tensor, "B T _K ..."]]:
    """The content of the given streams, in their order."""
    given = {name: tuple(values.shape[:3]) for name, values in content.items()}
    expected = {name: (*shape, depth) for name, depth in depths.items()}
    if given != expected:
        raise UserError(
            f"`content` must hold something for every element of each stream: expected {expected}, "
            f"got {given}."
        )
    return [content[name] for name in depths]


def _check(layout: Layout, ticks: Ticks, behind: Ticks) -> None:
    slow = [name for name in ticks if layout[name].period_ticks > 1]
    if slow:
        raise UserError(
            f"Interleaved streams must have a period of one tick: got {', '.join(slow)}. Put the "
            "elements of a slow stream into the tick in which they come, and nothing elsewhere."
        )
    lengths = {name: tuple(ids.shape[:2]) for name, ids in (*ticks.items(), *behind.items())}
    if not ticks or len(set(lengths.values())) > 1:
        raise UserError(f"All streams must cover the same ticks of the same rows: got {lengths}.")
    first = {stream.name for stream in layout.streams[: len(behind)]}
    if not set(behind) <= first:
        raise UserError(
            f"What is written must come first in the layout, which begins with "
            f"{', '.join(sorted(first))}: got {', '.join(behind)}."
        )
