from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.clock import (
    SEQUENCE,
    Span,
    available_at,
    finished_span,
    reach_ticks,
    span,
    span_mask,
    visible,
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
def test_span_stops_behind_exactly_the_visible_steps(layout: Layout) -> None:
    """All streams, all phases: the block form is the dense rule."""
    for query in layout.streams:
        for key in layout.streams:
            stop = span(layout, query.name, key.name, torch.arange(NUM_STEPS)).stop
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
            stops = span(layout, query.name, key.name, torch.arange(NUM_STEPS)).stop
            last_tick = stops * key.period_ticks - 1 + key.delay_ticks
            own_tick = (torch.arange(NUM_STEPS) + 1) * query.period_ticks - 1 + query.delay_ticks
            assert bool(((stops == 0) | (last_tick <= own_tick)).all())
            assert bool((stops.diff() >= 0).all())


@given(layouts())
def test_stream_sees_all_its_earlier_steps_and_no_other(layout: Layout) -> None:
    steps = torch.arange(NUM_STEPS)
    for stream in layout.streams:
        assert torch.equal(span(layout, stream.name, stream.name, steps).stop, steps)


@given(layouts(), st.integers(1, 4))
def test_a_window_reaches_exactly_so_many_ticks_back(layout: Layout, window: int) -> None:
    """By the dense rule: from the newest readable tick back to the oldest that is covered."""
    query = Stream(name="query", role=Role.PART, vocab_size=2)
    layout = Layout(streams=(*layout.streams[:1], query, *layout.streams[1:]))
    for key in layout.streams:
        if key is query:
            continue
        reached = []
        for tick in range((window + 3) * key.period_ticks + key.delay_ticks):
            seen = [
                step
                for step in range(tick // key.period_ticks + 1)
                if visible(layout, ("query", tick), (key.name, step))
            ]
            if len(seen) >= window:
                is_earlier = layout.place(key.name) < layout.place("query")
                reached.append(tick + is_earlier - seen[-window] * key.period_ticks)
        assert max(reached) == reach_ticks(key, window)


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
    stop = span(layout, "part", "whole", torch.arange(17)).stop
    # Block 0 covers ticks 0..3 and lags one block: tick 7 is the first part that may read it.
    assert stop.tolist() == [0] * 7 + [1] * 4 + [2] * 4 + [3] * 2


@pytest.mark.parametrize("period", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_counting_finished_steps_is_the_rule_on_a_regular_grid(period: int, lag: int) -> None:
    """Every phase: the steps finished at each tick say what the next tick's element may read."""
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(
        name="whole", role=Role.WHOLE, width=2, period_ticks=period, delay_ticks=lag * period
    )
    layout = Layout(streams=(part, whole))
    tick = torch.arange((lag + 3) * period)
    last_tick = torch.arange(1, lag + 5) * period - 1  # of the content of each step
    finished = (last_tick[:, None] <= tick).sum(0)
    stop = span(layout, "part", "whole", tick + 1).stop
    assert torch.equal(finished_span(finished, lag).stop, stop)
    assert int(stop[-1]) == 3


@pytest.mark.parametrize(("query", "key"), [("whole", "part"), ("part", "whole"), 2 * ("whole",)])
def test_irregular_streams_have_no_moments_by_number(query: str, key: str) -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(name="whole", role=Role.WHOLE, width=2, period_ticks=4, irregular=True)
    layout = Layout(streams=(part, whole))
    for ask in (
        lambda: available_at(layout, "whole", 0),
        lambda: visible(layout, (query, 5), (key, 0)),
        lambda: span(layout, query, key, torch.arange(3)).stop,
    ):
        with pytest.raises(ValueError, match="'whole' is irregular.*`span`"):
            ask()
    assert available_at(layout, "part", 3) == (3, 0)


@given(layouts(), st.none() | st.integers(1, 5), st.integers(0, 3))
def test_span_holds_exactly_the_visible_steps(
    layout: Layout, window: int | None, first: int
) -> None:
    """All pairs of streams, all phases: the interval is the dense rule."""
    step = torch.arange(NUM_STEPS)[None]
    for query in layout.streams:
        for key in layout.streams:
            limit = (NUM_STEPS * query.period_ticks + query.delay_ticks) // key.period_ticks + 2
            found = span_mask(
                span(layout, query.name, key.name, step, first=first, window=window),
                torch.arange(limit)[None],
            )[0]
            for number in range(NUM_STEPS):
                dense = [
                    visible(layout, (query.name, number), (key.name, key_step))
                    for key_step in range(limit)
                ]
                newest = dense.count(True) if window is None else min(dense.count(True), window)
                oldest = max(first, dense.count(True) - newest)
                expected = [seen and i >= oldest for i, seen in enumerate(dense)]
                assert found[number].tolist() == expected


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
@pytest.mark.parametrize("period", [1, 3])
def test_span_is_empty_before_the_first_delayed_step(period: int, delay: int) -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    late = Stream(name="late", role=Role.WHOLE, width=2, period_ticks=period, delay_ticks=delay)
    layout = Layout(streams=(part, late))
    found = span(layout, "part", "late", torch.arange(NUM_STEPS)).stop
    assert found.tolist() == [max(tick - delay, 0) // period for tick in range(NUM_STEPS)]


@given(
    ends=st.sets(st.integers(0, NUM_STEPS - 1)),
    lag_steps=st.integers(0, 3),
    whole_first=st.booleans(),
)
def test_span_of_an_irregular_stream_is_the_rule_for_steps_that_end_where_the_content_says(
    ends: set[int], lag_steps: int, whole_first: bool
) -> None:
    """A step is available at the moment at which the step a lag behind it has ended."""
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(
        name="whole",
        role=Role.WHOLE,
        width=2,
        period_ticks=4,
        delay_ticks=4 * lag_steps,
        irregular=True,
    )
    layout = Layout(streams=(whole, part) if whole_first else (part, whole))
    moments = [(end, layout.place("whole")) for end in sorted(ends)]
    queries = [(tick, layout.place("part")) for tick in range(NUM_STEPS)]
    finished = torch.tensor([[sum(end < query for end in moments) for query in queries]])
    found = span(layout, "part", "whole", torch.arange(NUM_STEPS)[None], finished=finished)
    for tick, query in enumerate(queries):
        readable = sum(end < query for end in moments[lag_steps:])
        assert (int(found.start[0, tick]), int(found.stop[0, tick])) == (0, readable)


@given(layouts(), st.integers(0, 2))
def test_span_of_finished_steps_is_that_of_a_regular_stream(layout: Layout, lag: int) -> None:
    """Where steps end at their period, counting them gives what their numbers give."""
    key = replace(layout.streams[0], delay_ticks=lag * layout.streams[0].period_ticks)
    layout = Layout(streams=(key, *layout.streams[1:]))
    for query in layout.streams[1:]:
        step = torch.arange(NUM_STEPS)
        tick = (step + 1) * query.period_ticks - 1 + query.delay_ticks
        finished = (tick + 1) // key.period_ticks  # the key comes earlier in the frame
        by_count = span(layout, query.name, key.name, step, finished=finished)
        assert torch.equal(by_count.stop, span(layout, query.name, key.name, step).stop)


def test_span_counts_finished_steps_of_whole_delays_only() -> None:
    part = Stream(name="part", role=Role.PART, vocab_size=2)
    whole = Stream(
        name="whole", role=Role.WHOLE, width=2, period_ticks=4, delay_ticks=3, irregular=True
    )
    layout = Layout(streams=(part, whole))
    with pytest.raises(ValueError, match="whole number of its steps of 4 ticks: got 3 ticks"):
        span(layout, "part", "whole", torch.arange(3), finished=torch.arange(3))


@given(
    documents=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 10),
    offset=st.integers(0, 20),
)
def test_span_of_a_sequence_stays_in_document_and_window(
    documents: list[int], window: int | None, offset: int
) -> None:
    document_of = [number for number, length in enumerate(documents) for _ in range(length)]
    first = [document_of.index(number) for number in document_of]
    num_steps = len(document_of)
    position = torch.arange(num_steps)[None] + offset
    start = torch.tensor([first]) + offset
    reach = span(SEQUENCE, "sequence", "sequence", position + 1, first=start, window=window)
    mask = span_mask(reach, position)[0]
    for query in range(num_steps):
        for key in range(num_steps):
            expected = document_of[key] == document_of[query] and key <= query
            if window is not None:
                expected = expected and query - key < window
            assert bool(mask[query, key]) == expected


def test_span_of_a_sequence_is_the_rule_for_the_next_step() -> None:
    """The state at step p produces step p + 1, and the rule says what that may read."""
    layout = Layout(streams=(Stream(name="part", role=Role.PART, vocab_size=2),))
    position = torch.arange(NUM_STEPS)[None]
    reach = span(SEQUENCE, "sequence", "sequence", position + 1)
    assert torch.equal(reach.stop, position + 1)
    assert torch.equal(reach.stop, span(layout, "part", "part", position + 1).stop)


@pytest.mark.usefixtures("compiler")
def test_span_mask_compiles_without_graph_breaks() -> None:
    position = torch.arange(NUM_STEPS)[None]

    def mask(position: torch.Tensor) -> torch.Tensor:
        reach = span(SEQUENCE, "sequence", "sequence", position + 1, window=3)
        return span_mask(reach, position)

    compiled = torch.compile(mask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(position), mask(position))


def test_span_mask_takes_other_keys_in_every_row() -> None:
    span = Span(start=torch.tensor([[0, 2], [5, 5]]), stop=torch.tensor([[1, 4], [5, 7]]))
    mask = span_mask(span, torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]))
    assert mask.int().tolist() == [
        [[1, 0, 0, 0], [0, 0, 1, 1]],
        [[0, 0, 0, 0], [0, 1, 1, 0]],
    ]
