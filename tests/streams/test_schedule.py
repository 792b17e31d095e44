import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams import schedule
from counterpoint.streams.clock import available_at, visible
from counterpoint.streams.schedule import delay, delay_padding, delay_steps, undelay
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
    ticks = {}
    for stream in layout.streams:
        steps = torch.arange(num_blocks * layout.block_ticks // stream.period_ticks)
        ticks[stream.name] = steps.view(1, -1, *(1 for _ in element)).expand(2, -1, *element)
    return ticks


def assert_same(left: Ticks, right: Ticks) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@given(layout=layouts, num_blocks=st.integers(0, 3))
def test_undelay_inverts_delay(layout: Layout, num_blocks: int) -> None:
    ticks = numbered(layout, num_blocks)
    assert_same(undelay(delay(ticks, layout), layout), ticks)


def test_undelay_inverts_delay_of_codebooks() -> None:
    layout = layout_of((1, 0), (1, 2), depth=3)
    ticks = numbered(layout, 5, 3)
    delayed = delay(ticks, layout)
    assert delayed["s1"].shape == (2, 7, 3)
    assert_same(undelay(delayed, layout), ticks)


@given(layout=layouts)
def test_delayed_slot_holds_the_newest_available_step(layout: Layout) -> None:
    """`delay` and the clock tell the same story."""
    delayed = delay(numbered(layout, 3), layout)
    for stream in layout.streams:
        num_steps = 3 * layout.block_ticks // stream.period_ticks
        for slot, found in enumerate(delayed[stream.name][0].tolist()):
            last_tick = (slot + 1) * stream.period_ticks - 1
            newest = [
                step
                for step in range(num_steps + slot)
                if available_at(layout, stream.name, step).tick <= last_tick
            ]
            expected = newest[-1] if newest and newest[-1] < num_steps else UNSET_ID
            assert found == expected


@given(layout=layouts, num_blocks=st.integers(0, 4))
def test_delaying_a_prefix_gives_a_prefix(layout: Layout, num_blocks: int) -> None:
    """Streaming is offline: block by block, both ways."""
    ticks, delayed = numbered(layout, 4), delay(numbered(layout, 4), layout)

    def prefix(whole: Ticks) -> dict[str, torch.Tensor]:
        cut = num_blocks * layout.block_ticks
        return {name: ids[:, : cut // layout[name].period_ticks] for name, ids in whole.items()}

    assert_same(prefix(delay(prefix(ticks), layout)), prefix(delayed))
    known = max(num_blocks * layout.block_ticks - delay_padding(layout), 0)
    for name, ids in undelay(prefix(delayed), layout).items():
        assert torch.equal(ids, ticks[name][:, : known // layout[name].period_ticks])


def test_delay_fills_with_the_initial_id() -> None:
    layout = layout_of((1, 0), (1, 2), (2, 1))
    ticks = numbered(layout, 2)
    delayed = delay(ticks, layout, initial={"s1": 7})
    assert delayed["s0"][0].tolist() == [0, 1, 2, 3, UNSET_ID, UNSET_ID]
    assert delayed["s1"][0].tolist() == [7, 7, 0, 1, 2, 3]
    assert delayed["s2"][0].tolist() == [UNSET_ID, 0, 1]


def test_delay_lengthens_by_whole_blocks() -> None:
    layout = layout_of((1, 1), (4, 5))
    assert [delay_steps(stream) for stream in layout.streams] == [1, 2]
    assert delay_padding(layout) == 8
    assert delay_padding(layout_of((1, 0), (4, 0))) == 0


def test_delay_refuses_streams_of_other_lengths() -> None:
    layout = layout_of((1, 1), (4, 0))
    ticks = {"s0": torch.zeros(1, 8).long(), "s1": torch.zeros(1, 3).long()}
    for shift in (delay, undelay):
        with pytest.raises(ValueError, match=r"same ticks: got {'s0': 8, 's1': 12}"):
            shift(ticks, layout)


def test_delay_refuses_an_initial_id_of_another_stream() -> None:
    layout = layout_of((1, 1))
    with pytest.raises(ValueError, match=r"name streams of `ticks` \(s0\): got \['s1'\]"):
        delay({"s0": torch.zeros(1, 8).long()}, layout, initial={"s1": 0})


# Columns, batches and sessions


def spoken_layout(said: list[int], heard: list[int]) -> Layout:
    """Streams that are said, of these delays, then streams that are heard; all have initial ids."""
    streams = [
        Stream(
            name=f"{'said' if predicted else 'heard'}{i}",
            role=Role.SPOKEN if predicted else Role.HEARD,
            vocab_size=1000,
            delay_ticks=late,
            predicted=predicted,
            initial_id=1000,
        )
        for predicted, delays in ((True, said), (False, heard))
        for i, late in enumerate(delays)
    ]
    return Layout(streams=tuple(streams))


delays = st.lists(st.integers(0, 4), min_size=1, max_size=3)
spoken_layouts = st.builds(spoken_layout, delays, delays)


@given(layout=spoken_layouts, num_ticks=st.integers(1, 9))
def test_an_element_stands_in_the_column_of_its_moment(layout: Layout, num_ticks: int) -> None:
    arrived = schedule.columns(layout, numbered(layout, num_ticks))
    lead = schedule.lead_ticks(layout)
    for stream in layout.streams:
        ids = arrived[stream.name][0].tolist()
        first = lead + available_at(layout, stream.name, 0).tick
        assert ids[:first] == [1000] * first
        for frame in range(num_ticks):
            assert ids[lead + available_at(layout, stream.name, frame).tick] == frame


@given(layout=spoken_layouts, num_ticks=st.integers(0, 6), cut=st.integers(0, 12))
def test_content_inverts_columns_and_each_of_their_prefixes(
    layout: Layout, num_ticks: int, cut: int
) -> None:
    ticks = numbered(layout, num_ticks)
    arrived = schedule.columns(layout, ticks)
    assert_same(schedule.content(layout, arrived), ticks)
    prefix = {name: ids[:, :cut] for name, ids in arrived.items()}
    for name, ids in schedule.content(layout, prefix).items():
        assert torch.equal(ids, ticks[name][:, : ids.shape[1]])
        kept = min(cut, arrived[name].shape[1]) - 1 - schedule.delay_padding(layout)
        assert ids.shape[1] == max(kept, 0)


@given(layout=spoken_layouts, num_ticks=st.integers(1, 8), num_prompt=st.integers(0, 8))
def test_a_batch_reads_exactly_what_is_visible_to_its_targets(
    layout: Layout, num_ticks: int, num_prompt: int
) -> None:
    """By the dense rule, element by element; what carries loss is what is behind the prompt."""
    batch = schedule.lay_out(layout, numbered(layout, num_ticks), num_prompt)
    assert batch.size == 2 * (num_ticks - num_prompt)
    for name, targets in batch.targets.items():
        elements = batch.elements[name][0].tolist()
        for tick, frame in enumerate(elements):
            if not 0 <= frame < 1000:
                continue
            expected = frame if frame >= num_prompt else UNSET_ID
            assert targets[0, tick].item() == expected
            for key in layout.streams:
                read = batch.ticks[key.name][0, : tick + 1].tolist()
                earlier = key.predicted and layout.place(key.name) < layout.place(name)
                same = batch.elements[key.name][0, tick : tick + 1].tolist() if earlier else []
                found = {i for i in read + same if 0 <= i < 1000}
                heard = range(num_ticks) if key.predicted else []
                for step in heard or range(num_ticks):
                    moment = available_at(layout, key.name, step)
                    late = moment.tick == available_at(layout, name, frame).tick
                    if late and not key.predicted:
                        continue  # what is heard in a frame stands behind what is said in it
                    assert (step in found) == visible(layout, (name, frame), (key.name, step))


class SessionRing:
    """A ring that is filled as sessions fill theirs, and never overwrites what is still needed."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.size = layout, schedule.ring_columns(layout)
        self.slots: dict[tuple[str, int], int] = {}

    def put(self, name: str, column: int, value: float) -> None:
        assert not self.has(name, column), "a column that is still needed is overwritten"
        self.slots[name, column % self.size] = int(value)

    def has(self, name: str, column: int) -> bool:
        return (name, column % self.size) in self.slots

    def get(self, name: str, column: int) -> int:
        return self.slots[name, column % self.size]

    def expire(self, column: int) -> None:
        expired = int(schedule.expired_column(self.layout, torch.tensor(column)))
        for stream in self.layout.streams:
            self.slots.pop((stream.name, expired % self.size), None)


@given(layout=spoken_layouts, num_prompt=st.integers(0, 5), num_ticks=st.integers(1, 12))
def test_a_session_has_every_element_when_its_column_is_read(
    layout: Layout, num_prompt: int, num_ticks: int
) -> None:
    """A ring that is filled as sessions fill theirs gives back the columns of the whole content."""
    whole = schedule.columns(layout, numbered(layout, num_prompt + num_ticks))
    prompt = schedule.columns(layout, numbered(layout, num_prompt))
    ring = SessionRing(layout)
    for stream in layout.streams:
        for column in schedule.tail_columns(layout, stream.name, num_prompt):
            ring.put(stream.name, column, prompt[stream.name][0, column].item())
    for done in range(num_prompt, num_prompt + num_ticks):
        column = schedule.next_column(layout, done)
        for stream in layout.predicted:  # the session writes what is not given
            if not ring.has(stream.name, column):
                ring.put(stream.name, column, whole[stream.name][0, column].item())
        newest = schedule.complete_tick(layout, column)
        for stream in layout.predicted if newest >= num_prompt else ():
            assert ring.get(stream.name, newest + 1 + stream.delay_ticks) == newest
        ring.expire(column)
        for stream in layout.heard:
            ring.put(stream.name, schedule.given_column(layout, stream.name, done), done)
        for stream in layout.streams:
            assert ring.get(stream.name, column) == whole[stream.name][0, column].item()


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


def test_an_initial_frame_needs_streams_of_one_tick() -> None:
    fine = Stream(name="fine", role=Role.SPOKEN, vocab_size=9, predicted=True, initial_id=9)
    slow = Stream(name="slow", role=Role.HEARD, width=3, period_ticks=4)
    with pytest.raises(ValueError, match="slow must have a period of one tick"):
        schedule.lead_ticks(Layout(streams=(fine, slow)))


def test_packed_documents_of_nothing_wait_for_their_late_streams() -> None:
    layout = spoken_layout([0], [2])
    begins = torch.tensor([[True, False, False, False, True, False]])
    arrived = schedule.unset_columns(layout, begins)
    assert arrived["said0"].tolist() == [[1000, -1, -1, -1, 1000, -1]]
    assert arrived["heard0"].tolist() == [[1000, 1000, 1000, -1, 1000, 1000]]
