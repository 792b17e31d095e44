"""The schedule: content order and arrival order, and every offset that follows from a layout.

*Content order* places every element at the time to which it belongs: step ``s`` of a stream covers
the ``period_ticks`` ticks from ``s * period_ticks``. *Arrival order* is the order in which elements
become available (`counterpoint.streams.clock.available_at`) and in which models read them. Its
ticks are called *columns*, and every stream has a slot in each column. An element stands in the
column of its moment: if ``f`` is the last tick that step ``s`` covers, its element stands in column
``lead + f + delay``. The slots between two elements of a slow stream are empty. If a stream of the
layout has an initial id, the sequence begins with an initial frame, column 0, so ``lead`` is 1;
otherwise it is 0.

The schedule is causal in both directions: the first columns depend on the first ticks only, and a
sequence of columns that is cut anywhere gives back the ticks of which every stream has arrived.

Source: Moshi (arXiv:2410.00037), section 3.4.3; MusicGen (arXiv:2306.05284), section 2.2.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks

# ------------------------------------------------------------------------------------ columns


def lead_ticks(layout: Layout) -> int:
    """Return the number of columns before the first content.

    It is 1 if the layout begins with an initial frame, and 0 otherwise.
    """
    return int(any(stream.initial_id is not None for stream in layout.streams))


def initial_ids(layout: Layout) -> dict[str, int]:
    """Return the id before the first element of each discrete stream; `UNSET_ID` if it has none."""
    return {
        stream.name: UNSET_ID if stream.initial_id is None else stream.initial_id
        for stream in layout.streams
        if stream.is_discrete
    }


def column_of(layout: Layout, stream: Stream, step: int) -> int:
    """Return the column in which a step of a stream stands; the initial frame is column 0."""
    return lead_ticks(layout) + (step + 1) * stream.period_ticks - 1 + stream.delay_ticks


def empty_id(layout: Layout, stream: Stream, column: int) -> int:
    """Return the id that a discrete stream reads in a column in which it has no element."""
    if column < column_of(layout, stream, 0) and stream.initial_id is not None:
        return stream.initial_id
    return UNSET_ID


def ends_step(stream: Stream, tick: int) -> bool:
    """Return whether a tick of content is the last one of a step, and so holds its element."""
    return (tick + 1) % stream.period_ticks == 0


def last_ticks(stream: Stream, num_ticks: int) -> range:
    """Return the last tick of each step that ends within so many ticks of content."""
    return range(stream.period_ticks - 1, num_ticks, stream.period_ticks)


def count_ticks(layout: Layout, content: Ticks) -> int:
    """Return the number of ticks that the content covers: that of its longest stream."""
    lengths = [ids.shape[1] * layout[name].period_ticks for name, ids in content.items()]
    return max(lengths, default=0)


def columns(layout: Layout, content: Ticks) -> Ticks:
    """Put content into arrival order, after the initial frame.

    Args:
        layout: Streams with their delays.
        content: Elements in content order, by stream, counted in each stream's own steps. Either
            all streams are given, or all but wholes, or only the first that is no whole; then the
            others are unset. Content of T ticks has those steps of a stream that end within the T
            ticks.

    Returns:
        For T ticks of content and a longest delay of D, lead + T + D columns of every stream except
        wholes that the model computes itself. A slot without an element holds the initial id
        before the first element and `UNSET_ID` after it, or zeros in a continuous stream.

    Raises:
        UserError: Streams are missing, or an id or a shape does not fit.
    """
    _check_content(layout, content)
    num_columns = lead_ticks(layout) + count_ticks(layout, content) + _longest_delay(layout)
    first = next(iter(content.values()))
    arrived = {}
    for stream in _given(layout):
        shape = (len(first), num_columns, *stream.element_shape)
        before = column_of(layout, stream, 0)
        if stream.is_discrete:
            own = torch.full(shape, UNSET_ID, device=first.device)
            own[:, :before] = empty_id(layout, stream, 0)
        else:
            own = torch.zeros(shape, device=first.device)
        elements = content.get(stream.name)
        if elements is not None:
            own = own.to(elements)
            places = own[:, before :: stream.period_ticks]
            places[:, : elements.shape[1]] = elements
        arrived[stream.name] = own
    return arrived


def content(layout: Layout, arrived: Ticks) -> Ticks:
    """Put columns back into content order: the exact inverse of `columns`.

    Args:
        layout: Streams with their delays.
        arrived: The initial frame and the columns after it. The sequence may be cut anywhere.

    Returns:
        The ticks of which every stream has arrived, counted in each stream's own steps.
    """
    num_columns = next(iter(arrived.values())).shape[1]
    num_ticks = max(num_columns - lead_ticks(layout) - _longest_delay(layout), 0)
    aligned = {}
    for name, elements in arrived.items():
        stream = layout[name]
        places = elements[:, column_of(layout, stream, 0) :: stream.period_ticks]
        aligned[name] = places[:, : num_ticks // stream.period_ticks]
    return aligned


def _longest_delay(layout: Layout) -> int:
    """Return the longest delay of a stream, in columns."""
    return max(stream.delay_ticks for stream in _given(layout))


def _given(layout: Layout) -> tuple[Stream, ...]:
    """Return the streams that columns hold: all except wholes that the model computes itself."""
    return tuple(s for s in layout.streams if s.predicted or s.role != Role.WHOLE)


def lay_out(layout: Layout, content: Ticks, num_prompt: int = 0) -> Batch:
    """Return a batch with one document a row, as a system's `forward` and `losses` read it.

    Each target is the column after the one that is read. A document is cut where only delayed
    streams still have elements, so that every row keeps its length. If only the first stream is
    given, only that stream is trained.

    Args:
        layout: Streams with their delays.
        content: See `columns`.
        num_prompt: Number of ticks at the start of the content that carry no loss.

    Returns:
        A batch of ``lead - 1 + T`` ticks for T ticks of content. Its size counts the ticks of
        content that carry loss.

    Raises:
        UserError: Streams are missing, or an id or a shape does not fit.
    """
    written = [stream.name for stream in layout.predicted if stream.name in content]
    arrived = columns(layout, content)
    first = next(iter(content.values()))
    num_ticks = count_ticks(layout, content)
    lead = lead_ticks(layout)
    num_read = max(lead - 1 + num_ticks, 0)
    untrained = {name: content[name].clone() for name in written}
    for name, elements in untrained.items():
        elements[:, : num_prompt // layout[name].period_ticks] = UNSET_ID
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
    """Return the columns of packed documents in which every stream is empty.

    Args:
        layout: Streams with their delays.
        begins: True where the initial frame of a document stands.

    Returns:
        For a discrete stream, its initial id until its first element may arrive, then `UNSET_ID`;
        for a continuous stream, zeros.
    """
    ids = initial_ids(layout)
    arrived = {}
    for stream in layout.streams:
        if not stream.is_discrete:
            shape = (*begins.shape, *stream.element_shape)
            arrived[stream.name] = torch.zeros(shape, device=begins.device)
            continue
        waits = begins.clone()
        lead = lead_ticks(layout)
        for late in range(1, column_of(layout, stream, 0) - lead + 1):
            waits[:, late:] |= begins[:, :-late]
        column = torch.where(waits, ids[stream.name], UNSET_ID)
        if stream.has_codebooks:
            column = column[..., None].expand(-1, -1, stream.depth)
        arrived[stream.name] = column
    return arrived


def trained(stream: Stream, targets: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Return which targets carry loss: all except `UNSET_ID` and initial ids."""
    return (targets >= 0) & (targets < (stream.vocab_size or 0))


# ------------------------------------------------------------------------------------ sessions
#
# A session that has processed ``num_ticks`` ticks of content has read the columns up to
# ``lead - 1 + num_ticks`` and writes the next column.


def next_column(layout: Layout, num_ticks: int) -> int:
    """Return the column that a session writes after ``num_ticks`` ticks of content."""
    return lead_ticks(layout) + num_ticks


def first_said_tick(layout: Layout, num_prompt: int) -> int:
    """Return the first tick of content that a session writes completely after a prompt.

    Without an initial frame nothing is read before column 0. If an element of tick 0 would stand in
    that column, the session cannot write tick 0 completely.

    Args:
        layout: Streams with their delays.
        num_prompt: Number of ticks of the prompt.
    """
    first_column = min(column_of(layout, stream, 0) for stream in layout.predicted)
    return max(num_prompt, 1 - min(first_column, 1))


def given_column(layout: Layout, stream: str, num_ticks: int) -> int:
    """Return the column of the element that a session is given after ``num_ticks`` ticks.

    For a stream that is heard, that is the element of the tick that begins. For a stream that is
    written, a given (forced) element is that of the tick after it, because the tick that begins has
    been written already. See `given_tick`.
    """
    spec = layout[stream]
    return lead_ticks(layout) + given_tick(spec, num_ticks) + spec.delay_ticks


def given_tick(stream: Stream, num_ticks: int) -> int:
    """Return the tick of content whose element a session is given after ``num_ticks`` ticks."""
    return num_ticks + stream.predicted


def tail_columns(layout: Layout, stream: str, num_ticks: int) -> range:
    """Return the columns after a prompt that still hold elements of the prompt in this stream."""
    spec = layout[stream]
    first_new = num_ticks // spec.period_ticks
    return range(next_column(layout, num_ticks), column_of(layout, spec, first_new))


def may_stand(layout: Layout, stream: Stream, column: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Return the columns in which an element of a stream may stand, at every ``period_ticks``."""
    return (column - column_of(layout, stream, 0)) % stream.period_ticks == 0


def latest_delay(layout: Layout) -> int:
    """Return the longest delay of a stream that is written, in columns."""
    return max(stream.delay_ticks for stream in layout.predicted)


def sounding_delay(layout: Layout) -> int:
    """Return how many ticks after the start of its content a spoken frame can be played.

    It can be played when the frame is complete, and a step belongs to the frame of its last tick.

    Raises:
        UserError: The spoken streams have several periods, or there are none.
    """
    return latest_delay(layout) + sound_period(layout, Role.SPOKEN) - 1


def sound_period(layout: Layout, role: Role) -> int:
    """Return the number of ticks in one frame of a speaker's sound.

    Raises:
        UserError: The speaker's streams have several periods, or there are none.
    """
    periods = {stream.period_ticks for stream in layout.by_role(role)}
    if len(periods) != 1:
        raise UserError(
            f"All streams of role {role.value} must have steps of the same number of ticks, as a "
            f"codec's frames have: got {sorted(periods) or 'no such stream'}."
        )
    return periods.pop()


def complete_tick(layout: Layout, column: int) -> int:
    """Return the newest tick of content of which all written streams have arrived with a column.

    The result is negative as long as there is none.
    """
    return column - lead_ticks(layout) - latest_delay(layout)


# A session numbers columns by their distance to the column that it writes next: 1 is the one after.


def given_distance(layout: Layout, stream: str) -> int:
    """Return the distance of `given_column` in a session: reading a column, writing the next."""
    return given_column(layout, stream, 0) - next_column(layout, 1)


def complete_distance(layout: Layout, stream: str) -> int:
    """Return where a written stream holds the tick that the next column completes."""
    return layout[stream].delay_ticks - latest_delay(layout)


def kept_distances(layout: Layout) -> range:
    """Return the distances of the columns that a session keeps.

    The oldest is the column that the session reads, or the oldest column of the tick that is
    completed next. The newest is the last one in which the session is given an element or in which
    delayed streams still hold elements of the prompt.
    """
    oldest = min(-1, *(complete_distance(layout, s.name) for s in layout.predicted))
    given = [*layout.predicted, *layout.heard]
    tails = (len(tail_columns(layout, s.name, 0)) for s in given)
    newest = max(*tails, *(given_distance(layout, s.name) + 1 for s in given))
    return range(oldest, newest)


# -------------------------------------------------------------------------------------- checks


def _check_content(layout: Layout, content: Ticks) -> None:
    """Refuse content whose streams, shapes or ids do not fit the layout."""
    given = _given(layout)
    names = [stream.name for stream in given]
    # A whole that is written as ids may be missing: not all data has one.
    needed = [stream.name for stream in given if stream.role != Role.WHOLE] or names
    if set(content) not in ({needed[0]}, set(needed), set(names)):
        raise UserError(
            f"Content must be given of all streams ({', '.join(names)}) or of {needed[0]!r} alone: "
            f"got {', '.join(content)}."
        )
    num_rows = len(content[needed[0]])
    # A tensor without a step axis is refused by the check of shapes below.
    stepped = {name: elements for name, elements in content.items() if elements.ndim > 1}
    num_ticks = count_ticks(layout, stepped)
    for name, elements in content.items():
        stream = layout[name]
        shape = (num_rows, num_ticks // stream.period_ticks, *stream.element_shape)
        if elements.shape != shape:
            raise UserError(
                f"Content of {name!r} must have the shape {tuple(shape)}: got "
                f"{tuple(elements.shape)}."
            )
        if stream.is_discrete:
            _check_ids(stream, elements)
        elif not elements.isfinite().all():
            raise UserError(f"Elements of {name!r} must be finite: got NaN or infinity.")


def _check_ids(stream: Stream, ids: Int[Tensor, "..."]) -> None:
    stop = torch.tensor(stream.sizes, device=ids.device)
    if ((ids < UNSET_ID) | (ids >= (stop if stream.has_codebooks else stop[0]))).any():
        last = [size - 1 for size in stream.sizes] if stream.codebook_sizes else stream.sizes[0] - 1
        raise UserError(
            f"Ids of {stream.name!r} must be {UNSET_ID} (unset) to {last}: got {int(ids.min())} to "
            f"{int(ids.max())}."
        )
