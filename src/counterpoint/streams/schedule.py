"""The schedule: content order and arrival order, and every offset that follows from a layout.

*Content order* says what happened when it happened: step ``s`` of a stream covers ``period_ticks``
ticks from ``s * period_ticks``. *Arrival order* is the order in which elements become available
(`counterpoint.streams.clock.available_at`), which is the order in which models read them. Its ticks
are called *columns*. A layout whose streams have initial ids begins with an initial frame, column
0, so that the element of frame ``f`` stands in column ``lead + f + delay``.

Scheduling is causal in both directions: the first columns depend on the first ticks only, and
columns that are cut anywhere give back the ticks of which every stream has arrived.

Source: Moshi (arXiv:2410.00037), section 3.4.3; MusicGen (arXiv:2306.05284), section 2.2.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Stream, Ticks

# ------------------------------------------------------------------------------------- delays


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
        stream's last element hold `UNSET_ID`, or zeros in a continuous stream.

    Raises:
        UserError: The streams do not cover the same ticks, or ``initial`` names another stream.
    """
    _check_same_length(ticks, layout)
    initial = initial or {}
    if unknown := sorted(set(initial) - set(ticks)):
        raise UserError(
            f"`initial` must name streams of `ticks` ({', '.join(ticks)}): got {unknown}."
        )
    padding = delay_padding(layout)
    delayed = {}
    for name, elements in ticks.items():
        shift = delay_steps(layout[name])
        after = padding // layout[name].period_ticks - shift
        before = _filled(elements, shift, initial.get(name, UNSET_ID))
        delayed[name] = torch.cat([before, elements, _filled(elements, after, UNSET_ID)], dim=1)
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
        UserError: The streams do not cover the same ticks.
    """
    num_ticks = max(_check_same_length(ticks, layout) - delay_padding(layout), 0)
    aligned = {}
    for name, elements in ticks.items():
        shift = delay_steps(layout[name])
        aligned[name] = elements[:, shift : shift + num_ticks // layout[name].period_ticks]
    return aligned


# ------------------------------------------------------------------------------------ columns


def lead_ticks(layout: Layout) -> int:
    """Columns before the first content: 1 if the layout begins with an initial frame, else 0.

    Raises:
        UserError: A layout with an initial frame has a stream that covers several ticks a step.
    """
    if all(stream.initial_id is None for stream in layout.streams):
        return 0
    slow = [stream.name for stream in layout.streams if stream.period_ticks > 1]
    if slow:
        raise UserError(
            f"An initial frame is one step of every stream: {', '.join(slow)} must have a period "
            "of one tick. Leave `initial_id` out, or give the stream's steps tick by tick."
        )
    return 1


def initial_ids(layout: Layout) -> dict[str, int]:
    """Id that stands before a discrete stream's first element, by stream."""
    return {
        stream.name: UNSET_ID if stream.initial_id is None else stream.initial_id
        for stream in layout.streams
        if stream.is_discrete
    }


def initial_frame(layout: Layout, batch_size: int, device: torch.device | str = "cpu") -> Ticks:
    """What every session reads first: `lead_ticks` ticks of initial ids, zeros where continuous."""
    num_ticks = lead_ticks(layout)
    ids = initial_ids(layout)
    frame = {}
    for stream in layout.streams:
        shape = (batch_size, num_ticks, *stream.element_shape)
        frame[stream.name] = (
            torch.full(shape, ids[stream.name], device=device)
            if stream.is_discrete
            else torch.zeros(shape, device=device)
        )
    return frame


def columns(layout: Layout, content: Ticks) -> Ticks:
    """Content in order of arrival, behind the initial frame.

    Args:
        layout: Streams with their delays.
        content: Elements in content order, of all streams; or of the first stream alone, beside
            which the others are then unset.

    Returns:
        For T ticks of content and delays of up to D, lead + T + D columns. The last D of them are
        of the late streams alone, and `UNSET_ID` elsewhere.

    Raises:
        UserError: Streams are missing, or an id or a shape does not fit.
    """
    _check_content(layout, content)
    first = content[layout.streams[0].name]
    complete = {}
    for stream in layout.streams:
        elements = content.get(stream.name)
        if elements is None:
            shape = (*first.shape[:2], *stream.element_shape)
            elements = (
                first.new_full(shape, UNSET_ID)
                if stream.is_discrete
                else torch.zeros(shape, device=first.device)
            )
        complete[stream.name] = elements
    late = delay(complete, layout, initial_ids(layout))
    start = initial_frame(layout, len(first))
    return {
        name: torch.cat((start[name].to(elements), elements), 1) for name, elements in late.items()
    }


def content(layout: Layout, arrived: Ticks) -> Ticks:
    """Columns back in content order: the exact inverse of `columns`, and of each of its prefixes.

    Args:
        layout: Streams with their delays.
        arrived: The initial frame and the columns behind it.

    Returns:
        The ticks of which every stream has arrived.
    """
    lead = lead_ticks(layout)
    return undelay({name: elements[:, lead:] for name, elements in arrived.items()}, layout)


def lay_out(layout: Layout, content: Ticks, num_prompt: int = 0) -> Batch:
    """One document a row, as a system's `forward` and `losses` read it.

    ``targets`` are the columns behind those of ``ticks``. Where only late streams go on, the
    document is cut, so that every row keeps its length. Content of the first stream alone trains
    that stream alone.

    Args:
        layout: Streams with their delays.
        content: As of `columns`.
        num_prompt: First ticks of the content, which carry no loss.

    Returns:
        A batch of ``lead - 1 + T`` ticks for T ticks of content; its size counts ticks of content
        that carry loss.
    """
    written = [stream.name for stream in layout.predicted if stream.name in content]
    arrived = columns(layout, content)
    first = content[layout.streams[0].name]
    num_ticks = first.shape[1]
    lead = lead_ticks(layout)
    num_read = max(lead - 1 + num_ticks, 0)
    untrained = {name: content[name].clone() for name in written}
    for elements in untrained.values():
        elements[:, :num_prompt] = UNSET_ID
    trained = columns(layout, {**content, **untrained})
    return Batch(
        ticks={name: elements[:, :num_read] for name, elements in arrived.items()},
        targets={name: trained[name][:, 1 : num_read + 1] for name in written},
        elements={name: arrived[name][:, 1 : num_read + 1] for name in written},
        document_start=torch.zeros(len(first), num_read, dtype=torch.long, device=first.device),
        size=len(first) * (num_ticks - max(num_prompt, 1 - lead)),
        unit="frame",
    )


def unset_columns(layout: Layout, begins: Bool[Tensor, "B T"]) -> dict[str, Tensor]:
    """Columns of packed documents in which nothing is said in any stream.

    Args:
        layout: Streams with their delays, all of a period of one tick.
        begins: Where the initial frame of a document stands.

    Returns:
        Of every discrete stream initial ids as long as its first element has not come, then
        `UNSET_ID`; of a continuous one zeros.
    """
    ids = initial_ids(layout)
    arrived = {}
    for stream in layout.streams:
        if not stream.is_discrete:
            shape = (*begins.shape, *stream.element_shape)
            arrived[stream.name] = torch.zeros(shape, device=begins.device)
            continue
        waits = begins.clone()
        for late in range(1, delay_steps(stream) + 1):
            waits[:, late:] |= begins[:, :-late]
        column = torch.where(waits, ids[stream.name], UNSET_ID)
        if stream.has_codebooks:
            column = column[..., None].expand(-1, -1, stream.depth)
        arrived[stream.name] = column
    return arrived


def trained(stream: Stream, targets: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Targets that carry loss: `UNSET_ID` and initial ids carry none."""
    return (targets >= 0) & (targets < (stream.vocab_size or 0))


# ------------------------------------------------------------------------------------ sessions
#
# A session that has gone through ``num_ticks`` ticks of content has read the columns up to
# ``lead - 1 + num_ticks`` and writes the next one.


def next_column(layout: Layout, num_ticks: int) -> int:
    """The column that a session writes after so many ticks of content."""
    return lead_ticks(layout) + num_ticks


def given_column(layout: Layout, stream: str, num_ticks: int) -> int:
    """The column in which stands what a session is given after so many ticks of content.

    What is heard is that of the tick that begins now. What a stream that is written is given
    (forced) is that of the tick behind it: the one that begins now is written already.
    """
    spec = layout[stream]
    return next_column(layout, num_ticks) + delay_steps(spec) + spec.predicted


def tail_columns(layout: Layout, stream: str, num_ticks: int) -> range:
    """Columns behind a prompt of so many ticks in which a late stream still goes on with it."""
    first = next_column(layout, num_ticks)
    return range(first, first + delay_steps(layout[stream]))


def latest_delay(layout: Layout) -> int:
    """Columns by which the latest stream that is written comes later than its content."""
    return max(delay_steps(stream) for stream in layout.predicted)


def complete_tick(layout: Layout, column: int) -> int:
    """The newest tick of content of which all written streams have arrived with a column.

    Negative as long as there is none.
    """
    return column - lead_ticks(layout) - latest_delay(layout)


def ring_columns(layout: Layout) -> int:
    """Columns that a session keeps: from the oldest of the complete tick to the newest given."""
    return 2 * max(delay_steps(stream) for stream in layout.streams) + 2


def expired_column(layout: Layout, column: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The column for which a ring of `ring_columns` has no further use when ``column`` is written.

    Its slot is the one that the newest column which can be given at the next tick takes.
    """
    return column - ring_columns(layout) // 2


# -------------------------------------------------------------------------------------- checks


def _check_content(layout: Layout, content: Ticks) -> None:
    """Refuse content of other streams, shapes or ids."""
    names = [stream.name for stream in layout.streams]
    if set(content) not in ({names[0]}, set(names)):
        raise UserError(
            f"Codes must be given for all streams ({', '.join(names)}) or for {names[0]!r} alone: "
            f"got {', '.join(content)}."
        )
    rows_and_ticks = content[names[0]].shape[:2]
    for name, elements in content.items():
        stream = layout[name]
        shape = (*rows_and_ticks, *stream.element_shape)
        if stream.period_ticks == 1 and elements.shape != shape:
            raise UserError(
                f"Codes of {name!r} must have the shape {tuple(shape)}: got "
                f"{tuple(elements.shape)}."
            )
        if stream.is_discrete:
            _check_ids(stream, elements)
        elif not elements.isfinite().all():
            raise UserError(f"Elements of {name!r} must be finite: some are not.")


def _check_ids(stream: Stream, ids: Int[Tensor, "..."]) -> None:
    stop = torch.tensor(stream.sizes, device=ids.device)
    if ((ids < UNSET_ID) | (ids >= (stop if stream.has_codebooks else stop[0]))).any():
        last = [size - 1 for size in stream.sizes] if stream.codebook_sizes else stream.sizes[0] - 1
        raise UserError(
            f"Ids of {stream.name!r} must be {UNSET_ID} (unset) to {last}: got {int(ids.min())} to "
            f"{int(ids.max())}."
        )


def _check_same_length(ticks: Ticks, layout: Layout) -> int:
    """Number of ticks that all streams cover."""
    lengths = {name: ids.shape[1] * layout[name].period_ticks for name, ids in ticks.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"All streams must cover the same ticks: got {lengths}. Pad or cut them to one length."
        )
    return max(lengths.values(), default=0)


def _filled(
    elements: Shaped[Tensor, "B _T ..."], steps: int, value: int
) -> Shaped[Tensor, "B _n ..."]:
    shape = (elements.shape[0], steps, *elements.shape[2:])
    return elements.new_full(shape, 0 if elements.is_floating_point() else value)
