"""The figure, page, numbers and files of a conversation with thoughts."""

from functools import partial
from pathlib import Path

import pytest
import torch

from counterpoint.evaluate.duplex.delays import measure_delays
from counterpoint.evaluate.duplex.turns import measure_levels
from counterpoint.evaluate.report.conversation_figure import as_png
from counterpoint.evaluate.report.thinking_figure import Watched, watched_figure, watched_rows
from counterpoint.evaluate.report.watched import slowness_note, watched_numbers, write_watched
from counterpoint.speech.audio import write_audio
from counterpoint.streams.timeline import Event, Timeline

RATE = 16_000


def event(
    kind: str,
    start_s: float,
    end_s: float,
    text: str = "",
    stream: str = "agent",
    **payload: object,
) -> Event:
    return Event(start_s=start_s, end_s=end_s, stream=stream, kind=kind, text=text, payload=payload)


CALL = '["order", {"size": "<large>"}]'
TIMELINE = Timeline(
    events=(
        event("word", 0.5, 0.9, "Hello", "user"),
        event("turn", 0.5, 2.0, "Hello there", "user", turn=1),
        event("thought", 1.0, 1.6, "They greet.", "thought", closed="model"),
        event("call", 1.2, 1.7, CALL, call=1, ok=True, early=True, response="{}"),
        event("call", 2.2, 2.7, CALL, call=2, ok=False, early=False, why="no result"),
        event("cancel", 2.9, 2.9, CALL, call=1),
        event("answer", 2.6, 4.0, "Good day", turn=1, cut=True, written="Good day to you"),
        event("word", 2.6, 3.0, "Good"),
        event("turn", 3.7, 5.0, "Stop", "user", turn=2),
        event("interruption", 3.7, 4.0, by="user", flushed_s=0.5),
        event("interruption", 6.0, 6.0, by="agent", turn=3),
        event("turn", 5.5, 7.0, "Two and two is five", "user", turn=3),
        event("answer", 6.2, 7.5, "It is four", turn=3, cut=False, written="It is four"),
        event("error", 8.0, 8.0, "the line is dead", "answer"),
    )
)


def test_figure_shows_what_was_recognised_and_calls_in_few_letters() -> None:
    written = '{"name": "orderDrink", "arguments": {"size": "large", "coffeeDrink": "mocha"}}'
    timeline = Timeline(
        events=(
            event("chunk", 0.0, 2.0, "a large mocha", "user", chunk=0),
            event("chunk", 2.0, 4.0, "", "user", chunk=1),
            event("call", 2.2, 2.7, written, call=0, ok=True),
            event("call", 4.2, 4.7, CALL, call=1, ok=True),
            event("call", 6.2, 6.7, "[rubbish", call=2, ok=True),
        )
    )
    levels = measure_levels([torch.zeros(2, 8 * RATE)], RATE)
    figure = watched_figure(Watched(title="x", levels=levels, timeline=timeline))
    labels = [text.get_text() for axis in figure.axes for text in axis.texts]
    for label in ("a large mocha", "orderDrink: large, mocha", "order: <large>", "[rubbish"):
        assert labels.count(label) == 1


def test_a_machine_that_is_too_slow_is_told() -> None:
    """A conversation on a busy machine ended without an answer and without a word about it."""
    late = Timeline(
        events=(
            event("word", 6.8, 7.0, "No", "user", known_s=25.8),
            event("turn", 6.8, 8.3, "No can the radio be low", "user", turn=1),
        )
    )
    assert "recognised up to 19 s after they were said" in slowness_note(late)
    assert slowness_note(TIMELINE) == ""  # it was answered
    assert slowness_note(Timeline()) == ""


def test_delays_are_those_of_the_events() -> None:
    delays = measure_delays(TIMELINE)
    assert delays.first_sound_s == pytest.approx((0.6,))  # an interruption answers no turn's end
    assert delays.stop_s == pytest.approx((0.3,))
    assert delays[2:] == (1, 0, 1)
    numbers = watched_numbers(TIMELINE, 10.0, 2.0)
    assert numbers["failures"] == "1"
    assert numbers["real-time factor"] == "0.200"
    assert "-" in watched_numbers(Timeline(), 0.0, None).values()


def test_a_call_is_early_if_its_result_is_and_counts_once() -> None:
    """A result that comes after the user has stopped saves no time, whenever it was asked for."""
    timeline = Timeline(
        events=(
            event("turn", 0.0, 2.0, "a latte and a mocha", "user", turn=1),
            event("call", 0.5, 0.9, CALL, call=0, turn=1, ok=False, early=True, why="no result"),
            event("call", 1.4, 1.8, CALL, call=0, turn=1, ok=True, early=True, response="{}"),
            event("call", 1.9, 5.0, CALL, call=1, turn=1, ok=True, early=True, response="{}"),
            event("call", 1.9, 5.0, CALL, call=2, turn=1, ok=False, early=True, why="no result"),
        )
    )
    assert measure_delays(timeline)[2:] == (1, 1, 1)


def test_files_show_everything(tmp_path: Path) -> None:
    sound = torch.zeros(2, 20 * RATE)
    sound[1, RATE // 2 : 2 * RATE] = 0.5
    write_audio(tmp_path / "talk.wav", sound, RATE)
    paths = write_watched(tmp_path / "talk.wav", "A <b> talk", TIMELINE, {"n": "1"}, {"x": 1})
    assert [path.name for path in paths] == ["talk.timeline.jsonl", "talk.png", "talk.html"]
    assert Timeline.read(paths[0]).events == TIMELINE.events
    page = paths[2].read_text()
    assert "A &lt;b&gt; talk" in page
    assert "&lt;large&gt;" in page
    assert "<large>" not in page
    assert "no result" in page
    assert "the line is dead" in page
    assert "data:audio/wav;base64," in page
    assert paths[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seconds", [0.01, 5.0, 30.0, 3600.0])
def test_rows_cover_a_talk_of_any_length(seconds: float) -> None:
    levels = measure_levels([torch.zeros(2, 160)], RATE)._replace(duration_s=seconds)
    rows = watched_rows(Watched(title="t", levels=levels, timeline=Timeline()))
    assert rows[0].start_s == 0
    assert rows[-1].stop_s == pytest.approx(seconds)
    assert len(rows) <= 40
    assert all(0 < row.top < row.bottom < 1 for row in rows)


def test_nothing_happened_is_drawn_too() -> None:
    levels = measure_levels([torch.zeros(2, RATE)], RATE)
    watched = Watched(title="t", levels=levels, timeline=Timeline())
    assert as_png(partial(watched_figure, watched))
