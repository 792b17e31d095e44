import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(timelines)
def test_jsonl_is_lossless(timeline: Timeline) -> None:
    text = timeline.to_jsonl()
    assert Timeline.from_jsonl(text) == timeline
    assert text.isascii()
    assert text.count("\n") == len(timeline) + 1


def test_halves_of_characters_are_joined_or_replaced() -> None:
    """A server may send them one by one, and a tool may raise them in the name of a file."""
    found = word(0, 0.1, "a\ud83d \ud83d\ude00", payload={"why": ["\udcff"]})
    assert found.text == "a\ufffd \U0001f600"
    assert found.payload == {"why": ["\ufffd"]}


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
        (HEADER + "\n{", "t, line 3 must be a JSON object: .* column"),
        (HEADER + "[1]", "t, line 2 must be a JSON object: it is a list"),
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
    with pytest.raises(ValueError, match="must be UTF-8: .* at offset 16"):
        Timeline.read(path)


def test_header_key_of_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match="must not hold the key 'timeline'"):
        Timeline(header={"timeline": 1})
