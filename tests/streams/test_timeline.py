import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.spec import UNSET_ID
from counterpoint.streams.timeline import Event, Timeline

TICK_HZ = 12.5  # frames of Mimi: times that binary fractions do not hold exactly

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
payloads = st.dictionaries(st.text(), json_values, max_size=2)
seconds = st.floats(0, 1e6)


@st.composite
def events(draw: st.DrawFn) -> Event:
    start_s, end_s = sorted(draw(st.tuples(seconds, seconds)))
    return Event(
        start_s=start_s,
        end_s=end_s,
        stream=draw(st.sampled_from(["user", "agent"])),
        kind=draw(st.sampled_from(["word", "call"])),
        text=draw(st.text()),
        payload=draw(payloads),
    )


headers = payloads.filter(lambda header: "timeline" not in header)
timelines = st.builds(Timeline, events=st.lists(events(), max_size=6).map(tuple), header=headers)


def word(start: float, end: float, text: str = "", stream: str = "user", **more: Any) -> Event:
    return Event(**{
        "start_s": start, "end_s": end, "stream": stream, "kind": "word", "text": text, **more
    })  # fmt: skip


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: Any) -> str:
    return bytes(ids).decode()


@given(timelines)
def test_jsonl_is_lossless(timeline: Timeline) -> None:
    text = timeline.to_jsonl()
    assert Timeline.from_jsonl(text) == timeline
    assert text.isascii()
    assert text.count("\n") == len(timeline) + 1


def test_file_round_trip(tmp_path: Path) -> None:
    timeline = Timeline(events=(word(0, 0.1, "né\u2028\n"),), header={"seed": 1})
    path = tmp_path / "a.jsonl"
    timeline.write(path)
    assert Timeline.read(path) == timeline


@given(timelines)
def test_events_are_sorted_and_ties_keep_their_order(timeline: Timeline) -> None:
    times = [(event.start_s, event.end_s) for event in timeline]
    assert times == sorted(times)
    tied = tuple(word(1, 2, str(i)) for i in range(5))
    assert Timeline(events=tied).events == tied


@given(timelines, timelines)
def test_merge_holds_all_events_and_where_takes_them_apart(a: Timeline, b: Timeline) -> None:
    merged = Timeline(events=a.events).merge(Timeline(events=b.events, header=b.header))
    assert merged == Timeline(events=a.events + b.events, header=b.header)
    for stream in ("user", "agent"):
        own = [event for event in merged if event.stream == stream]
        assert list(merged.where(stream=stream)) == own
        assert list(merged.where(stream=stream, kind="call")) == [
            event for event in own if event.kind == "call"
        ]


def test_merge_refuses_contradicting_headers() -> None:
    with pytest.raises(ValueError, match="must agree on header 'seed': got 1 and 2"):
        Timeline(header={"seed": 1}).merge(Timeline(header={"seed": 2}))


@given(timelines, seconds, seconds)
def test_cut_keeps_what_the_window_covers(timeline: Timeline, a: float, b: float) -> None:
    start_s, stop_s = sorted((a, b))
    cut = timeline.cut(start_s, stop_s)
    assert all(start_s <= event.start_s <= event.end_s <= stop_s for event in cut)

    def covered(event: Event) -> float:
        return max(0.0, min(event.end_s, stop_s) - max(event.start_s, start_s))

    assert sum(e.end_s - e.start_s for e in cut) == pytest.approx(sum(map(covered, timeline)))
    points = [e for e in timeline if e.start_s == e.end_s and start_s <= e.start_s < stop_s]
    assert [e for e in cut if e.start_s == e.end_s and e in points] == points


def test_cut_windows_share_no_event_without_duration() -> None:
    timeline = Timeline(events=(word(1, 1), word(0, 2)))
    assert timeline.cut(0, 1).events == (word(0, 1),)
    assert timeline.cut(1, 2).events == (word(1, 1), word(1, 2))
    assert timeline.cut(2, 3).events == ()


def test_shift_moves_both_times() -> None:
    assert Timeline(events=(word(1, 2),)).shift(-0.5).events == (word(0.5, 1.5),)
    assert Timeline(events=(word(1, 2),)).end_s == 2
    with pytest.raises(ValueError, match="0 <= `start_s` <= `end_s`"):
        Timeline(events=(word(1, 2),)).shift(-1.5)


@given(
    spans=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=6),
    tick_hz=st.sampled_from([12.5, 25.0, 100 / 3, 7.0, 1000.0]),
)
def test_labels_round_trip_on_ticks(spans: list[tuple[int, int]], tick_hz: float) -> None:
    """Events on tick boundaries come back exactly, whatever the rate."""
    made: list[Event] = []
    tick = 0
    for gap, length in spans:
        first = tick + gap
        tick = first + length
        made.append(word(first / tick_hz, tick / tick_hz, str(len(made))))
    timeline = Timeline(events=tuple(made))
    labels = timeline.to_labels(tick_hz, tick + 2)
    texts = [event.text for event in timeline]
    again = Timeline.from_labels(labels, tick_hz, texts, stream="user", kind="word")
    assert again == timeline
    assert int((labels != UNSET_ID).sum()) == sum(length for _, length in spans)


@given(st.lists(st.tuples(seconds, seconds), max_size=5), st.integers(1, 40))
def test_labels_cover_every_tick_an_event_touches(
    times: list[tuple[float, float]], num_ticks: int
) -> None:
    scale = num_ticks / TICK_HZ / 1e6  # into the rendered range
    made = tuple(word(min(pair) * scale, max(pair) * scale) for pair in times)
    timeline = Timeline(events=made)
    labels = timeline.to_labels(TICK_HZ, num_ticks).tolist()
    for tick, label in enumerate(labels):
        tick_start, tick_end = tick / TICK_HZ, (tick + 1) / TICK_HZ
        touching = [
            index
            for index, event in enumerate(timeline)
            if event.start_s < tick_end - 1e-6 and event.end_s > tick_start + 1e-6
        ]
        if touching:
            assert label >= touching[-1]
        if label != UNSET_ID:
            event = timeline.events[label]
            assert event.start_s < tick_end
            assert event.end_s >= tick_start - 1e-6


def test_labels_take_rounded_times_for_the_tick_they_mean() -> None:
    start_s = 29 / TICK_HZ
    assert start_s * TICK_HZ < 29
    labels = Timeline(events=(word(start_s, 30 / TICK_HZ),)).to_labels(TICK_HZ, 32)
    assert labels.tolist() == [UNSET_ID] * 29 + [0] + [UNSET_ID] * 2


def test_labels_of_one_stream_ignore_the_others() -> None:
    timeline = Timeline(events=(word(0, 0.16), word(0.08, 0.08, stream="agent")))
    assert timeline.to_labels(TICK_HZ, 3).tolist() == [0, 1, UNSET_ID]
    assert timeline.to_labels(TICK_HZ, 3, stream="user").tolist() == [0, 0, UNSET_ID]
    assert timeline.to_labels(TICK_HZ, 3, kind="call").tolist() == [UNSET_ID] * 3


@given(st.lists(st.tuples(st.integers(0, 30), st.text("abc", max_size=4)), max_size=6))
def test_ids_keep_order_lose_nothing_and_never_come_early(starts: list[tuple[int, str]]) -> None:
    timeline = Timeline(events=tuple(word(t / TICK_HZ, t / TICK_HZ, text) for t, text in starts))
    ids = timeline.to_ids(TICK_HZ, 80, encode)
    assert decode(ids[ids != UNSET_ID].tolist()) == "".join(event.text for event in timeline)
    ticks = (ids != UNSET_ID).nonzero().flatten().tolist()
    for event in timeline:
        for _ in event.text:
            assert ticks.pop(0) >= round(event.start_s * TICK_HZ)
    again = Timeline.from_ids(ids, TICK_HZ, decode, stream="user", kind="word")
    assert torch.equal(again.to_ids(TICK_HZ, 80, encode), ids)


def test_ids_come_back_as_the_words_they_were() -> None:
    words = (word(0, 0.16, "ab"), word(0.4, 0.48, "c"))
    timeline = Timeline(events=words)
    ids = timeline.to_ids(TICK_HZ, 8, encode, stream="user")
    assert ids.tolist() == [97, 98, -1, -1, -1, 99, -1, -1]
    assert Timeline.from_ids(ids, TICK_HZ, decode, stream="user", kind="word") == timeline


def test_ids_refuse_too_few_ticks() -> None:
    with pytest.raises(ValueError, match="got 2, but 'abc' at 0.0 s needs 3"):
        Timeline(events=(word(0, 1, "abc"),)).to_ids(TICK_HZ, 2, encode)


@pytest.mark.parametrize("labels", [[0, 2], [-2, 0]])
def test_from_labels_refuses_labels_without_text(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="index one of the 2 `texts`"):
        Timeline.from_labels(torch.tensor(labels), 1, ["a", "b"], stream="user", kind="word")


@pytest.mark.parametrize("tick_hz", [0.0, -1.0, math.nan, math.inf])
def test_rendering_refuses_an_impossible_rate(tick_hz: float) -> None:
    with pytest.raises(ValueError, match="`tick_hz` must be positive"):
        Timeline(events=(word(0, 1),)).to_labels(tick_hz, 4)


@pytest.mark.parametrize(("start", "end"), [(-1, 0), (2, 1), (0, math.inf), (math.nan, 1)])
def test_event_refuses_impossible_times(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="finite times with 0 <= `start_s` <= `end_s`: got"):
        word(start, end)


def test_event_refuses_no_stream_and_values_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="must name its `stream` and `kind`"):
        word(0, 1, stream="")
    for value in (math.nan, {1, 2}):
        with pytest.raises(ValueError, match="`payload` must hold JSON values only"):
            word(0, 1, payload={"x": value})


def test_timeline_keeps_no_hold_on_what_it_was_made_of() -> None:
    payload = {"arguments": ["a"]}
    event = word(0, 1, payload=payload)
    payload["arguments"].append("b")
    assert event.payload == {"arguments": ["a"]}


HEADER = '{"timeline": 1}\n'
EVENT = '{"start_s": 0, "end_s": 1, "stream": "user", "kind": "word"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t must start with a header"),
        ("\n\n", "t must start with a header"),
        ("{}", "t, line 1: the first line must be a header .* got None"),
        ('{"timeline": 2}', "t, line 1: .* got 2"),
        (HEADER + "\n{", "t, line 3: must be a JSON object: .* at column"),
        (HEADER + "[1]", "t, line 2: must be a JSON object, got list"),
        (HEADER + "{}", "t, line 2: an event must have .* start_s, end_s, stream, kind missing"),
        (HEADER + EVENT + "}\n" + EVENT + ', "p": 1}', "t, line 3: .* got 'p'. Put it into"),
        (HEADER + EVENT.replace("0", '"0"') + "}", "t, line 2: `start_s` must be int or float"),
        (HEADER + EVENT.replace("0", "true") + "}", "t, line 2: `start_s` must be int or float"),
        (HEADER + EVENT.replace("0", "NaN") + "}", "t, line 2: .* finite times"),
        (HEADER + EVENT.replace("1,", "1" + "0" * 400 + ",") + "}", "t, line 2: "),
        (HEADER + EVENT.replace("0", "7") + "}", "t, line 2: .* got start_s=7, end_s=1"),
        (HEADER + EVENT + ', "payload": []}', r"t, line 2: `payload` must be dict, got \[\]"),
    ],
)
def test_bad_lines_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Timeline.from_jsonl(text, source="t")
    assert "\n" not in str(error.value)


def test_strings_of_other_writers_may_hold_line_separators() -> None:
    line = EVENT + ', "text": "a\u2028b\x85"}\r\n'
    assert Timeline.from_jsonl(HEADER + line).events == (word(0, 1, "a\u2028b\x85"),)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"timeline": 1}\n\xff')
    with pytest.raises(ValueError, match="must be UTF-8 text: .* at byte 16"):
        Timeline.read(path)


def test_header_key_of_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match="must not hold the key 'timeline'"):
        Timeline(header={"timeline": 1})
