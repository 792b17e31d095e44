"""The schedule: content order and arrival order, and every offset that follows from a layout.

*Content order* says what happened when it happened: step ``s`` of a stream covers ``period_ticks``
ticks from ``s * period_ticks``. *Arrival order* is the order in which elements become available
(`counterpoint.streams.clock.available_at`), which is the order in which models read them. Its ticks
are called *columns*, and every stream has a place in each of them. An element stands in the column
of its moment: that of step ``s``, which is the element of frame ``f``, the last tick that it
covers, stands in column ``lead + f + delay``. Between two elements of a slow stream stands nothing.
A layout in which a stream has an initial id begins with an initial frame, column 0, so ``lead`` is
1; it is 0 in all others.

Scheduling is causal in both directions: the first columns depend on the first ticks only, and
columns that are cut anywhere give back the ticks of which every stream has arrived.

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
    """Columns before the first content: 1 if the layout begins with an initial frame, else 0."""
    return int(any(stream.initial_id is not None for stream in layout.streams))


def initial_ids(layout: Layout) -> dict[str, int]:
    """Id that stands before a discrete stream's first element, by stream."""
    return {
        stream.name: UNSET_ID if stream.initial_id is None else stream.initial_id
        for stream in layout.streams
        if stream.is_discrete
    }


def column_of(layout: Layout, stream: Stream, step: int) -> int:
    """The column in which a step of a stream stands: its moment, behind the initial frame."""
    return lead_ticks(layout) + (step + 1) * stream.period_ticks - 1 + stream.delay_ticks


def empty_id(layout: Layout, stream: Stream, column: int) -> int:
    """What a discrete stream reads in a column in which it has no element."""
    if column < column_of(layout, stream, 0) and stream.initial_id is not None:
        return stream.initial_id
    return UNSET_ID


def ends_step(stream: Stream, tick: int) -> bool:
    """Whether a tick of content is the last one of a step: then the frame has its element."""
    return (tick + 1) % stream.period_ticks == 0


def count_ticks(layout: Layout, content: Ticks) -> int:
    """Ticks that some content covers: those of its longest stream."""
    lengths = [ids.shape[1] * layout[name].period_ticks for name, ids in content.items()]
    return max(lengths, default=0)


def columns(layout: Layout, content: Ticks) -> Ticks:
    """Content in order of arrival, behind the initial frame.

    Args:
        layout: Streams with their delays.
        content: Elements in content order, each stream on its own steps, of all streams; or of the
            first stream alone, beside which the others are then unset. Of T ticks a stream has the
            steps that end within them.

    Returns:
        For T ticks of content and delays of up to D, lead + T + D columns of every stream but the
        wholes, which the model computes itself. Where no element stands there are initial ids
        before the first one, `UNSET_ID` otherwise, and zeros in a continuous stream.

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
    """Columns back in content order: the exact inverse of `columns`, and of each of its prefixes.

    Args:
        layout: Streams with their delays.
        arrived: The initial frame and the columns behind it.

    Returns:
        The ticks of which every stream has arrived.
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
    """Columns by which the latest stream comes later than its content."""
    return max(stream.delay_ticks for stream in _given(layout))


def _given(layout: Layout) -> tuple[Stream, ...]:
    """The streams that columns hold: all but wholes that the model computes itself."""
    return tuple(s for s in layout.streams if s.predicted or s.role != Role.WHOLE)


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
    """Columns of packed documents in which nothing is said in any stream.

    Args:
        layout: Streams with their delays.
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
        lead = lead_ticks(layout)
        for late in range(1, column_of(layout, stream, 0) - lead + 1):
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


def first_said_tick(layout: Layout, num_prompt: int) -> int:
    """The first tick of content that a session says, all of it, behind a prompt of so many ticks.

    Without an initial frame nothing is read before column 0. So where an element of the first tick
    would stand there, that tick is not said.
    """
    first_column = min(column_of(layout, stream, 0) for stream in layout.predicted)
    return max(num_prompt, 1 - min(first_column, 1))


def given_column(layout: Layout, stream: str, num_ticks: int) -> int:
    """The column in which stands what a session is given after so many ticks of content.

    What is heard is that of `given_tick`, the tick that begins now. What a stream that is written
    is given (forced) is that of the tick behind it: the one that begins now is written already.
    """
    spec = layout[stream]
    return lead_ticks(layout) + given_tick(spec, num_ticks) + spec.delay_ticks


def given_tick(stream: Stream, num_ticks: int) -> int:
    """The tick of content of which a session is given something after so many ticks."""
    return num_ticks + stream.predicted


def tail_columns(layout: Layout, stream: str, num_ticks: int) -> range:
    """Columns behind a prompt of so many ticks, up to the first element that is not of it."""
    spec = layout[stream]
    first_new = num_ticks // spec.period_ticks
    return range(next_column(layout, num_ticks), column_of(layout, spec, first_new))


def may_stand(layout: Layout, stream: Stream, column: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Columns in which an element of a stream may stand; in all if its steps are ticks."""
    return (column - column_of(layout, stream, 0)) % stream.period_ticks == 0


def latest_delay(layout: Layout) -> int:
    """Columns by which the latest stream that is written comes later than its content."""
    return max(stream.delay_ticks for stream in layout.predicted)


def sounding_delay(layout: Layout) -> int:
    """Ticks by which what is spoken sounds later than its content begins.

    It sounds when its frame is complete, and a step is part of the frame of its last tick.

    Raises:
        UserError: The streams that are spoken have several periods, or there are none.
    """
    return latest_delay(layout) + sound_period(layout, Role.SPOKEN) - 1


def sound_period(layout: Layout, role: Role) -> int:
    """Ticks of a frame of sound of a speaker.

    Raises:
        UserError: The speaker's streams have several periods, or there are none.
    """
    periods = {stream.period_ticks for stream in layout.by_role(role)}
    if len(periods) != 1:
        raise UserError(
            f"All streams that are {role.value} must have steps of the same number of ticks, as a "
            f"codec's frames have: got {sorted(periods) or 'no such stream'}."
        )
    return periods.pop()


def complete_tick(layout: Layout, column: int) -> int:
    """The newest tick of content of which all written streams have arrived with a column.

    Negative as long as there is none.
    """
    return column - lead_ticks(layout) - latest_delay(layout)


# A session keeps columns by their distance to the one that it writes next: 1 is the one behind it.


def given_distance(layout: Layout, stream: str) -> int:
    """Where `given_column` stands in a session, which reads a column and then writes the next."""
    return given_column(layout, stream, 0) - next_column(layout, 1)


def complete_distance(layout: Layout, stream: str) -> int:
    """Where a written stream has what it says in the tick that the next column completes."""
    return layout[stream].delay_ticks - latest_delay(layout)


def kept_distances(layout: Layout) -> range:
    """Columns that a session keeps: from the one that it reads, or the oldest of the complete tick.

    The last one is the newest that it is given, or in which late streams go on with a prompt.
    """
    oldest = min(-1, *(complete_distance(layout, s.name) for s in layout.predicted))
    given = [*layout.predicted, *layout.heard]
    tails = (len(tail_columns(layout, s.name, 0)) for s in given)
    newest = max(*tails, *(given_distance(layout, s.name) + 1 for s in given))
    return range(oldest, newest)


# -------------------------------------------------------------------------------------- checks


def _check_content(layout: Layout, content: Ticks) -> None:
    """Refuse content of other streams, shapes or ids."""
    names = [stream.name for stream in _given(layout)]
    if set(content) not in ({names[0]}, set(names)):
        raise UserError(
            f"Codes must be given for all streams ({', '.join(names)}) or for {names[0]!r} alone: "
            f"got {', '.join(content)}."
        )
    num_rows = len(content[names[0]])
    # A tensor without steps is refused by its shape below.
    stepped = {name: elements for name, elements in content.items() if elements.ndim > 1}
    num_ticks = count_ticks(layout, stepped)
    for name, elements in content.items():
        stream = layout[name]
        shape = (num_rows, num_ticks // stream.period_ticks, *stream.element_shape)
        if elements.shape != shape:
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
