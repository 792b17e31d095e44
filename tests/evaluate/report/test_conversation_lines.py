"""A conversation as lines of text."""

from counterpoint.evaluate.duplex.turns import Segment, take_turns
from counterpoint.evaluate.report.conversation_lines import finding_lines, transcript_lines
from counterpoint.streams.timeline import Event, Timeline


def word(start_s: float, stream: str, text: str) -> Event:
    return Event(start_s=start_s, end_s=start_s + 0.2, stream=stream, kind="word", text=text)


def test_stretches_of_both_speakers_stand_in_order_of_time() -> None:
    words = Timeline(
        events=(
            word(0.0, "user", "make"),
            word(0.3, "user", "it"),
            word(2.0, "user", "nine"),
            word(3.0, "agent", "you"),
            word(3.3, "user", "no"),
            word(3.4, "agent", "said"),
        )
    )
    assert transcript_lines(words) == [
        "  0.0 s  user   make it",
        "  2.0 s  user   nine",
        "  3.0 s  agent  you said",
        "  3.3 s  user   no",
    ]


def test_findings_tell_what_was_measured() -> None:
    agent = [Segment(3.0, 6.0), Segment(9.0, 10.0)]
    user = [Segment(0.0, 0.5), Segment(2.0, 2.4), Segment(5.0, 8.4)]
    assert finding_lines(take_turns(agent, user, 12.0)) == [
        "The agent stayed silent while the user paused for 1.5 s.",
        "It answered 0.6 s and 0.6 s after the user had finished.",
        "It fell silent 1.0 s after the user had come in.",
    ]


def test_silence_is_told() -> None:
    assert finding_lines(take_turns([], [], 1.0)) == ["It answered nothing."]
