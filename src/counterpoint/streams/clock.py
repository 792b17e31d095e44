"""The clock and the rule of visibility: every mask, cache and schedule is derived here.

An element is a pair (stream, step). It becomes available at a *moment*, the pair (tick, place in
the frame): the last tick that its step covers plus the stream's delay, then the stream's place in
the layout. Producing an element may read exactly the elements whose moment is strictly earlier.

For one row and one key stream the visible steps therefore always form an interval that starts
where the document starts and stops at `visible_stop`. Attention blocks know only such intervals
(`Span`), never a rule of their own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.streams.spec import Layout, Stream


class Moment(NamedTuple):
    """When an element becomes available; moments are ordered like tuples."""

    tick: int
    place: int


class Span(NamedTuple):
    """Keys visible to each query: those with ``start <= step < stop``. Steps are absolute."""

    start: Int[Tensor, "B Q"]
    stop: Int[Tensor, "B Q"]


def available_at(layout: Layout, stream: str, step: int) -> Moment:
    """Moment at which a step of a stream can be read.

    Raises:
        ValueError: The stream is irregular, so its moments depend on the content.
    """
    spec = _regular(layout, stream)
    return Moment((step + 1) * spec.period_ticks - 1 + spec.delay_ticks, layout.place(stream))


def visible(layout: Layout, query: tuple[str, int], key: tuple[str, int]) -> bool:
    """Whether producing the element ``query`` may read the element ``key``: the dense rule.

    Both are (stream, step). This is the definition that all other forms are tested against.
    """
    return available_at(layout, *key) < available_at(layout, *query)


def visible_stop(
    layout: Layout, query_stream: str, step: Int[Tensor, "..."], key_stream: str
) -> Int[Tensor, "..."]:
    """Number of key steps that producing each query step may read: the block form of `visible`.

    Args:
        layout: Streams on the clock.
        query_stream: Stream of the elements that are produced.
        step: Their steps.
        key_stream: Stream that is read.

    Returns:
        One count for each step: key steps ``0 .. count - 1`` are visible.

    Raises:
        ValueError: One of the streams is irregular, so its moments depend on the content.
    """
    query, key = _regular(layout, query_stream), _regular(layout, key_stream)
    tick = (step + 1) * query.period_ticks - 1 + query.delay_ticks
    earlier_in_frame = layout.place(key_stream) < layout.place(query_stream)
    ticks_passed = tick + 1 if earlier_in_frame else tick  # ticks whose key elements are readable
    count = torch.div(ticks_passed - key.delay_ticks, key.period_ticks, rounding_mode="floor")
    return count.clamp(min=0)


def visible_finished(finished: Int[Tensor, "..."], lag_steps: int) -> Int[Tensor, "..."]:
    """`visible_stop` of an irregular stream for what is produced one tick after each tick.

    The steps of such a stream end where its content says. Those that ended at or before a tick have
    an earlier moment than what is produced at the next tick; a lag takes the newest away.

    Args:
        finished: Steps that ended at or before each tick.
        lag_steps: Steps by which the stream is read later than it could be.
    """
    return (finished - lag_steps).clamp(min=0)


def _regular(layout: Layout, name: str) -> Stream:
    """The stream of that name, whose moments must follow from the numbers of its steps."""
    stream = layout[name]
    if stream.irregular:
        raise ValueError(
            f"Only regular streams have moments by number: {name!r} is irregular. Count its "
            "finished steps and use `visible_finished`."
        )
    return stream


def causal_span(
    position: Int[Tensor, "B Q"], document_start: Int[Tensor, "B Q"], window: int | None = None
) -> Span:
    """Keys of a stream that a state of the same stream may read when it predicts its next step.

    By the rule, the state at step ``p`` produces step ``p + 1`` and so reads steps up to ``p``.

    Args:
        position: Absolute step of each query.
        document_start: First step of the document that each query belongs to.
        window: Number of most recent steps kept, the query's own included; ``None`` keeps all.
    """
    stop = position + 1
    start = document_start if window is None else torch.maximum(document_start, stop - window)
    return Span(start, stop)


def span_mask(span: Span, key_step: Int[Tensor, "#B K"]) -> Bool[Tensor, "B Q K"]:
    """Dense form of a span: True where the query may read the key at ``key_step``."""
    key = key_step[:, None, :]
    return (key >= span.start[..., None]) & (key < span.stop[..., None])
