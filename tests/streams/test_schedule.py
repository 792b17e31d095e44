from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams import schedule
from counterpoint.streams.clock import available_at, visible
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks


def layout_of(*clocks: tuple[int, int], depth: int = 1) -> Layout:
    """Streams s0, s1, ... of (period, delay)."""
    return Layout(
        streams=tuple(
            Stream(
                name=f"s{i}",
                role=Role.PART,
                vocab_size=1000,
                depth=depth,
                period_ticks=period,
                delay_ticks=delay_ticks,
            )
            for i, (period, delay_ticks) in enumerate(clocks)
        )
    )


layouts = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=4).map(
    lambda clocks: layout_of(*clocks)
)


def numbered(layout: Layout, num_blocks: int, *element: int) -> dict[str, torch.Tensor]:
    """Content in which every id tells its step."""
    return counted(layout, num_blocks * layout.block_ticks, *element)


def counted(layout: Layout, num_ticks: int, *element: int) -> dict[str, torch.Tensor]:
    """The same, of any number of ticks: the steps that end within them."""
    ticks = {}
    for stream in layout.streams:
        steps = torch.arange(num_ticks // stream.period_ticks)
        ticks[stream.name] = steps.view(1, -1, *(1 for _ in element)).expand(2, -1, *element)
    return ticks


def assert_same(left: Ticks, right: Ticks) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def latest(layout: Layout) -> int:
    return max(stream.delay_ticks for stream in layout.streams)


@given(layout=layouts, num_blocks=st.integers(0, 3))
def test_content_inverts_columns_of_slow_streams(layout: Layout, num_blocks: int) -> None:
    ticks = numbered(layout, num_blocks)
    assert_same(schedule.content(layout, schedule.columns(layout, ticks)), ticks)


def test_content_inverts_columns_of_codebooks() -> None:
    layout = layout_of((1, 0), (1, 2), depth=3)
    ticks = numbered(layout, 5, 3)
    arrived = schedule.columns(layout, ticks)
    assert arrived["s1"].shape == (2, 7, 3)
    assert_same(schedule.content(layout, arrived), ticks)


@given(layout=layouts)
def test_a_column_holds_the_step_that_becomes_available_with_it(layout: Layout) -> None:
    """The schedule and the clock tell the same story."""
    arrived = schedule.columns(layout, numbered(layout, 3))
    for stream in layout.streams:
        num_steps = 3 * layout.block_ticks // stream.period_ticks
        moments = {available_at(layout, stream.name, step).tick: step for step in range(num_steps)}
        for column, found in enumerate(arrived[stream.name][0].tolist()):
            assert found == moments.get(column, UNSET_ID)


@given(layout=layouts, num_blocks=st.integers(0, 4))
def test_columns_of_a_prefix_are_a_prefix(layout: Layout, num_blocks: int) -> None:
    """Streaming is offline: block by block, both ways."""
    ticks = numbered(layout, 4)
    arrived = schedule.columns(layout, ticks)
    cut = num_blocks * layout.block_ticks
    begun = {name: ids[:, : cut // layout[name].period_ticks] for name, ids in ticks.items()}
    for name, ids in schedule.columns(layout, begun).items():
        assert torch.equal(ids[:, :cut], arrived[name][:, :cut])
    known = max(cut - latest(layout), 0)
    prefix = {name: ids[:, :cut] for name, ids in arrived.items()}
    for name, ids in schedule.content(layout, prefix).items():
        assert torch.equal(ids, ticks[name][:, : known // layout[name].period_ticks])


def test_an_initial_id_stands_before_the_first_element_alone() -> None:
    layout = layout_of((1, 0), (1, 2), (2, 1))
    late = replace(layout["s1"], initial_id=1000)
    slow = replace(layout["s2"], initial_id=1001)
    layout = Layout(streams=(layout["s0"], late, slow))
    arrived = schedule.columns(layout, numbered(layout, 2))
    assert arrived["s0"][0].tolist() == [UNSET_ID, 0, 1, 2, 3, UNSET_ID, UNSET_ID]
    assert arrived["s1"][0].tolist() == [1000, 1000, 1000, 0, 1, 2, 3]
    assert arrived["s2"][0].tolist() == [1001, 1001, 1001, 0, UNSET_ID, 1, UNSET_ID]


def test_columns_are_longer_by_the_latest_delay() -> None:
    layout = layout_of((1, 1), (4, 5))
    assert {ids.shape[1] for ids in schedule.columns(layout, numbered(layout, 2)).values()} == {13}
    layout = layout_of((1, 0), (4, 0))
    assert {ids.shape[1] for ids in schedule.columns(layout, numbered(layout, 2)).values()} == {8}


def test_columns_refuse_streams_of_other_lengths() -> None:
    layout = layout_of((1, 1), (4, 0))
    for num_ticks, num_slow, expected in ((8, 3, r"'s0' .* \(1, 12\): got \(1, 8\)"),
                                          (8, 1, r"'s1' .* \(1, 2\): got \(1, 1\)")):  # fmt: skip
        ticks = {"s0": torch.zeros(1, num_ticks).long(), "s1": torch.zeros(1, num_slow).long()}
        with pytest.raises(ValueError, match=expected):
            schedule.columns(layout, ticks)


# Columns, batches and sessions


def spoken_layout(said: list[int], heard: list[int], periods: tuple[int, ...] = ()) -> Layout:
    """Streams that are said, of these delays, then streams that are heard; all have initial ids.

    Their periods are taken in turn; that of the first is one tick.
    """
    periods = (1, *periods)
    streams = [
        Stream(
            name=f"{'said' if predicted else 'heard'}{i}",
            role=Role.SPOKEN if predicted else Role.HEARD,
            vocab_size=1000,
            delay_ticks=late,
            period_ticks=periods[(i + (not predicted and len(said))) % len(periods)],
            predicted=predicted,
            initial_id=1000,
        )
        for predicted, delays in ((True, said), (False, heard))
        for i, late in enumerate(delays)
    ]
    return Layout(streams=tuple(streams))


delays = st.lists(st.integers(0, 4), min_size=1, max_size=3)
spoken_layouts = st.builds(
    spoken_layout, delays, delays, st.lists(st.integers(1, 3), max_size=3).map(tuple)
)


@given(layout=spoken_layouts, num_ticks=st.integers(1, 9))
def test_an_element_stands_in_the_column_of_its_moment(layout: Layout, num_ticks: int) -> None:
    arrived = schedule.columns(layout, counted(layout, num_ticks))
    lead = schedule.lead_ticks(layout)
    for stream in layout.streams:
        ids = arrived[stream.name][0].tolist()
        first = lead + available_at(layout, stream.name, 0).tick
        assert ids[:first] == [1000] * min(first, len(ids))
        for step in range(num_ticks // stream.period_ticks):
            assert ids[lead + available_at(layout, stream.name, step).tick] == step


@given(layout=spoken_layouts, num_ticks=st.integers(0, 6), cut=st.integers(0, 12))
def test_content_inverts_columns_and_each_of_their_prefixes(
    layout: Layout, num_ticks: int, cut: int
) -> None:
    ticks = counted(layout, num_ticks)
    arrived = schedule.columns(layout, ticks)
    assert_same(schedule.content(layout, arrived), ticks)
    prefix = {name: ids[:, :cut] for name, ids in arrived.items()}
    for name, ids in schedule.content(layout, prefix).items():
        assert torch.equal(ids, ticks[name][:, : ids.shape[1]])
        kept = min(cut, arrived[name].shape[1]) - 1 - latest(layout)
        assert ids.shape[1] == max(kept, 0) // layout[name].period_ticks


@given(layout=spoken_layouts, num_ticks=st.integers(1, 8), num_prompt=st.integers(0, 8))
def test_a_batch_reads_exactly_what_is_visible_to_its_targets(
    layout: Layout, num_ticks: int, num_prompt: int
) -> None:
    """By the dense rule, element by element; what carries loss is what is behind the prompt."""
    batch = schedule.lay_out(layout, counted(layout, num_ticks), num_prompt)
    assert batch.size == 2 * (num_ticks - num_prompt)
    for name, targets in batch.targets.items():
        elements = batch.elements[name][0].tolist()
        for tick, frame in enumerate(elements):
            if not 0 <= frame < 1000:
                continue
            is_new = (frame + 1) * layout[name].period_ticks > num_prompt
            expected = frame if is_new else UNSET_ID
            assert targets[0, tick].item() == expected
            for key in layout.streams:
                read = batch.ticks[key.name][0, : tick + 1].tolist()
                earlier = key.predicted and layout.place(key.name) < layout.place(name)
                same = batch.elements[key.name][0, tick : tick + 1].tolist() if earlier else []
                found = {i for i in read + same if 0 <= i < 1000}
                for step in range(num_ticks // key.period_ticks):
                    moment = available_at(layout, key.name, step)
                    late = moment.tick == available_at(layout, name, frame).tick
                    if late and not key.predicted:
                        continue  # what is heard in a frame stands behind what is said in it
                    assert (step in found) == visible(layout, (name, frame), (key.name, step))


class SessionQueue:
    """Columns by their distance to the next one, filled as sessions fill theirs, without a loss."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.kept = schedule.kept_distances(layout)
        self.found: dict[tuple[str, int], int] = {}

    def put(self, name: str, distance: int, value: float) -> None:
        assert distance in self.kept, "a column that is not kept is filled"
        assert (name, distance) not in self.found, "a column that is still needed is overwritten"
        self.found[name, distance] = int(value)

    def begin(self, prompt: Ticks, num_prompt: int) -> None:
        for stream in self.layout.streams:
            own = prompt[stream.name][0].tolist()
            tail = schedule.tail_columns(self.layout, stream.name, num_prompt)
            for distance, column in enumerate(tail):
                nothing = schedule.empty_id(self.layout, stream, column)
                self.put(stream.name, distance, own[column] if column < len(own) else nothing)

    def move_up(self) -> None:
        moved = {(name, at - 1): value for (name, at), value in self.found.items()}
        self.found = {key: value for key, value in moved.items() if key[1] in self.kept}


@given(layout=spoken_layouts, num_prompt=st.integers(0, 5), num_ticks=st.integers(1, 12))
def test_a_session_has_every_element_when_its_column_is_read(
    layout: Layout, num_prompt: int, num_ticks: int
) -> None:
    """A queue that is filled as sessions fill theirs gives back the columns of the content."""
    whole = schedule.columns(layout, counted(layout, num_prompt + num_ticks))
    prompt = schedule.columns(layout, counted(layout, num_prompt))
    queue = SessionQueue(layout)
    queue.begin(prompt, num_prompt)
    for done in range(num_prompt, num_prompt + num_ticks):
        column = schedule.next_column(layout, done)
        for stream in layout.predicted:  # the session writes what is not given
            if (stream.name, 0) not in queue.found:
                queue.put(stream.name, 0, whole[stream.name][0, column].item())
        newest = schedule.complete_tick(layout, column)
        for stream in layout.predicted if newest >= num_prompt else ():
            step, more = divmod(newest + 1, stream.period_ticks)
            found = queue.found[stream.name, schedule.complete_distance(layout, stream.name)]
            assert found == (UNSET_ID if more else step - 1) or (more and found == 1000)
        queue.move_up()
        for stream in layout.heard:
            if schedule.ends_step(stream, done):
                step = (done + 1) // stream.period_ticks - 1
                queue.put(stream.name, schedule.given_distance(layout, stream.name), step)
        for stream in layout.streams:
            expected = whole[stream.name][0, column].item()
            if expected == UNSET_ID and (stream.name, -1) not in queue.found:
                continue  # nothing was given, and nothing stands there
            assert queue.found[stream.name, -1] == expected


def test_forced_ids_are_those_of_the_next_tick() -> None:
    layout = spoken_layout([0, 2], [0, 1])
    given = {s.name: schedule.given_column(layout, s.name, 5) for s in layout.streams}
    assert given == {"said0": 7, "said1": 9, "heard0": 6, "heard1": 7}
    assert schedule.next_column(layout, 5) == 6


def test_a_layout_without_initial_ids_begins_with_its_content() -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=9, predicted=True)
    layout = Layout(streams=(part,))
    batch = schedule.lay_out(layout, {"part": torch.tensor([[4, 5, 6]])})
    assert batch.ticks["part"].tolist() == [[4, 5]]
    assert batch.targets["part"].tolist() == [[5, 6]]
    assert (batch.size, schedule.next_column(layout, 3)) == (2, 3)


def test_packed_documents_of_nothing_wait_for_their_late_streams() -> None:
    layout = spoken_layout([0], [2])
    begins = torch.tensor([[True, False, False, False, True, False]])
    arrived = schedule.unset_columns(layout, begins)
    assert arrived["said0"].tolist() == [[1000, -1, -1, -1, 1000, -1]]
    assert arrived["heard0"].tolist() == [[1000, 1000, 1000, -1, 1000, 1000]]


def test_a_column_without_an_element_reads_the_initial_id_only_before_the_first_one() -> None:
    layout = layout_of((1, 0), (1, 2), (2, 1))
    streams = [replace(stream, initial_id=1000) for stream in layout.streams]
    layout = Layout(streams=tuple(streams))
    for stream in layout.streams:
        first = schedule.column_of(layout, stream, 0)
        found = [schedule.empty_id(layout, stream, column) for column in range(first + 3)]
        assert found == [1000] * first + [UNSET_ID] * 3
