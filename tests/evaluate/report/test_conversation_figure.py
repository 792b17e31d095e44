"""Pictures of conversations: what they show, and where."""

import struct
from dataclasses import replace
from functools import partial

import pytest
import torch

from counterpoint.evaluate.duplex.turns import Segment, measure_levels, take_turns
from counterpoint.evaluate.report.conversation_figure import (
    Talk,
    as_png,
    conversation_figure,
    talk_sheet,
)
from counterpoint.streams.timeline import Event, Timeline

RATE = 8000


def word(text: str, start_s: float, stream: str = "agent") -> Event:
    return Event(start_s=start_s, end_s=start_s + 0.2, stream=stream, kind="word", text=text)


def example(duration_s: float = 12.0, words: tuple[Event, ...] = ()) -> Talk:
    """The agent answers one turn of the user early, one late, and not the last."""
    audio = 0.2 * torch.randn(2, round(duration_s * RATE))
    agent = (Segment(1.9, 4.0), Segment(6.5, 8.0))
    user = (Segment(1.0, 2.0), Segment(3.5, 6.0), Segment(9.0, 10.0))
    return Talk(
        title="a <b> & c",
        levels=measure_levels([audio], RATE),
        found=take_turns(agent, user, duration_s),
        words=Timeline(events=words),
    )


def texts(talk: Talk) -> list[str]:
    figure = conversation_figure(talk)
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(("duration_s", "num_rows"), [
    (0.001, 1), (15, 1), (15.1, 2), (60, 4), (360, 24), (3600, 24),
])  # fmt: skip
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_rows_cover_the_recording_and_the_picture(
    duration_s: float, num_rows: int, lines: int
) -> None:
    rows = talk_sheet(lines).rows(duration_s)
    assert len(rows) == num_rows
    assert rows[0].start_s == 0
    assert rows[-1].stop_s == pytest.approx(duration_s)
    for row, following in zip(rows, rows[1:], strict=False):
        assert row.stop_s == following.start_s
        assert 0 < row.top < row.bottom < following.top < following.bottom < 1


def test_axes_are_where_the_rows_say() -> None:
    talk = example(40.0, (word("Hi", 1.0),))
    figure = conversation_figure(talk)
    rows = talk_sheet(1).rows(40.0)
    for axis, row in zip(figure.axes, rows, strict=True):
        box = axis.get_position()
        place = (box.x0, box.x1, 1 - box.y1, 1 - box.y0)
        assert place == pytest.approx((row.left, row.right, row.top, row.bottom))
        assert axis.get_xlim() == pytest.approx((row.start_s, row.stop_s))


def test_picture_names_latencies_and_missing_answers() -> None:
    found = texts(example())
    assert found.count("\N{MINUS SIGN}0.10 s") == 1
    assert found.count("0.50 s") == 1
    assert found.count("no answer") == 1


def test_a_pause_of_the_user_is_no_missing_answer() -> None:
    """A turn that is not answered is followed by another one of the user, and by an answer."""
    user = (Segment(1.0, 1.9), Segment(4.4, 4.6), Segment(9.0, 10.0))
    talk = replace(example(), found=take_turns((Segment(5.3, 7.0),), user, 12.0))
    assert talk.found.pauses == (Segment(1.9, 4.4),)
    found = texts(talk)
    assert found.count("silent for 2.50 s") == 1
    assert found.count("0.70 s") == 1
    assert found.count("no answer") == 1  # the last turn


def test_labels_never_cover_each_other() -> None:
    """Quick turns in an hour: numbers without room are left to the table of the page."""
    turns = [Segment(3.0 * i, 3.0 * i + 2.0) for i in range(50)]
    answers = [Segment(turn.end_s + 0.4, turn.end_s + 0.6) for turn in turns]
    levels = measure_levels([torch.zeros(2, RATE)] * 3600, RATE)
    found = take_turns(answers, turns, levels.duration_s)
    talk = Talk(title="", levels=levels, found=found, words=Timeline())
    figure = conversation_figure(talk)
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if text.get_text() == "0.40 s"]
    assert len(labels) > 10
    boxes = [label.get_window_extent() for label in labels]
    for box, following in zip(boxes, boxes[1:], strict=False):
        assert box.x1 <= following.x0


def test_words_stand_where_they_begin_unless_they_would_cover_another() -> None:
    words = (word("one", 1.0), word("two", 1.02), word("three", 1.03), word("more", 1.04),
             word("four", 11.99), word("yes", 2.0, "user"))  # fmt: skip
    talk = example(words=words)
    axis = conversation_figure(talk).axes[0]
    at = {text.get_text(): text.get_position() for text in axis.texts}
    assert at["one"][0] == pytest.approx(1.0)
    assert at["two"][0] == pytest.approx(1.02)
    assert at["three"][1] < at["two"][1] < at["one"][1] < at["yes"][1]
    assert "more" not in at
    assert at["four"][0] < 11.99  # moved in from the edge
    legend = [text.get_text() for text in conversation_figure(talk).texts]
    assert any("words left out for want of room: 1" in text for text in legend)


def test_long_rows_have_no_words() -> None:
    levels = measure_levels([torch.zeros(2, RATE)] * 721, RATE)
    talk = Talk(
        title="twelve minutes",
        levels=levels,
        found=take_turns((), (), levels.duration_s),
        words=Timeline(events=(word("one", 1.0),)),
    )
    figure = conversation_figure(talk)
    assert len(figure.axes) == 24
    assert "one" not in texts(talk)
    assert any("for want of room: 1" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("duration_s", [1 / RATE, 0.015, 12.0, 100.0])
def test_picture_of_any_length_can_be_drawn(duration_s: float) -> None:
    talk = example(duration_s, (word("price: $5 $ \u6f22 \U0001f600", 0.0),))
    width, height = size(as_png(partial(conversation_figure, talk)))
    assert width == 1920
    assert height > 300


def test_picture_of_silence_is_two_lines() -> None:
    talk = Talk(
        title="silence",
        levels=measure_levels([torch.zeros(2, RATE)], RATE),
        found=take_turns((), (), 1.0),
        words=Timeline(),
    )
    assert texts(talk) == ["user", "agent"]
