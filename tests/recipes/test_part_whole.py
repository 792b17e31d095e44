"""What the arms of part_whole promise beside equal training FLOPs."""

import pytest

from counterpoint.evaluate.latency import decode_latency
from counterpoint.recipes.grid import costs
from counterpoint.recipes.part_whole import part_whole
from counterpoint.systems import build_system, sketch

ARMS = {arm.name: arm.system for arm in part_whole().arms}


def test_strided_attention_keeps_as_many_bytes_as_two_stream() -> None:
    grid = part_whole()
    found = costs(grid, grid.tasks[0])
    assert found["strided"].state == pytest.approx(found["two_stream"].state, rel=0.05)


@pytest.mark.parametrize("arm", ["same_rate", "shared_levels", "window_summary", "strided"])
def test_controls_reach_as_far_back_as_two_stream(arm: str) -> None:
    """What a control lacks must not be a view of the past."""
    reach = sketch(ARMS["two_stream"]).window_ticks
    assert sketch(ARMS[arm]).window_ticks >= reach


def test_two_streams_at_one_rate_compress_nothing() -> None:
    same = sketch(ARMS["same_rate"])
    assert {stream.period_ticks for stream in same.layout.streams} == {1}
    assert same.config.compressor == "last"
    shared = dict(sketch(ARMS["shared_levels"]).named_parameters())
    assert not any(name.startswith("whole.layers") for name in shared)


@pytest.mark.parametrize("name", ["two_stream", "two_stream_text", "hdlm"])
def test_a_tick_of_arms_with_one_and_with_several_written_streams_is_timed(name: str) -> None:
    assert decode_latency(build_system(ARMS[name], 0).eval(), 3).num_ticks == 3
