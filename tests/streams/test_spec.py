import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.spec import Layout, Role, Stream


def make(name: str = "part", **fields: Any) -> Stream:
    return Stream(**{"name": name, "role": Role.PART, "vocab_size": 256, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 4}, "either discrete .* or continuous"),
        ({"vocab_size": None}, "either discrete .* or continuous"),
        ({"vocab_size": 0}, "`vocab_size` must be >= 1, got 0"),
        ({"depth": 0}, "`depth` must be >= 1"),
        ({"vocab_size": None, "width": 0}, "`width` must be >= 1"),
        ({"vocab_size": None, "width": 4, "depth": 2}, "`depth` 1, got 2"),
        ({"period_ticks": 0}, "`period_ticks` must be >= 1"),
        ({"delay_ticks": -1}, "`delay_ticks` must be >= 0, got -1. To let a stream lead"),
        ({"initial_id": 255}, "`initial_id` must be outside of its 256 ids"),
        ({"initial_id": -1}, "`initial_id` must be outside of its 256 ids"),
    ],
)
def test_stream_refuses_impossible_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(**fields)
    assert "'part'" in str(error.value)
    assert "\n" not in str(error.value)


def test_stream_is_discrete_or_continuous() -> None:
    assert make().is_discrete
    assert not make(vocab_size=None, width=8).is_discrete


def test_stream_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make().depth = 2  # type: ignore[misc]


def test_layout_knows_places_by_name() -> None:
    layout = Layout(streams=(make("a"), make("b"), make("c")))
    assert [layout.place(name) for name in "abc"] == [0, 1, 2]
    assert layout["b"].name == "b"


def test_layout_names_its_streams_when_one_is_unknown() -> None:
    layout = Layout(streams=(make("a"), make("b")))
    with pytest.raises(KeyError, match="no stream 'c'; it has: a, b"):
        layout["c"]


@pytest.mark.parametrize("names", ["", "aa", "aba"])
def test_layout_refuses_no_stream_and_equal_names(names: str) -> None:
    with pytest.raises(ValueError, match="at least one stream and no name twice"):
        Layout(streams=tuple(make(name) for name in names))


@pytest.mark.parametrize("tick_hz", [0.0, -1.0, math.inf, math.nan])
def test_layout_refuses_an_impossible_rate(tick_hz: float) -> None:
    with pytest.raises(ValueError, match="`tick_hz` must be positive and finite"):
        Layout(streams=(make(),), tick_hz=tick_hz)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_layout_block_is_the_smallest_common_period(periods: list[int]) -> None:
    streams = tuple(make(f"s{i}", period_ticks=period) for i, period in enumerate(periods))
    block = Layout(streams=streams).block_ticks
    aligned = [t for t in range(1, block + 1) if all(t % period == 0 for period in periods)]
    assert aligned == [block]
