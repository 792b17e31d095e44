"""The schedule is the rule of visibility: every column follows from `available_at`."""

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.streams import schedule
from counterpoint.streams.clock import available_at
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream
from tests.streams.layouts import layouts

VOCAB = 50
NUM_TICKS = 7
ANY_LAYOUT = layouts(vocab_size=VOCAB, most_written=3, has_ticks=True)


def content_of(layout: Layout) -> dict[str, Tensor]:
    """Content that tells the stream and the step."""
    content = {}
    for place, stream in enumerate(layout.streams):
        num_steps = NUM_TICKS // stream.period_ticks
        told = 10 * place + torch.arange(num_steps)
        told = told.view(1, num_steps, *[1] * len(stream.element_shape))
        told = told.expand(1, num_steps, *stream.element_shape)
        content[stream.name] = told if stream.is_discrete else told.float() + 1
    return content


class Place(NamedTuple):
    """Where an element stands by the rule; its tick is the last one that it covers."""

    stream: Stream
    step: int
    tick: int
    column: int


def places(layout: Layout) -> list[Place]:
    """Column of every element: its moment, behind the initial frame."""
    lead = int(any(stream.initial_id is not None for stream in layout.streams))
    return [
        Place(stream, step, moment - stream.delay_ticks, lead + moment)
        for stream in layout.streams
        for step in range(NUM_TICKS // stream.period_ticks)
        for moment in [available_at(layout, stream.name, step).tick]
    ]


def before_content(stream: Stream) -> float:
    """What stands in a stream before its content."""
    if not stream.is_discrete:
        return 0.0
    return UNSET_ID if stream.initial_id is None else stream.initial_id


@given(ANY_LAYOUT)
def test_columns_hold_every_element_at_its_moment(layout: Layout) -> None:
    content = content_of(layout)
    arrived = schedule.columns(layout, content)
    for name, elements in arrived.items():
        own = [place for place in places(layout) if place.stream.name == name]
        for place in own:
            assert torch.equal(elements[:, place.column], content[name][:, place.step])
            assert schedule.column_of(layout, place.stream, place.step) == place.column
            assert schedule.ends_step(place.stream, place.tick)
        first, last = own[0].column, own[-1].column
        assert (elements[:, :first] == before_content(own[0].stream)).all()
        nothing = UNSET_ID if own[0].stream.is_discrete else 0
        between = {*range(first, elements.shape[1])} - {place.column for place in own}
        assert (elements[:, sorted(between)] == nothing).all()
        assert between >= {*range(last + 1, elements.shape[1])}
        number = torch.arange(first, elements.shape[1])
        may_stand = schedule.may_stand(layout, own[0].stream, number)
        assert set(number[may_stand].tolist()) >= {place.column for place in own}
        assert not may_stand[[column - first for column in between if column <= last]].any()
    again = schedule.content(layout, arrived)
    for name, elements in content.items():
        assert torch.equal(again[name], elements)


@given(ANY_LAYOUT, st.integers(0, NUM_TICKS))
def test_a_document_reads_columns_and_learns_the_next_ones(layout: Layout, num_prompt: int) -> None:
    """Content of the prompt carries no loss, nor does what stands before the content."""
    content = content_of(layout)
    batch = schedule.lay_out(layout, content, num_prompt)
    arrived = schedule.columns(layout, content)
    num_read = batch.document_start.shape[1]
    newest = (
        max(p.column for p in places(layout) if p.stream.delay_ticks == 0)
        if any(s.delay_ticks == 0 and s.period_ticks == 1 for s in layout.streams)
        else None
    )
    if newest is not None:
        assert num_read == newest  # the last column is a target only
    assert not batch.document_start.any()
    for name, elements in batch.ticks.items():
        assert torch.equal(elements, arrived[name][:, :num_read])
    assert set(batch.targets) == {stream.name for stream in layout.predicted}
    trained = {(p.stream.name, p.column) for p in places(layout) if p.tick >= num_prompt}
    for name, targets in batch.targets.items():
        stream = layout[name]
        assert torch.equal(batch.elements[name], arrived[name][:, 1 : num_read + 1])
        carries_loss = schedule.trained(stream, targets)
        for tick in range(num_read):
            expected = (name, tick + 1) in trained
            assert (carries_loss[:, tick] == expected).all()
            if expected:
                assert torch.equal(targets[:, tick], arrived[name][:, tick + 1])
    begins = schedule.lead_ticks(layout)
    assert batch.size == NUM_TICKS - max(num_prompt, 1 - begins)


@given(ANY_LAYOUT, st.integers(0, 4))
def test_a_prompt_ends_where_its_last_tick_arrives(layout: Layout, num_prompt: int) -> None:
    """Behind the columns that are read at once, late streams still go on with the prompt."""
    first = schedule.next_column(layout, num_prompt)
    for stream in layout.streams:
        tail = schedule.tail_columns(layout, stream.name, num_prompt)
        for place in places(layout):
            if place.stream is stream and place.column >= first:
                assert (place.column in tail) == (place.tick < num_prompt)


@given(ANY_LAYOUT)
def test_what_a_session_is_given_stands_where_it_arrives(layout: Layout) -> None:
    """What is heard in a tick; of what is written, the tick behind the one that is written."""
    for place in places(layout):
        if place.stream.predicted:
            if place.tick:
                column = schedule.given_column(layout, place.stream.name, place.tick - 1)
                assert column == place.column
                assert column > schedule.next_column(layout, place.tick - 1)  # not written yet
        else:
            column = schedule.given_column(layout, place.stream.name, place.tick)
            assert column == place.column
            assert column >= schedule.next_column(layout, place.tick)  # not read yet


@given(ANY_LAYOUT)
def test_a_tick_is_complete_when_all_that_is_written_has_arrived(layout: Layout) -> None:
    written = [place for place in places(layout) if place.stream.predicted]
    for num_ticks in range(NUM_TICKS):
        column = schedule.next_column(layout, num_ticks)
        complete = schedule.complete_tick(layout, column)
        for tick in range(NUM_TICKS):
            own = [place for place in written if place.tick == tick]
            arrived = all(place.column <= column for place in own)
            if any(place.stream.delay_ticks == schedule.latest_delay(layout) for place in own):
                assert arrived == (tick <= complete)
            assert arrived or tick > complete
        first = schedule.first_said_tick(layout, num_ticks)
        read_before = [place.column > 0 for place in written if place.tick == first]
        assert first == num_ticks or (first == 1 and num_ticks == 0)
        assert all(read_before)
        if first > num_ticks:
            assert not all(place.column > 0 for place in written if place.tick == num_ticks)


@given(ANY_LAYOUT)
def test_a_session_keeps_the_columns_that_it_needs_and_no_more(layout: Layout) -> None:
    """The one that it reads, those of the complete tick, and those that it is given or had told."""
    needed = {-1, 0}
    for num_ticks in range(NUM_TICKS):
        written = schedule.next_column(layout, num_ticks)
        complete = schedule.complete_tick(layout, written)
        for place in places(layout):
            distance = place.column - written
            name = place.stream.name
            if place.stream.predicted and place.tick == complete:
                needed.add(distance)
                assert schedule.complete_distance(layout, name) == distance
            # It hears the tick whose column it reads; of what it says it is given the next one.
            if place.tick == (num_ticks if place.stream.predicted else num_ticks - 1):
                needed.add(distance)
                assert schedule.given_distance(layout, name) == distance
        for stream in layout.streams:
            tail = schedule.tail_columns(layout, stream.name, num_ticks)
            needed |= {column - written for column in tail}
    assert set(schedule.kept_distances(layout)) == set(range(min(needed), max(needed) + 1))


@given(
    delays=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_unset_columns_are_initial_until_the_first_element_could_come(
    delays: list[tuple[int, int]], lengths: list[int]
) -> None:
    layout = Layout(
        streams=tuple(
            Stream(
                name=f"s{number}",
                role=Role.SPOKEN,
                vocab_size=VOCAB,
                delay_ticks=delay,
                period_ticks=period,
                initial_id=VOCAB,
            )
            for number, (delay, period) in enumerate(delays)
        )
    )
    first = [sum(lengths[:number]) for number in range(len(lengths))]
    begins = torch.zeros(1, sum(lengths), dtype=torch.bool)
    begins[0, first] = True
    found = schedule.unset_columns(layout, begins)
    for name, ids in found.items():
        moment = available_at(layout, name, 0).tick
        for column in range(ids.shape[1]):
            # Documents are cut as they come: a late stream may wait on into the next one.
            waits = any(0 <= column - start <= moment for start in first)
            assert int(ids[0, column]) == (VOCAB if waits else UNSET_ID)


def test_every_id_of_the_vocabulary_carries_loss_and_no_other() -> None:
    stream = Stream(name="s", role=Role.SPOKEN, vocab_size=VOCAB, initial_id=VOCAB)
    carries_loss = schedule.trained(stream, torch.arange(UNSET_ID, VOCAB + 1))
    assert carries_loss.tolist() == [False, *[True] * VOCAB, False]
