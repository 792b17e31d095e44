import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.clock import available_at
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
