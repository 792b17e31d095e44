"""What the arms of part_whole promise beside equal training FLOPs."""

import pytest

from counterpoint.data.tasks.part_whole import FORMS, TASKS
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.latency import decode_latency
from counterpoint.recipes.grid import costs
from counterpoint.recipes.part_whole import part_whole
from counterpoint.recipes.part_whole_equal import part_whole_equal
from counterpoint.recipes.part_whole_gpu import GRAPH_BLOCKS as GPU_BLOCKS
from counterpoint.recipes.part_whole_gpu import part_whole_gpu
from counterpoint.recipes.part_whole_small import GRAPH_BLOCKS, part_whole_small
from counterpoint.systems import build_system, sketch
from counterpoint.systems.two_stream import TwoStream


def blocks_of(system: TwoStream, text: str) -> list[int]:
    """Return the sizes of the blocks of a text, counted by hand."""
    sizes = [0]
    for symbol in text:
        sizes[-1] += 1
        if ord(symbol) in system.config.boundary_ids or sizes[-1] == system.config.block_ticks:
            sizes.append(0)
    return sizes


ARMS = {arm.name: arm.system for arm in part_whole().arms}


def test_strided_attention_keeps_as_many_bytes_as_two_stream() -> None:
    grid = part_whole()
    found = costs(grid, grid.tasks[0])
    assert found["strided"].state == pytest.approx(found["two_stream"].state, rel=0.05)


@pytest.mark.parametrize("arm", ["same_rate", "shared_levels", "window_summary", "strided"])
def test_controls_see_the_longest_text_as_two_stream_does(arm: str) -> None:
    """What a control lacks must not be a view of the past."""
    longest = max(TASKS[task].most_symbols for task in part_whole().tasks)
    for name in ("two_stream", arm):
        assert sketch(ARMS[name]).window_ticks >= longest


def test_the_whole_of_two_stream_reads_all_words_of_the_longest_text() -> None:
    system = build_system(ARMS["two_stream"], 0)
    assert isinstance(system, TwoStream)
    for task in part_whole().tasks:
        texts = [TASKS[task].item(0, number).text for number in range(20)]
        num_blocks = max(len(blocks_of(system, text)) for text in texts)
        assert num_blocks <= system.config.window_blocks
        # FLOPs are counted for words of logbook: other tasks have fewer blocks.
        usual = system.config.usual_block_ticks
        assert usual is not None
        assert num_blocks <= max(map(len, texts)) / usual + 1


def test_the_arms_cost_the_same_on_the_small_forms() -> None:
    grid = part_whole_small()
    for task in grid.tasks:
        assert TaskData(task=FORMS[task]).num_ticks(sketch(ARMS["two_stream"]).layout) <= 112
        assert set(costs(grid, task)) == set(ARMS)


def test_small_forms_have_no_more_words_than_rows_have_room_for() -> None:
    system = build_system(ARMS["two_stream"], 0)
    assert isinstance(system, TwoStream)
    for task in part_whole_small().tasks:
        texts = [FORMS[task].item(0, number).text.ljust(112, "\0") for number in range(100)]
        assert max(len(blocks_of(system, text)) for text in texts) <= GRAPH_BLOCKS


def test_arms_are_equal_in_parameters_and_those_with_levels_in_flops_too() -> None:
    grid = part_whole_equal()
    for task in grid.tasks:
        found = costs(grid, task)
        first = found["deep_as_large"]
        for name, cost in found.items():
            assert cost.parameters == pytest.approx(first.parameters, rel=0.02)
            if name == "hrt_words":
                assert cost.flops == pytest.approx(first.flops, rel=0.05)
            elif name != "deep_as_large":
                assert 1.6 < cost.flops / first.flops < 1.8


def test_the_arms_for_a_gpu_cost_the_same_and_have_room_for_their_words() -> None:
    grid = part_whole_gpu()
    system = build_system(ARMS["two_stream"], 0)
    assert isinstance(system, TwoStream)
    for task in grid.tasks:
        found = costs(grid, task)
        assert all(5e6 < cost.parameters < 30e6 for cost in found.values())
        texts = [FORMS[task].item(0, number).text for number in range(100)]
        assert max(len(blocks_of(system, text)) for text in texts) <= GPU_BLOCKS


def test_two_streams_at_one_rate_compress_nothing() -> None:
    same = sketch(ARMS["same_rate"])
    assert {stream.period_ticks for stream in same.layout.streams} == {1}
    assert same.config.compressor == "last"
    shared = dict(sketch(ARMS["shared_levels"]).named_parameters())
    assert not any(name.startswith("whole.layers") for name in shared)


@pytest.mark.parametrize("name", ["two_stream", "two_stream_text", "hdlm"])
def test_a_tick_of_arms_with_one_and_with_several_written_streams_is_timed(name: str) -> None:
    assert decode_latency(build_system(ARMS[name], 0).eval(), 3).num_ticks == 3
