import pytest
import torch
from torch import Tensor

from counterpoint.data.making.dialogue_layout import lay_out
from counterpoint.data.making.scripts import Script, Turn
from counterpoint.data.making.turn_taking import FLOOR_TRANSFER, YIELD
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Spoken
from counterpoint.streams.timeline import Event, Timeline
from tests.data.speech.tones import RATE, heard_words, spoken

SAMPLE = 1 / RATE


def laid(*turns: Turn, seed: int = 0, name: str = "x") -> tuple[Tensor, Timeline]:
    script = Script(name=name, turns=turns)
    return lay_out(script, spoken(script), sample_rate=RATE, seed=seed)


def utterances(timeline: Timeline) -> list[Event]:
    """In the order of the script."""
    kinds = ("turn", "backchannel", "interruption")
    return sorted((e for e in timeline if e.kind in kinds), key=lambda e: e.payload["turn"])


def silent(audio: Tensor, start_s: float, end_s: float, margin_s: float = 0.0) -> bool:
    return not audio[round((start_s + margin_s) * RATE) : round((end_s - margin_s) * RATE)].any()


def check_words(audio: Tensor, timeline: Timeline, stream: str, expected: list[int]) -> None:
    """The tones that are heard where the timeline has words."""
    words = timeline.where(stream=stream, kind="word")
    assert heard_words(audio, [(word.start_s, word.end_s) for word in words]) == expected


def test_turns_follow_each_other_by_the_gaps_of_the_script() -> None:
    audio, timeline = laid(
        Turn(speaker="user", text="a b c"),
        Turn(speaker="agent", text="d e", gap_s=0.4),
        Turn(speaker="user", text="f g h", gap_s=-0.15),
    )
    first, second, third = utterances(timeline)
    assert first.start_s == 0.5
    assert second.start_s - first.end_s == pytest.approx(0.4, abs=1e-6)
    assert third.start_s - second.end_s == pytest.approx(-0.15, abs=1e-6)
    assert audio.shape == (2, round((third.end_s + 1.5) * RATE))
    check_words(audio[0], timeline, "agent", [0, 1])
    check_words(audio[1], timeline, "user", [0, 1, 2, 0, 1, 2])
    assert silent(audio[0], 0, second.start_s)
    assert silent(audio[0], second.end_s, audio.shape[1] / RATE)
    assert silent(audio[1], 0, first.start_s)
    assert silent(audio[1], first.end_s, third.start_s)
    assert [event.text for event in (first, second, third)] == ["a b c", "d e", "f g h"]


def test_gaps_that_are_left_open_are_those_of_people() -> None:
    turns = [Turn(speaker="user", text="a b c d e f g h i j")]
    for _ in range(40):
        turns.append(Turn(speaker="agent", text="a b c d e f g h i j"))
        turns.append(Turn(speaker="user", text="a b c d e f g h i j"))
    drawn = []
    for seed in range(5):
        events = utterances(laid(*turns, seed=seed)[1])
        drawn += [b.start_s - a.end_s for a, b in zip(events, events[1:], strict=False)]
    middle = torch.tensor(drawn).quantile(torch.tensor([0.1, 0.5, 0.9]))
    # Interval of 2 standard errors at n = 400.
    assert middle.tolist() == pytest.approx(
        [FLOOR_TRANSFER.at(0.1), FLOOR_TRANSFER.at(0.5), FLOOR_TRANSFER.at(0.9)], abs=0.1
    )


def test_layout_is_decided_by_seed_and_name() -> None:
    turns = (Turn(speaker="user", text="a b"), Turn(speaker="agent", text="c d"))
    first, again, seed, name = (
        laid(*turns),
        laid(*turns),
        laid(*turns, seed=1),
        laid(*turns, name="y"),
    )
    assert first[1] == again[1]
    assert torch.equal(first[0], again[0])
    assert first[1] != seed[1]
    assert first[1] != name[1]


def test_pause_is_as_long_as_the_script_says_and_silent() -> None:
    audio, timeline = laid(Turn(speaker="user", text="a b c d", pauses=((1, 0.5), (3, 1.25))))
    pauses = list(timeline.where(kind="pause"))
    assert [e.end_s - e.start_s for e in pauses] == pytest.approx([0.5, 1.25], abs=SAMPLE)
    assert all(event.stream == "user" and event.payload == {"turn": 0} for event in pauses)
    assert all(silent(audio[1], event.start_s, event.end_s) for event in pauses)
    words = list(timeline.where(kind="word"))
    assert (pauses[0].start_s, pauses[0].end_s) == (words[0].end_s, words[1].start_s)
    assert (pauses[1].start_s, pauses[1].end_s) == (words[2].end_s, words[3].start_s)
    check_words(audio[1], timeline, "user", [0, 1, 2, 3])
    speech = [(event.start_s, event.end_s) for event in timeline.where(kind="speech")]
    (turn,) = utterances(timeline)
    assert [start for start, _ in speech] == [turn.start_s, pauses[0].end_s, pauses[1].end_s]
    assert [end for _, end in speech] == [pauses[0].start_s, pauses[1].start_s, turn.end_s]


def test_pause_between_words_without_silence_cuts_at_their_boundary() -> None:
    audio = torch.cat((torch.full((4000,), 0.25), torch.full((4000,), -0.5)))
    words = (SpokenWord("a", 0, 0.25), SpokenWord("b", 0.25, 0.5))
    script = Script(name="x", turns=(Turn(speaker="agent", text="a b", pauses=((1, 0.3),)),))
    made, timeline = lay_out(
        script, [Spoken(audio=audio, words=words)], sample_rate=RATE, seed=0, lead_s=0, tail_s=0
    )
    (pause,) = timeline.where(kind="pause")
    assert pause.end_s - pause.start_s == pytest.approx(0.3, abs=SAMPLE)
    assert abs(pause.start_s - 0.25) <= 0.02
    assert silent(made[0], pause.start_s, pause.end_s)
    assert made.shape[1] == 8000 + round(0.3 * RATE)
    assert abs(made[0, round(pause.start_s * RATE) - 200].item()) == 0.25


def test_a_silence_of_the_engine_is_a_pause_and_is_not_added_to_one() -> None:
    audio = torch.cat((torch.ones(1600), torch.zeros(6400), torch.ones(1600))) / 2
    words = (SpokenWord("a.", 0, 0.1), SpokenWord("-", 0.1, 0.1), SpokenWord("b", 0.5, 0.6))
    for pauses, length in (((), 0.4), (((2, 0.3),), 0.4), (((2, 0.75),), 0.75)):
        script = Script(name="x", turns=(Turn(speaker="agent", text="a. - b", pauses=pauses),))
        utterance = Spoken(audio=audio, words=words)
        made, timeline = lay_out(script, [utterance], sample_rate=RATE, seed=0)
        (pause,) = timeline.where(kind="pause")
        assert pause.end_s - pause.start_s == pytest.approx(length, abs=SAMPLE)
        assert silent(made[0], pause.start_s, pause.end_s)
        assert [word.text for word in timeline.where(kind="word")] == ["a.", "b"]


def test_backchannel_leaves_the_floor_where_it_is() -> None:
    audio, timeline = laid(
        Turn(speaker="agent", text="a b c d e f"),
        Turn(speaker="user", text="yeah", kind="backchannel", after_word=1),
        Turn(speaker="user", text="g", gap_s=0.3),
    )
    talk, yeah, answer = utterances(timeline)
    ends = [word.end_s for word in timeline.where(stream="agent", kind="word")]
    assert -0.4671 <= yeah.start_s - ends[1] <= 0.2511
    assert yeah.kind == "backchannel"
    assert answer.start_s - talk.end_s == pytest.approx(0.3, abs=1e-6)
    check_words(audio[0], timeline, "agent", [0, 1, 2, 3, 4, 5])


def test_interrupted_speaker_stops_after_the_yield_and_loses_the_rest() -> None:
    audio, timeline = laid(
        Turn(speaker="agent", text="a b c d e f"),
        Turn(speaker="user", text="no wait", kind="interruption", after_word=1, yield_s=0.3),
        Turn(speaker="agent", text="g h", gap_s=0.2),
    )
    cut, stop, after = utterances(timeline)
    words = list(timeline.where(stream="agent", kind="word"))
    # Words last 0.2 s, 0.02 s between them: 0.3 s after word 1, word 3 has said 0.06 s.
    assert [word.text for word in words] == ["a", "b", "c", "g", "h"]
    assert stop.start_s == words[1].end_s
    assert stop.payload == {"turn": 1, "interrupts": 0, "cut_s": cut.end_s}
    assert stop.payload["cut_s"] - stop.start_s == pytest.approx(0.3, abs=SAMPLE)
    assert cut.payload == {"turn": 0, "cut_by": 1}
    assert cut.text == "a b c"
    assert silent(audio[0], cut.end_s, after.start_s)
    loud = audio[0, round(cut.end_s * RATE) - 480 : round(cut.end_s * RATE)].abs()
    assert loud[:160].max() > 4 * loud[-40:].max()  # it fades
    assert after.start_s - stop.end_s == pytest.approx(0.2, abs=1e-6)
    check_words(audio[0], timeline, "agent", [0, 1, 2, 0, 1])


def test_a_word_that_was_mostly_said_is_kept_to_the_cut() -> None:
    _, timeline = laid(
        Turn(speaker="agent", text="a b c d e f"),
        Turn(speaker="user", text="no", kind="interruption", after_word=1, yield_s=0.17),
    )
    cut, _ = utterances(timeline)
    words = list(timeline.where(stream="agent", kind="word"))
    assert [word.text for word in words] == ["a", "b", "c"]
    assert words[2].end_s == cut.end_s
    assert cut.end_s - words[2].start_s == pytest.approx(0.15, abs=2 * SAMPLE)


def test_an_interruption_in_a_pause_keeps_the_speaker_silent() -> None:
    audio, timeline = laid(
        Turn(speaker="agent", text="a b c", pauses=((1, 2.0),)),
        Turn(speaker="user", text="no", kind="interruption", after_word=0, yield_s=0.5),
    )
    cut, stop = utterances(timeline)
    assert stop.start_s == stop.payload["cut_s"] == cut.end_s
    assert silent(audio[0], cut.end_s, audio.shape[1] / RATE)
    assert not timeline.where(kind="pause")


def test_an_interruption_of_the_last_word_cuts_nothing() -> None:
    _, timeline = laid(
        Turn(speaker="agent", text="a b c"),
        Turn(speaker="user", text="no", kind="interruption", after_word=1, yield_s=0.5),
    )
    whole, stop = utterances(timeline)
    assert stop.payload == {"turn": 1, "interrupts": 0, "cut_s": None}
    assert "cut_by" not in whole.payload
    assert whole.text == "a b c"


def test_drawn_yields_are_those_of_people_and_cuts_are_inside() -> None:
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    yields = []
    for seed in range(100):
        _, timeline = laid(
            Turn(speaker="agent", text=text),
            Turn(speaker="user", text="no", kind="interruption"),
            seed=seed,
        )
        cut, stop = utterances(timeline)
        assert cut.start_s < stop.start_s < cut.end_s
        yields.append(stop.payload["cut_s"] - stop.start_s)
    assert torch.tensor(yields).median().item() == pytest.approx(YIELD.at(0.5), abs=0.08)


def test_nobody_speaks_twice_at_the_same_time() -> None:
    """Whatever is drawn, a speaker's utterances keep 0.2 s between them."""
    talk = Turn(speaker="agent", text="a b c d e f g h")
    yeah = Turn(speaker="user", text="yeah", kind="backchannel")
    stop = Turn(speaker="user", text="no wait", kind="interruption")
    turns = (talk, yeah, yeah, stop, talk, yeah, Turn(speaker="user", text="x"), talk, stop, talk)
    for seed in range(50):
        audio, timeline = laid(*turns, seed=seed)
        events = utterances(timeline)
        for stream in ("agent", "user"):
            own = [event for event in events if event.stream == stream]
            for before, after in zip(own, own[1:], strict=False):
                assert after.start_s - before.end_s >= 0.2 - SAMPLE
            channel = audio[int(stream == "user")]
            for event in own:
                channel[round(event.start_s * RATE) : round(event.end_s * RATE)] = 0
            assert not channel.any()
        starts = [event.start_s for event in events if event.kind != "backchannel"]
        assert starts == sorted(starts)


def test_an_utterance_must_have_the_words_of_its_turn() -> None:
    script = Script(name="x", turns=(Turn(speaker="agent", text="a b"),))
    other = Script(name="x", turns=(Turn(speaker="agent", text="a"),))
    with pytest.raises(ValueError, match="each of the 2 pieces of 'a b': got 1"):
        lay_out(script, spoken(other), sample_rate=RATE, seed=0)
