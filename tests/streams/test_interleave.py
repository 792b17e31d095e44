import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.clock import Moment, causal_span, span_mask, visible
from counterpoint.streams.interleave import Interleaving, Segment, chunk, interleave
from counterpoint.streams.spec import Layout, Role, Stream

NAMES = ("thought", "heard", "spoken")


def layout_of(thought_delay: int = 0) -> Layout:
    return Layout(
        streams=(
            Stream(name="thought", role=Role.THOUGHT, vocab_size=100, delay_ticks=thought_delay),
            Stream(name="heard", role=Role.HEARD, vocab_size=100, period_ticks=2),
            Stream(name="spoken", role=Role.SPOKEN, vocab_size=100),
        )
    )


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    """Any segments that keep each stream in order, shuffled between the streams."""
    per_stream: list[list[Segment]] = []
    for name in NAMES:
        whens = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=5))
        per_stream.append(
            [Segment(name, tick, draw(st.integers(0, 3)), doc) for doc, tick in sorted(whens)]
        )
    queues = draw(st.permutations([i for i, own in enumerate(per_stream) for _ in own]))
    return [per_stream[queue].pop(0) for queue in queues]


def content_of(segments: list[Segment]) -> dict[str, torch.Tensor]:
    """A vector for every element that tells its stream and its step."""
    counts = {name: sum(s.length for s in segments if s.stream == name) for name in NAMES}
    present = {segment.stream for segment in segments}
    return {
        name: torch.stack([torch.full((count,), i), torch.arange(count)], dim=1)
        for i, (name, count) in enumerate(counts.items())
        if name in present
    }


@given(segment_lists().filter(bool))
def test_split_inverts_merge(segments: list[Segment]) -> None:
    order = interleave(segments, layout_of())
    content = content_of(segments)
    sequence = order.merge(content)
    assert torch.equal(sequence, torch.stack([order.place, order.step], dim=1))
    again = order.split(sequence)
    assert again.keys() == content.keys()
    for name, elements in content.items():
        assert torch.equal(again[name], elements)


@given(segment_lists())
def test_sequence_respects_availability_and_documents(segments: list[Segment]) -> None:
    """Each position follows exactly what was available before it in its document."""
    order = interleave(segments, layout_of())
    document_of = [s.document for s in order.segments for _ in range(s.length)]
    moments = [Moment(int(t), int(p)) for t, p in zip(order.tick, order.place, strict=True)]
    keys = list(zip(document_of, moments, strict=True))
    assert keys == sorted(keys)
    assert sorted(order.segments) == sorted(segments)
    for name in NAMES:  # every stream keeps its own order
        steps = order.step[order.mask(name)]
        assert torch.equal(steps, torch.arange(len(steps)))
    position = torch.arange(len(document_of))[None]
    mask = span_mask(causal_span(position, order.document_start[None]), position)[0]
    for query, document in enumerate(document_of):
        readable = [key for key in range(query + 1) if document_of[key] == document]
        assert mask[query].nonzero().flatten().tolist() == readable


@given(num_blocks=st.integers(1, 12), chunk_blocks=st.integers(1, 5), delay_ticks=st.integers(0, 9))
def test_chunks_on_the_clock_never_read_the_future(
    num_blocks: int, chunk_blocks: int, delay_ticks: int
) -> None:
    """What stands earlier is what the dense rule lets the last step of a chunk read."""
    layout = layout_of(delay_ticks)
    segments = [
        segment
        for stream in layout.streams
        for segment in chunk(
            layout,
            stream.name,
            2 * num_blocks // stream.period_ticks,
            2 * chunk_blocks // stream.period_ticks,
        )
    ]
    order = interleave(segments, layout)
    last_step: dict[str, int] = {}
    ends = []
    for segment in order.segments:
        last_step[segment.stream] = last_step.get(segment.stream, -1) + segment.length
        ends.append((segment.stream, last_step[segment.stream]))
    for i, query in enumerate(ends):
        assert all(visible(layout, query, key) == (j < i) for j, key in enumerate(ends))


def shanks() -> tuple[Layout, Interleaving]:
    """Heard chunk i, then the thought about it, which ends as chunk i + 1 ends."""
    layout = layout_of(thought_delay=8)
    heard = chunk(layout, "heard", 10, 4)  # 20 ticks in chunks of 8, the last one shorter
    thought = [Segment("thought", tick, length) for tick, length in ((15, 3), (19, 2), (27, 1))]
    return layout, interleave([*heard, *thought, Segment("spoken", 27, 4)], layout)


def test_interleave_gives_heard_thought_heard_thought_spoken() -> None:
    _, order = shanks()
    assert [(s.stream, s.length) for s in order.segments] == [
        ("heard", 4), ("thought", 3), ("heard", 4), ("thought", 2), ("heard", 2), ("thought", 1),
        ("spoken", 4),
    ]  # fmt: skip


def test_mask_selects_what_is_trained() -> None:
    _, order = shanks()
    trained = order.mask("thought", "spoken")
    assert trained.int().tolist() == [0] * 4 + [1] * 3 + [0] * 4 + [1] * 2 + [0] * 2 + [1] * 5
    assert torch.equal(trained, ~order.mask("heard"))


def test_merge_passes_gradients() -> None:
    _, order = shanks()
    content = {
        name: torch.randn(count, 3, requires_grad=True)
        for name, count in (("heard", 10), ("thought", 6), ("spoken", 4))
    }
    weight = torch.randn(20, 3)
    (order.merge(content) * weight).sum().backward()
    for name, elements in content.items():
        assert elements.grad is not None
        assert torch.equal(elements.grad, order.split(weight)[name])


def test_interleave_of_nothing_is_empty() -> None:
    order = interleave([], layout_of())
    assert len(order.place) == 0
    with pytest.raises(ValueError, match="without segments"):
        order.merge({})


def test_interleave_refuses_a_stream_that_goes_back_in_time() -> None:
    with pytest.raises(ValueError, match=r"segment 1 of 'heard' is at \(0, 3\), .* at \(0, 5\)"):
        interleave([Segment("heard", 5, 1), Segment("heard", 3, 1)], layout_of())


def test_interleave_refuses_negative_lengths_and_ticks() -> None:
    for segment in (Segment("heard", 0, -1), Segment("heard", -1, 1)):
        with pytest.raises(ValueError, match="Segment 0 must have `length` >= 0 and `tick` >= 0"):
            interleave([segment], layout_of())


def test_interleave_refuses_an_unknown_stream() -> None:
    with pytest.raises(KeyError, match="no stream 'song'"):
        interleave([Segment("song", 0, 1)], layout_of())


def test_merge_and_split_refuse_other_lengths() -> None:
    order = interleave([Segment("heard", 0, 2)], layout_of())
    with pytest.raises(ValueError, match=r"expected {'heard': 2}, got {'heard': 3}"):
        order.merge({"heard": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected 2, got 3"):
        order.split(torch.zeros(3))


def test_chunk_refuses_empty_chunks() -> None:
    with pytest.raises(ValueError, match="`chunk_steps` must be >= 1, got 0"):
        chunk(layout_of(), "heard", 4, 0)
