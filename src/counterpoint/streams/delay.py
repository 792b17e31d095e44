"""Delays: streams moved to the ticks at which their elements exist, and back.

In content order, step ``s`` of a stream covers ``period_ticks`` ticks from ``s * period_ticks``.
Delayed order is the order of arrival: slot ``j`` holds the newest element that is available by the
last tick of the slot (`clock.available_at`), which is step ``j - delay_steps``.

Delaying is causal in both directions: the first slots depend on the first ticks only, and a
delayed sequence that is cut anywhere gives back the ticks of which every stream has arrived.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import UNSET_ID, Layout, Stream, Ticks


def delay_steps(stream: Stream) -> int:
    """Slots of its own period by which a stream arrives later than its content."""
    return -(-stream.delay_ticks // stream.period_ticks)


def delay_padding(layout: Layout) -> int:
    """Ticks that `delay` adds, so that the most delayed stream ends inside the sequence.

    A multiple of `Layout.block_ticks`: delayed documents still pack at whole blocks.
    """
    latest = max(delay_steps(stream) * stream.period_ticks for stream in layout.streams)
    return -(-latest // layout.block_ticks) * layout.block_ticks


def delay(ticks: Ticks, layout: Layout, initial: Mapping[str, int] | None = None) -> Ticks:
    """Shift every stream later by its delay.

    Delay each document before packing it, then no delayed element reaches the next document.

    Args:
        ticks: Elements in content order; all streams cover the same ticks.
        layout: Streams with their delays.
        initial: Id read before a stream's first element, by stream; `UNSET_ID` where not given.

    Returns:
        Elements in order of arrival, every stream longer by `delay_padding` ticks. Slots after a
        stream's last element hold `UNSET_ID`.

    Raises:
        ValueError: The streams do not cover the same ticks, or ``initial`` names another stream.

    Source: Moshi (arXiv:2410.00037), section 3.4.3; MusicGen (arXiv:2306.05284), section 2.2.
    """
    _check_same_length(ticks, layout)
    initial = initial or {}
    if unknown := sorted(set(initial) - set(ticks)):
        raise ValueError(
            f"`initial` must name streams of `ticks` ({', '.join(ticks)}): got {unknown}."
        )
    padding = delay_padding(layout)
    delayed = {}
    for name, ids in ticks.items():
        shift = delay_steps(layout[name])
        after = padding // layout[name].period_ticks - shift
        before_ids = _filled(ids, shift, initial.get(name, UNSET_ID))
        delayed[name] = torch.cat([before_ids, ids, _filled(ids, after, UNSET_ID)], dim=1)
    return delayed


def undelay(ticks: Ticks, layout: Layout) -> Ticks:
    """Bring every stream back to content order: the exact inverse of `delay`.

    Args:
        ticks: Elements in order of arrival, as from `delay`, or a prefix of them.
        layout: Streams with their delays.

    Returns:
        The ticks of which every stream has arrived: `delay_padding` fewer than given, none if
        there are not that many.

    Raises:
        ValueError: The streams do not cover the same ticks.
    """
    num_ticks = max(_check_same_length(ticks, layout) - delay_padding(layout), 0)
    aligned = {}
    for name, ids in ticks.items():
        shift = delay_steps(layout[name])
        aligned[name] = ids[:, shift : shift + num_ticks // layout[name].period_ticks]
    return aligned


def _check_same_length(ticks: Ticks, layout: Layout) -> int:
    """Number of ticks that all streams cover."""
    lengths = {name: ids.shape[1] * layout[name].period_ticks for name, ids in ticks.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"All streams must cover the same ticks: got {lengths}. Pad or cut them to one length."
        )
    return max(lengths.values(), default=0)


def _filled(ids: Int[Tensor, "B _T ..."], steps: int, value: int) -> Int[Tensor, "B _n ..."]:
    return ids.new_full((ids.shape[0], steps, *ids.shape[2:]), value)
