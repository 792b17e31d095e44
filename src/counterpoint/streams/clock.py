"""The clock and the rule of visibility: every mask, cache and schedule is derived here.

An element is a pair (stream, step). It becomes available at a *moment*, which is the pair (tick,
place in the frame): the last tick that its step covers plus the stream's delay, then the stream's
place in the layout. To produce an element, a model may read exactly the elements whose moment is
strictly earlier.

It follows that for one row and one key stream the visible steps always form an interval that
starts at or after the start of the document (`span`). Attention blocks receive such intervals and
have no rule of their own.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.spec import Layout, Role, Stream


class Moment(NamedTuple):
    """The time at which an element becomes available; moments are ordered like tuples.

    Attributes:
        tick: Last tick that the element covers, plus the delay of its stream.
        place: Place of the stream in the layout.
    """

    tick: int
    place: int


class Span(NamedTuple):
    """Interval of key steps that each query may read: ``start <= step < stop``.

    Steps are counted from the start of the row, across all calls.
    """

    start: Int[Tensor, "B Q"]
    stop: Int[Tensor, "B Q"]


SEQUENCE = Layout(streams=(Stream(name="sequence", role=Role.PART, width=1),))
"""The layout of a tower that attends to its own sequence: one stream with one step a tick."""


def available_at(layout: Layout, stream: str, step: int) -> Moment:
    """Return the moment from which a step of a stream can be read.

    Raises:
        UserError: The stream is irregular, so its moments depend on the content.
    """
    spec = _regular(layout, stream)
    return Moment((step + 1) * spec.period_ticks - 1 + spec.delay_ticks, layout.place(stream))


def visible(layout: Layout, query: tuple[str, int], key: tuple[str, int]) -> bool:
    """Return whether producing the element ``query`` may read the element ``key``.

    Both are pairs (stream, step). This function defines the rule of visibility; all other forms are
    tested against it.
    """
    return available_at(layout, *key) < available_at(layout, *query)


def finished_span(
    finished: Int[Tensor, "*B Q"],
    lag_steps: int,
    first: Int[Tensor, "*#B #Q"] | int = 0,
    window: int | None = None,
) -> Span:
    """Return the `span` over a stream whose steps end at boundaries that the content sets.

    The span is for the element that is produced at the next tick: a step that ended at or before
    the current tick has an earlier moment than that element. The lag hides the newest steps.

    Args:
        finished: Number of steps that ended at or before each tick.
        lag_steps: Number of the newest finished steps that stay hidden.
        first: See `span`.
        window: See `span`.
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
    """Return the key steps that may be read to produce each query step.

    This is `visible` for whole tensors. A state that has read a stream up to step ``p`` produces
    step ``p + 1``. All attention masks come from this function: those of a tower over its own
    sequence (`SEQUENCE`), of a stream that reads another stream of any rate and lag, and of a
    stream that reads an irregular stream.

    Args:
        layout: Streams on the clock.
        query: Stream of the elements that are produced.
        key: Stream that is read.
        step: Steps that are produced.
        first: First key step of the document of each query.
        window: Number of the newest visible key steps that are kept; ``None`` keeps all.
        finished: Needed for an irregular key stream: the number of its steps that ended before each
            element is produced. Steps that end at the element's own tick count if the key stream
            comes earlier in the frame. The delay of the key stream, which must be a whole number of
            its steps, hides the newest of them.

    Raises:
        UserError: A stream is irregular and ``finished`` is not given, or ``finished`` is given and
            the delay of the key stream is not a whole number of its steps.
    """
    if finished is not None:
        return finished_span(finished, _whole_delay(layout[key]), first, window)
    return _newest(_visible_steps(layout, query, key, step), first, window)


def _newest(stop: Int[Tensor, "*B Q"], first: Tensor | int, window: int | None) -> Span:
    """Return the span of the newest ``window`` steps below ``stop`` within the document."""
    if isinstance(first, int):
        start = torch.full_like(stop, first) if window is None else (stop - window).clamp(min=first)
    else:
        start = first.expand_as(stop) if window is None else torch.maximum(first, stop - window)
    return Span(start, stop)


def _visible_steps(
    layout: Layout, query_stream: str, key_stream: str, step: Int[Tensor, "*B Q"]
) -> Int[Tensor, "*B Q"]:
    """Return the number of key steps with an earlier moment than each query step."""
    query = _regular(layout, query_stream)
    key = _regular(layout, key_stream)
    # The number of ticks whose key elements can be read, after the delay of the key stream.
    earlier_in_frame = layout.place(key_stream) < layout.place(query_stream)
    shift = query.period_ticks - 1 + query.delay_ticks + earlier_in_frame - key.delay_ticks
    # Every attention call at every tick runs this code, so operations without effect are skipped.
    ticks = step if query.period_ticks == 1 else step * query.period_ticks
    if shift:
        ticks = ticks + shift
    if shift < 0:
        ticks = ticks.clamp(min=0)
    if key.period_ticks == 1:
        return ticks
    return torch.div(ticks, key.period_ticks, rounding_mode="floor")


def _whole_delay(stream: Stream) -> int:
    """Return the delay of a stream, counted in its own steps."""
    if stream.delay_ticks % stream.period_ticks:
        raise UserError(
            f"Finished steps of {stream.name!r} can be counted only if its delay is a whole "
            f"number of its steps of {stream.period_ticks} ticks: got {stream.delay_ticks} ticks."
        )
    return stream.delay_ticks // stream.period_ticks


def first_visible(lag_steps: int) -> int:
    """Return how many steps of a coarse stream must be finished before the first is visible.

    A ring needs as many places besides those that are read: for the steps that the lag hides, and
    for the unfinished one.
    """
    return lag_steps + 1


def reach_ticks(stream: Stream, window: int) -> int:
    """Return how many ticks back a window over the steps of a stream reaches at most.

    The count starts at the newest tick that may be read. The maximum is reached just before the
    next step of the stream becomes available.
    """
    return (window + 1) * stream.period_ticks - 1 + stream.delay_ticks


def _regular(layout: Layout, name: str) -> Stream:
    """Return the named stream, and refuse it if it is irregular."""
    stream = layout[name]
    if stream.irregular:
        raise UserError(
            f"Stream {name!r} is irregular, so its moments do not follow from the numbers of its "
            "steps. Count its finished steps and give them to `span`."
        )
    return stream


def span_mask(span: Span, key_step: Int[Tensor, "#B K"]) -> Bool[Tensor, "B Q K"]:
    """Return the dense mask of a span: True where the query may read the key at ``key_step``."""
    key = key_step[:, None, :]
    return (key >= span.start[..., None]) & (key < span.stop[..., None])


def span_of_each(span: Span, times: int) -> Span:
    """Return the spans of the same queries if every key step consists of so many steps."""
    return span if times == 1 else Span(span.start * times, span.stop * times)


def most_keys(window: int, num_queries: int, shortest: int) -> int:
    """Return the largest number of steps from the first to the last that queries in a row read.

    Every query reads within ``window`` steps. From one query to the next at most one further step
    becomes visible, and not again within ``shortest`` queries, because every step lasts so long:
    also where documents follow each other, whose first steps begin anew, and behind a lag.

    Args:
        window: Largest number of steps of a span.
        num_queries: Number of queries, which follow each other.
        shortest: Smallest number of queries that a key step covers.
    """
    return window - (1 - num_queries) // shortest


def grouped_keys(span: Span, size: int, num_keys: int) -> Int[Tensor, "B G K"]:
    """Return consecutive key steps that hold all that each group of queries may read.

    They end at the newest step that a query of the group may read, or begin at step 0. All lie
    below ``max(span.stop, num_keys)``.

    Args:
        span: Steps that each query may read.
        size: Number of queries of a group; the last group may have fewer.
        num_keys: Number of steps a group, at least `most_keys`.
    """
    stop = F.pad(span.stop, (0, -span.stop.shape[1] % size)).unflatten(1, (-1, size)).amax(2)
    first = (stop - num_keys).clamp(min=0)
    return first[..., None] + torch.arange(num_keys, device=stop.device)


def grouped_mask(span: Span, key_step: Int[Tensor, "#B G K"], size: int) -> Bool[Tensor, "B G n K"]:
    """Return `span_mask` in groups of ``size`` queries n, each with keys of its own.

    Queries that fill the last group read nothing.
    """
    num_rows, num_queries = span.stop.shape
    start, stop = (F.pad(edge, (0, -num_queries % size)).reshape(-1, size) for edge in span)
    key = key_step.expand(num_rows, -1, -1).flatten(0, 1)
    return span_mask(Span(start, stop), key).unflatten(0, (num_rows, -1))
