import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.clock import (
    Span,
    available_at,
    causal_span,
    span_mask,
    visible,
    visible_finished,
    visible_stop,
)
from counterpoint.streams.spec import Layout, Role, Stream

NUM_STEPS = 12  # both phases of every pair of periods


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """One to three streams in any order, with any periods and delays."""
    clocks = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(0, 13)), min_size=1, max_size=3)
    )
    return Layout(
        streams=tuple(
            Stream(
                name=f"s{i}", role=Role.PART, vocab_size=2, period_ticks=period, delay_ticks=delay
            )
            for i, (period, delay) in enumerate(clocks)
        )
    )


def elements(layout: Layout) -> list[tuple[str, int]]:
    return [(stream.name, step) for stream in layout.streams for step in range(NUM_STEPS)]


@given(layouts())
def test_visible_stop_counts_exactly_the_visible_steps(layout: Layout) -> None:
    """All streams, all phases: the block form is the dense rule."""
    for query in layout.streams:
        for key in layout.streams:
            stop = visible_stop(layout, query.name, torch.arange(NUM_STEPS), key.name)
            for step in range(NUM_STEPS):
                # No step beyond the last tick that the query covers can be readable.
                limit = (step + 1) * query.period_ticks + query.delay_ticks
                dense = [
                    visible(layout, (query.name, step), (key.name, key_step))
                    for key_step in range(limit // key.period_ticks + 2)
                ]
                count = int(stop[step])
                assert dense == [True] * count + [False] * (len(dense) - count)


@given(layouts())
def test_moments_are_a_total_order(layout: Layout) -> None:
    moments = [available_at(layout, *element) for element in elements(layout)]
    assert len(set(moments)) == len(moments)


@given(layouts())
def test_visibility_is_a_strict_order(layout: Layout) -> None:
    """No element sees itself, of two exactly one sees the other, and seeing is transitive."""
    ordered = sorted(elements(layout), key=lambda element: available_at(layout, *element))
    for i in range(0, len(ordered), 3):
        seen = [visible(layout, ordered[i], key) for key in ordered]
        assert seen == [True] * i + [False] * (len(ordered) - i)


@given(layouts())
def test_visible_elements_hold_no_future_content(layout: Layout) -> None:
    """What an element may read ends, delay included, no later than the element itself."""
    for query in layout.streams:
        for key in layout.streams:
            stops = visible_stop(layout, query.name, torch.arange(NUM_STEPS), key.name)
            last_tick = stops * key.period_ticks - 1 + key.delay_ticks
            own_tick = (torch.arange(NUM_STEPS) + 1) * query.period_ticks - 1 + query.delay_ticks
            assert bool(((stops == 0) | (last_tick <= own_tick)).all())
            assert bool((stops.diff() >= 0).all())


@given(layouts())
def test_stream_sees_all_its_earlier_steps_and_no_other(layout: Layout) -> None:
    steps = torch.arange(NUM_STEPS)
    for stream in layout.streams:
        assert torch.equal(visible_stop(layout, stream.name, steps, stream.name), steps)


def test_order_in_the_frame_decides_within_a_tick() -> None:
    text = Stream(name="text", role=Role.TEXT, vocab_size=2)
    voice = Stream(name="voice", role=Role.SPOKEN, vocab_size=2)
    layout = Layout(streams=(text, voice))
    assert visible(layout, ("voice", 3), ("text", 3))
    assert not visible(layout, ("text", 3), ("voice", 3))


def test_whole_is_readable_when_its_last_part_is_in_and_its_lag_is_over() -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(name="whole", role=Role.WHOLE, width=2, period_ticks=4, delay_ticks=4)
    layout = Layout(streams=(whole, part))
    stop = visible_stop(layout, "part", torch.arange(17), "whole")
    # Block 0 covers ticks 0..3 and lags one block: tick 7 is the first part that may read it.
    assert stop.tolist() == [0] * 7 + [1] * 4 + [2] * 4 + [3] * 2


@pytest.mark.parametrize("period", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_visible_finished_is_visible_stop_on_a_regular_grid(period: int, lag: int) -> None:
    """Every phase: the steps finished at each tick say what the next tick's element may read."""
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(
        name="whole", role=Role.WHOLE, width=2, period_ticks=period, delay_ticks=lag * period
    )
    layout = Layout(streams=(part, whole))
    tick = torch.arange((lag + 3) * period)
    last_tick = torch.arange(1, lag + 5) * period - 1  # of the content of each step
    finished = (last_tick[:, None] <= tick).sum(0)
    stop = visible_stop(layout, "part", tick + 1, "whole")
    assert torch.equal(visible_finished(finished, lag), stop)
    assert int(stop[-1]) == 3


@pytest.mark.parametrize(("query", "key"), [("whole", "part"), ("part", "whole"), 2 * ("whole",)])
def test_irregular_streams_have_no_moments_by_number(query: str, key: str) -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(name="whole", role=Role.WHOLE, width=2, period_ticks=4, irregular=True)
    layout = Layout(streams=(part, whole))
    for ask in (
        lambda: available_at(layout, "whole", 0),
        lambda: visible(layout, (query, 5), (key, 0)),
        lambda: visible_stop(layout, query, torch.arange(3), key),
    ):
        with pytest.raises(ValueError, match="'whole' is irregular.*`visible_finished`"):
            ask()
    assert available_at(layout, "part", 3) == (3, 0)


@given(
    documents=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 10),
    offset=st.integers(0, 20),
)
def test_causal_span_stays_in_document_and_window(
    documents: list[int], window: int | None, offset: int
) -> None:
    document_of = [number for number, length in enumerate(documents) for _ in range(length)]
    first = [document_of.index(number) for number in document_of]
    num_steps = len(document_of)
    position = torch.arange(num_steps)[None] + offset
    span = causal_span(position, torch.tensor([first]) + offset, window)
    mask = span_mask(span, position)[0]
    for query in range(num_steps):
        for key in range(num_steps):
            expected = document_of[key] == document_of[query] and key <= query
            if window is not None:
                expected = expected and query - key < window
            assert bool(mask[query, key]) == expected


def test_causal_span_is_the_rule_for_the_next_step() -> None:
    """The state at step p produces step p + 1, and the rule says what that may read."""
    layout = Layout(streams=(Stream(name="part", role=Role.PART, vocab_size=2),))
    position = torch.arange(NUM_STEPS)[None]
    span = causal_span(position, torch.zeros_like(position))
    assert torch.equal(span.stop, visible_stop(layout, "part", position + 1, "part"))


@pytest.mark.usefixtures("compiler")
def test_span_mask_compiles_without_graph_breaks() -> None:
    position = torch.arange(NUM_STEPS)[None]
    start = torch.zeros_like(position)

    def mask(position: torch.Tensor) -> torch.Tensor:
        return span_mask(causal_span(position, start, window=3), position)

    compiled = torch.compile(mask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(position), mask(position))


def test_span_mask_takes_other_keys_in_every_row() -> None:
    span = Span(start=torch.tensor([[0, 2], [5, 5]]), stop=torch.tensor([[1, 4], [5, 7]]))
    mask = span_mask(span, torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]))
    assert mask.int().tolist() == [
        [[1, 0, 0, 0], [0, 0, 1, 1]],
        [[0, 0, 0, 0], [0, 1, 1, 0]],
    ]
