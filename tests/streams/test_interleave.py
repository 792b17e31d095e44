from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.clock import SEQUENCE, Moment, available_at, span, span_mask, visible
from counterpoint.streams.interleave import Interleaving, interleave
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from tests.streams.layouts import layouts

NAMES = ("thought", "spoken", "heard")
DEPTHS = {"thought": 3, "spoken": 2, "heard": 4}
TICKS = 6
NOT_CONTENT = 50  # an initial id


def layout_of(thought_delay: int = 1, spoken_delay: int = 1) -> Layout:
    return Layout(
        streams=(
            Stream(
                name="thought",
                role=Role.THOUGHT,
                vocab_size=100,
                depth=DEPTHS["thought"],
                delay_ticks=thought_delay,
            ),
            Stream(
                name="spoken",
                role=Role.SPOKEN,
                vocab_size=100,
                depth=DEPTHS["spoken"],
                delay_ticks=spoken_delay,
            ),
            Stream(name="heard", role=Role.HEARD, vocab_size=100, depth=DEPTHS["heard"]),
        )
    )


class Chunks(NamedTuple):
    """Rows of chunks of any lengths, in documents of any lengths."""

    counts: Tensor  # elements of each stream at each tick: (rows, ticks, streams)
    starts: Tensor  # first tick of each tick's document: (rows, ticks)


@st.composite
def chunks(draw: st.DrawFn, most_rows: int = 3) -> Chunks:
    rows = draw(st.integers(1, most_rows))
    counts = [
        [[draw(st.integers(0, DEPTHS[name])) for name in NAMES] for _ in range(TICKS)]
        for _ in range(rows)
    ]
    starts = []
    for _ in range(rows):
        cuts = sorted({0, *draw(st.lists(st.integers(0, TICKS - 1), max_size=2))})
        starts.append([max(cut for cut in cuts if cut <= tick) for tick in range(TICKS)])
    return Chunks(torch.tensor(counts), torch.tensor(starts))


def ticks_of(counts: Tensor) -> dict[str, Tensor]:
    """Ids that count the elements of each stream; nothing behind the end of a chunk."""
    ticks = {}
    for i, name in enumerate(NAMES):
        here = torch.arange(DEPTHS[name]) < counts[:, :, i : i + 1]
        step = here.flatten(1).cumsum(1).view(here.shape) - 1
        ticks[name] = torch.where(here, step, UNSET_ID)
    return ticks


def vectors_of(ticks: dict[str, Tensor]) -> dict[str, Tensor]:
    """A vector for every element that tells its stream and its step; zeros where it is nothing."""
    return {
        name: torch.stack((torch.full_like(ids, i + 1), ids), -1) * (ids >= 0)[..., None]
        for i, (name, ids) in enumerate(ticks.items())
    }


def in_order(counts: Tensor, starts: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(document, tick, stream, step) of every element of a row, in the order of its moment."""
    steps, elements = [0] * len(NAMES), []
    for tick, row in enumerate(counts.tolist()):
        for place, count in enumerate(row):
            for _ in range(count):
                elements.append((starts[tick], tick, place, steps[place]))
                steps[place] += 1
    return elements


@given(chunks())
def test_split_inverts_merge(drawn: Chunks) -> None:
    ticks = ticks_of(drawn.counts)
    order = interleave(layout_of(), ticks, document_start=drawn.starts)
    content = vectors_of(ticks)
    sequence = order.merge(content)
    for row, counts in enumerate(drawn.counts):
        elements = in_order(counts, drawn.starts[row].tolist())
        expected = [[place + 1, step] for _, _, place, step in elements]
        assert sequence[row, : order.lengths[row]].tolist() == expected
    again = order.split(sequence)
    assert again.keys() == content.keys()
    for name, values in content.items():
        assert torch.equal(again[name], values)


@given(chunks())
def test_sequence_respects_availability_and_documents(drawn: Chunks) -> None:
    """Each position follows exactly what was available before it in its document."""
    order = interleave(layout_of(), ticks_of(drawn.counts), document_start=drawn.starts)
    assert order.source.shape[1] == TICKS * sum(DEPTHS.values())
    reach = span(SEQUENCE, "sequence", "sequence", order.position + 1, first=order.document_start)
    mask = span_mask(reach, order.position)
    for row, counts in enumerate(drawn.counts):
        elements = in_order(counts, drawn.starts[row].tolist())
        length = len(elements)
        assert int(order.lengths[row]) == length == int(order.real[row].sum())
        assert order.tick[row, :length].tolist() == [tick for _, tick, _, _ in elements]
        moments = [(start, Moment(tick, place)) for start, tick, place, _ in elements]
        assert moments == sorted(moments)
        for query in range(length):
            readable = [k for k in range(query + 1) if elements[k][0] == elements[query][0]]
            assert mask[row, query].nonzero().flatten().tolist() == readable
        for i, name in enumerate(NAMES):
            chosen = [place == i for _, _, place, _ in elements]
            assert order.mask(name)[row, :length].tolist() == chosen
            assert not order.mask(name)[row, length:].any()


@given(chunks())
def test_last_is_the_newest_element_of_every_tick(drawn: Chunks) -> None:
    order = interleave(layout_of(), ticks_of(drawn.counts), document_start=drawn.starts)
    for row, counts in enumerate(drawn.counts):
        elements = in_order(counts, drawn.starts[row].tolist())
        newest = [sum(tick <= now for _, tick, _, _ in elements) - 1 for now in range(TICKS)]
        assert order.last[row].tolist() == newest
        starts = drawn.starts[row].tolist()
        first = [sum(tick < start for _, tick, _, _ in elements) for start in starts]
        assert order.first[row].tolist() == first


@given(thought_delay=st.integers(0, 3), spoken_delay=st.integers(0, 3), num_ticks=st.integers(1, 9))
def test_chunks_on_the_clock_never_read_the_future(
    thought_delay: int, spoken_delay: int, num_ticks: int
) -> None:
    """What stands earlier is what the dense rule lets an element of a chunk read."""
    layout = layout_of(thought_delay, spoken_delay)
    ticks = {}
    for stream in layout.streams:  # one element a chunk, late by the stream's delay
        steps = torch.arange(num_ticks) - stream.delay_ticks
        ticks[stream.name] = steps.where(steps >= 0, UNSET_ID)[None]
    order = interleave(layout, ticks)
    step = order.merge({name: ids[..., None] for name, ids in ticks.items()})[0].tolist()
    elements = [
        (NAMES[source % len(NAMES)], step[place])
        for place, source in enumerate(order.source[order.real].tolist())
    ]
    for i, query in enumerate(elements):
        assert all(visible(layout, query, key) == (j < i) for j, key in enumerate(elements))


@given(chunks(), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_calls_behind_each_other_give_what_whole_rows_give(
    drawn: Chunks, lengths: list[int]
) -> None:
    """Every row goes on where it stands, whatever the lengths of the calls, pauses included."""
    ticks = ticks_of(drawn.counts)
    whole = interleave(layout_of(), ticks)
    sequence = whole.merge(vectors_of(ticks))
    rows = len(drawn.counts)
    num_read = torch.zeros(rows, dtype=torch.long)
    done = torch.zeros(rows, dtype=torch.long)  # ticks of each row
    for number, length in enumerate(lengths):
        real = (torch.full((rows,), length) + torch.arange(rows) * number) % 4  # rows differ
        real = torch.minimum(real, TICKS - done)
        chunk = {name: ids.new_zeros(rows, 4, DEPTHS[name]) for name, ids in ticks.items()}
        for row in range(rows):  # what is not real may be anything
            for name, ids in ticks.items():
                chunk[name][row, : real[row]] = ids[row, done[row] : done[row] + real[row]]
        order = interleave(layout_of(), chunk, num_read=num_read, lengths=real)
        assert order.source.shape[1] == 4 * sum(DEPTHS.values())  # one shape, whatever stands there
        merged = order.merge(vectors_of(chunk))
        for row in range(rows):
            first, count = int(num_read[row]), int(order.lengths[row])
            assert order.position[row, :count].tolist() == list(range(first, first + count))
            assert order.document_start[row, :count].tolist() == [0] * count
            places = merged[row, :count, 0]
            assert torch.equal(places, sequence[row, first : first + count, 0])
            newest = whole.last[row, done[row] : done[row] + real[row]]
            ours = order.last[row, : real[row]] + first
            assert torch.equal(ours, newest)
        num_read, done = num_read + order.lengths, done + real


@given(chunks())
def test_states_before_what_is_written_have_read_all_before_it(drawn: Chunks) -> None:
    """The rule: what the state that writes an element has read is what stands before it."""
    ticks = ticks_of(drawn.counts)
    rows = len(drawn.counts)
    written = {
        name: torch.cat((ids[:, 1:], torch.zeros_like(ids[:, :1])), 1)
        for name, ids in ticks.items()
        if name != "heard"
    }
    order = interleave(layout_of(), ticks, document_start=drawn.starts, behind=written)
    number = order.position[..., None] + 1.0  # a state that counts what it has read
    states = order.states_before(number, written)
    at_ticks = order.states_at_ticks(number)
    for row in range(rows):
        starts = [*drawn.starts[row].tolist(), -1]
        read, first = 0, 0
        for tick in range(TICKS):
            read += int(drawn.counts[row, tick].sum())
            assert int(at_ticks[row, tick, 0]) == (read if read > first else 0)
            ahead = 0
            for name in written:
                for element, found in enumerate(written[name][row, tick].tolist()):
                    before = read + ahead
                    # With nothing before it in its document, it is produced from nothing.
                    expected = before if before > first else 0
                    assert int(states[name][row, tick, element, 0]) == expected
                    ahead += found != UNSET_ID
            if starts[tick + 1] != starts[tick]:
                read += ahead  # it stands behind the document that ends here
                first = read
        assert int(order.lengths[row]) == read


@given(chunks(), st.sets(st.sampled_from(NAMES), min_size=1))
def test_some_of_the_streams_are_found_in_the_order_of_all(drawn: Chunks, some: set[str]) -> None:
    ticks = ticks_of(drawn.counts)
    written = {name: ids + 30 for name, ids in ticks.items() if name != "heard"}
    all_places = interleave(layout_of(), ticks, document_start=drawn.starts, behind=written)
    own = {name: ids for name, ids in ticks.items() if name in some}
    behind = {name: ids for name, ids in written.items() if name in some}
    layout = Layout(streams=tuple(stream for stream in layout_of().streams if stream.name in some))
    order = interleave(layout, own, document_start=drawn.starts, behind=behind)
    found = all_places.merge(ticks, written).gather(1, all_places.places_of(order))
    assert torch.equal(found[order.real], order.merge(own, behind)[order.real])


def test_a_sequence_may_have_less_room_than_full_chunks() -> None:
    ticks = ticks_of(torch.tensor([[[1, 0, 1], [0, 0, 2]]]))
    narrow = interleave(layout_of(), ticks, num_places=4)
    assert narrow.source.shape == (1, 4)
    wide = interleave(layout_of(), ticks)
    assert torch.equal(narrow.merge(ticks), wide.merge(ticks)[:, :4])
    for name, ids in narrow.split(narrow.merge(ticks)).items():
        assert torch.equal(ids, ticks[name].clamp(min=0))


def test_states_at_ticks_go_on_with_the_newest_of_the_calls_before() -> None:
    counts = torch.tensor([[[0, 0, 0], [1, 0, 0]]])
    order = interleave(layout_of(), ticks_of(counts), num_read=torch.tensor([5]))
    states = order.states_at_ticks(order.position[..., None] + 1.0, torch.tensor([[4.5]]))
    assert states.flatten().tolist() == [4.5, 6.0]


def test_sequences_take_what_documents_end_with_even_if_all_chunks_are_full() -> None:
    ticks = ticks_of(torch.tensor([[list(DEPTHS.values())] * 4]))
    behind = {"thought": torch.arange(12).view(1, 4, 3)}
    order = interleave(
        layout_of(), ticks, document_start=torch.tensor([[0, 0, 2, 2]]), behind=behind
    )
    assert int(order.lengths[0]) == order.source.shape[1] == 4 * 9 + 2 * 3
    sequence = order.merge(ticks, behind)[0].tolist()
    assert sequence[18:21] == [3, 4, 5]
    assert sequence[39:] == [9, 10, 11]


def test_elements_behind_a_document_are_merged_and_not_split() -> None:
    ticks = {name: ids[:1, :1] for name, ids in ticks_of(torch.ones(1, 1, 3)).items()}
    behind = {"thought": torch.tensor([[[70, 71, UNSET_ID]]])}
    order = interleave(layout_of(), ticks, behind=behind)
    sequence = order.merge({name: ids + 10 for name, ids in ticks.items()}, behind)
    assert sequence[0, : order.lengths[0]].tolist() == [10, 10, 10, 70, 71]
    assert order.tick.tolist() == [[0] * 9]
    assert int(order.mask(*NAMES).sum()) == 3
    for ids in order.split(sequence).values():
        assert int(ids.sum()) == 10


def test_a_continuous_stream_has_an_element_at_every_tick() -> None:
    layout = Layout(
        streams=(
            Stream(name="spoken", role=Role.SPOKEN, vocab_size=9),
            Stream(name="heard", role=Role.HEARD, width=2),
        )
    )
    ticks = {"spoken": torch.tensor([[3, UNSET_ID, 4]]), "heard": torch.zeros(1, 3, 2)}
    order = interleave(layout, ticks)
    assert order.mask("heard")[order.real].tolist() == [False, True, True, False, True]


def numbered(layout: Layout, num_ticks: int) -> dict[str, Tensor]:
    """Content whose elements tell their step, counted from 1."""
    content = {}
    for stream in layout.streams:
        steps = 1 + torch.arange(num_ticks // stream.period_ticks)
        shape = (1, len(steps), *stream.element_shape)
        numbers = steps.view(1, -1, *[1] * len(stream.element_shape)).expand(shape)
        content[stream.name] = numbers if stream.is_discrete else numbers.float()
    return content


def steps_of(layout: Layout, columns: Ticks, order: Interleaving) -> list[tuple[str, int]]:
    """(stream, step) of each place that holds content, one for every codebook."""
    told = {
        name: values.view(*values.shape[:2], -1)[:, :, : order.depths[name]].long()
        for name, values in columns.items()
    }
    steps = order.merge(told)[order.real]
    names = [name for name, depth in order.depths.items() for _ in range(depth)]
    streams = [names[element % len(names)] for element in order.source[order.real].tolist()]
    found = zip(streams, steps.tolist(), strict=True)
    return [(name, step - 1) for name, step in found if step not in (NOT_CONTENT, 0)]


@given(layouts(vocab_size=NOT_CONTENT, most_written=3, has_ticks=True), st.integers(1, 4))
def test_slow_streams_stand_where_their_steps_come(layout: Layout, call_ticks: int) -> None:
    """Whole rows and calls behind each other, against the moments of the dense rule."""
    content = numbered(layout, TICKS)
    columns = schedule.columns(layout, content)
    elements = [
        (available_at(layout, stream.name, step), stream.name, step)
        for stream in layout.streams
        for step in range(content[stream.name].shape[1])
        for _ in range(stream.depth)
    ]
    expected = [(name, step) for _, name, step in sorted(elements)]
    assert steps_of(layout, columns, interleave(layout, columns)) == expected
    found, num_read = [], torch.zeros(1, dtype=torch.long)
    for first in range(0, columns["s0"].shape[1], call_ticks):
        call = {name: values[:, first : first + call_ticks] for name, values in columns.items()}
        begun = torch.tensor([first])
        order = interleave(layout, call, num_read=num_read, num_columns=begun)
        found += steps_of(layout, call, order)
        num_read = num_read + order.lengths
    assert found == expected


def shanks() -> tuple[dict[str, Tensor], Interleaving]:
    """Heard chunk i, then the thought about it, which ends as chunk i + 1 ends."""
    counts = torch.tensor([[[0, 0, 4], [3, 0, 4], [2, 0, 2], [1, 2, 0]]])
    ticks = ticks_of(counts)
    return ticks, interleave(layout_of(), ticks)


def test_interleave_gives_heard_thought_heard_thought_spoken() -> None:
    ticks, order = shanks()
    streams = order.merge(vectors_of(ticks))[order.real][:, 0].tolist()
    heard, thought, spoken = 3, 1, 2
    assert streams == [
        *[heard] * 4, *[thought] * 3, *[heard] * 4, *[thought] * 2, *[heard] * 2, thought,
        *[spoken] * 2,
    ]  # fmt: skip


def test_mask_selects_what_is_trained() -> None:
    _, order = shanks()
    trained = order.mask("thought", "spoken")
    expected = [0] * 4 + [1] * 3 + [0] * 4 + [1] * 2 + [0] * 2 + [1] * 3
    assert trained[order.real].int().tolist() == expected
    assert torch.equal(trained, order.real & ~order.mask("heard"))


def test_merge_passes_gradients() -> None:
    ticks, order = shanks()
    content = {name: torch.randn(*ids.shape, 3, requires_grad=True) for name, ids in ticks.items()}
    weight = torch.randn(1, order.source.shape[1], 3)
    (order.merge(content) * weight)[order.real].sum().backward()
    for name, values in content.items():
        assert values.grad is not None
        assert torch.equal(values.grad, order.split(weight)[name])


def test_interleave_of_nothing_is_empty() -> None:
    ticks = ticks_of(torch.zeros(2, 3, 3))
    order = interleave(layout_of(), ticks)
    assert order.lengths.tolist() == [0, 0]
    assert not order.real.any()
    assert order.last.tolist() == [[-1] * 3] * 2
    with pytest.raises(ValueError, match="the same ticks of the same rows: got {}"):
        interleave(layout_of(), {})


def test_interleave_refuses_an_unknown_stream() -> None:
    with pytest.raises(KeyError, match="no stream 'song'"):
        interleave(layout_of(), {"song": torch.zeros(1, 1, dtype=torch.long)})


def test_interleave_refuses_unequal_ticks_and_floats_whose_steps_are_unknown() -> None:
    ticks = ticks_of(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="the same ticks of the same rows: got .*'heard': .1, 2"):
        interleave(layout_of(), {**ticks, "heard": ticks["heard"][:, :2]})
    whole = Stream(name="whole", role=Role.WHOLE, width=2, period_ticks=4, irregular=True)
    with pytest.raises(UserError, match="must be regular to be interleaved.*got whole"):
        interleave(Layout(streams=(whole,)), {"whole": torch.zeros(1, 2, 2)})


def test_interleave_refuses_to_write_what_comes_later_than_what_is_heard() -> None:
    ticks = ticks_of(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="must come first .* begins with thought: got heard"):
        interleave(layout_of(), ticks, behind={"heard": ticks["heard"]})


def test_merge_and_split_refuse_other_lengths() -> None:
    ticks, order = shanks()
    with pytest.raises(ValueError, match=r"expected {'thought': \(1, 4, 3\).*got {'thought': \(1,"):
        order.merge({**ticks, "thought": ticks["thought"][:, :, :2]})
    with pytest.raises(ValueError, match=r"expected \(1, 36\), got \(1, 3\)"):
        order.split(torch.zeros(1, 3))
