"""The clock and the rule of visibility: every mask, cache and schedule is derived here.

An element is a pair (stream, step). It becomes available at a *moment*, the pair (tick, place in
the frame): the last tick that its step covers plus the stream's delay, then the stream's place in
the layout. Producing an element may read exactly the elements whose moment is strictly earlier.

For one row and one key stream the visible steps therefore always form an interval that starts
where the document starts (`span`). Attention blocks know only such intervals, never a rule of
their own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.spec import Layout, Role, Stream


class Moment(NamedTuple):
    """When an element becomes available; moments are ordered like tuples."""

    tick: int
    place: int


class Span(NamedTuple):
    """Keys visible to each query: those with ``start <= step < stop``. Steps are absolute."""

    start: Int[Tensor, "B Q"]
    stop: Int[Tensor, "B Q"]


SEQUENCE = Layout(streams=(Stream(name="sequence", role=Role.PART, width=1),))
"""The layout of a tower's own sequence, whatever stands in it: one step a tick."""


def available_at(layout: Layout, stream: str, step: int) -> Moment:
    """Moment at which a step of a stream can be read.

    Raises:
        UserError: The stream is irregular, so its moments depend on the content.
    """
    spec = _regular(layout, stream)
    return Moment((step + 1) * spec.period_ticks - 1 + spec.delay_ticks, layout.place(stream))


def visible(layout: Layout, query: tuple[str, int], key: tuple[str, int]) -> bool:
    """Whether producing the element ``query`` may read the element ``key``: the dense rule.

    Both are (stream, step). This is the definition that all other forms are tested against.
    """
    return available_at(layout, *key) < available_at(layout, *query)


def finished_span(
    finished: Int[Tensor, "*B Q"],
    lag_steps: int,
    first: Int[Tensor, "*#B #Q"] | int = 0,
    window: int | None = None,
) -> Span:
    """`span` of a stream whose steps end where its content says, for what is produced next.

    Steps that ended at or before a tick have an earlier moment than what is produced at the next
    tick; a lag takes the newest away.

    Args:
        finished: Steps that ended at or before each tick.
        lag_steps: Steps by which the stream is read later than it could be.
        first: As in `span`.
        window: As in `span`.
    """
    return _newest((finished - lag_steps).clamp(min=0), first, window)


def span(
    layout: Layout,
    query: str,
    key: str,
    step: Int[Tensor, "*B Q"],
    *,
    first: Int[Tensor, "*#B #Q"] | int = 0,
    window: int | None = None,
    finished: Int[Tensor, "*B Q"] | None = None,
) -> Span:
    """Key steps that may be read to produce each query step: the block form of `visible`.

    A state that has read a stream up to step ``p`` produces step ``p + 1``, so this is the function
    for every mask: of a tower over its own sequence (`SEQUENCE`), of one stream that reads another
    of any rate and lag, and of one that reads steps which end where the content says.

    Args:
        layout: Streams on the clock.
        query: Stream of the elements that are produced.
        key: Stream that is read.
        step: Steps that are produced.
        first: First key step of each one's document.
        window: Number of the newest visible key steps that are kept; ``None`` keeps all.
        finished: For an irregular key: how many of its steps' contents ended before each element
            is produced, those that end at its own tick included where the key comes earlier in the
            frame. The key's delay, in whole steps of its period, takes the newest away.

    Raises:
        UserError: A stream is irregular and its finished steps are not given, or the delay of a
            stream whose steps are counted is not a whole number of them.
    """
    if finished is not None:
        return finished_span(finished, _whole_delay(layout[key]), first, window)
    return _newest(_visible_steps(layout, query, key, step), first, window)


def _newest(stop: Int[Tensor, "*B Q"], first: Tensor | int, window: int | None) -> Span:
    """The newest steps below ``stop``, of its document and of a window."""
    if isinstance(first, int):
        start = torch.full_like(stop, first) if window is None else (stop - window).clamp(min=first)
    else:
        start = first.expand_as(stop) if window is None else torch.maximum(first, stop - window)
    return Span(start, stop)


def _visible_steps(
    layout: Layout, query_stream: str, key_stream: str, step: Int[Tensor, "*B Q"]
) -> Int[Tensor, "*B Q"]:
    """Number of key steps with an earlier moment than each query step; steps are not negative."""
    query = _regular(layout, query_stream)
    key = _regular(layout, key_stream)
    # Ticks whose key elements are readable, those of the key's delay taken away.
    earlier_in_frame = layout.place(key_stream) < layout.place(query_stream)
    shift = query.period_ticks - 1 + query.delay_ticks + earlier_in_frame - key.delay_ticks
    # Every attention of every tick asks: what changes nothing is left out.
    ticks = step if query.period_ticks == 1 else step * query.period_ticks
    if shift:
        ticks = ticks + shift
    if shift < 0:
        ticks = ticks.clamp(min=0)
    if key.period_ticks == 1:
        return ticks
    return torch.div(ticks, key.period_ticks, rounding_mode="floor")


def _whole_delay(stream: Stream) -> int:
    """The delay of a stream in its own steps."""
    if stream.delay_ticks % stream.period_ticks:
        raise UserError(
            f"Finished steps of {stream.name!r} can be counted only where its delay is a whole "
            f"number of steps of {stream.period_ticks} ticks: got {stream.delay_ticks} ticks."
        )
    return stream.delay_ticks // stream.period_ticks


def first_visible(lag_steps: int) -> int:
    """Steps of an irregular stream that must be finished before any is visible."""
    return lag_steps + 1


def reach_ticks(stream: Stream, window: int) -> int:
    """Ticks back to which a window of steps of a stream reaches, at most.

    It is counted from the newest tick that may be read, and reached just before the next step of
    the stream becomes available.
    """
    return (window + 1) * stream.period_ticks - 1 + stream.delay_ticks


def _regular(layout: Layout, name: str) -> Stream:
    """The stream of that name, whose moments must follow from the numbers of its steps."""
    stream = layout[name]
    if stream.irregular:
        raise UserError(
            f"Only regular streams have moments by number: {name!r} is irregular. Count its "
            "finished steps and give them to `span`."
        )
    return stream


def span_mask(span: Span, key_step: Int[Tensor, "#B K"]) -> Bool[Tensor, "B Q K"]:
    """Dense form of a span: True where the query may read the key at ``key_step``."""
    key = key_step[:, None, :]
    return (key >= span.start[..., None]) & (key < span.stop[..., None])
