"""Where turns begin and end, what sound belongs to them, and whose words are known."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ, EarRules, Recognise
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.runtime.cascade.trace import standing_words
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.timeline import Timeline
from tests.runtime.cascade.scripted import WORD_S, Stage


def texts(timeline: Timeline, kind: str) -> list[str]:
    """Return the texts of the events of a kind, in order."""
    return [event.text for event in timeline.where(kind=kind)]


def silence(num_blocks: int) -> Tensor:
    return torch.zeros(num_blocks * EAR_BLOCK)


def silent_writer(scene: Scene) -> Iterator[str]:
    """Write nothing."""
    yield ""


# ---------------------------------------------------------------------- sound before the voice


@pytest.mark.parametrize("gap", [16, 17, 18, 20, 30])
def test_sound_before_the_voice_is_as_long_wherever_a_turn_begins(gap: int) -> None:
    """Also right after the turn before, which ends after 16 blocks of silence."""
    stage = Stage()
    before: list[int] = []

    def recognise(audio: Tensor) -> list[ScoredWord]:
        before.append(int(audio.nonzero()[0]) // EAR_BLOCK)
        return stage.recognise(audio)

    engines = replace(stage.engines(), recognise=recognise, answer=silent_writer)
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("yes."))
    cascade.hear(silence(gap))
    before.clear()
    cascade.hear(stage.sound("no no. - -"))
    assert set(before) == {10}  # the first number of blocks that is 0.3 s
    assert texts(cascade.timeline(), "turn") == ["yes.", "no no."]


def test_sound_before_a_turn_does_not_reach_into_the_turn_before() -> None:
    stage = Stage()
    heard: list[Tensor] = []

    def recognise(audio: Tensor) -> list[ScoredWord]:
        heard.append(audio)
        return stage.recognise(audio)

    rules = CascadeRules(ear=EarRules(pause_s=0.03, end_s=0.06, before_s=0.3))
    engines = replace(stage.engines(), recognise=recognise, answer=silent_writer)
    cascade = stage.cascade(engines, rules)
    cascade.hear(stage.sound("yes."))
    cascade.hear(silence(6))
    heard.clear()
    cascade.hear(stage.sound("no. -"))
    assert int(heard[0].nonzero()[0]) == 6 * EAR_BLOCK
    assert texts(cascade.timeline(), "turn") == ["yes.", "no."]


@pytest.mark.parametrize("begin_s", [0.09, 0.8])
def test_first_word_is_kept_however_long_the_voice_with_which_a_turn_begins(
    begin_s: float,
) -> None:
    stage = Stage()
    cascade = stage.cascade(rules=CascadeRules(ear=EarRules(begin_s=begin_s)))
    cascade.hear(stage.sound("- - a b c d e f. - - - -"))
    assert texts(cascade.timeline(), "turn") == ["a b c d e f."]


# -------------------------------------------------------------------------- slow recognition


def recogniser_that_takes(stage: Stage, seconds: float) -> Recognise:
    """Return the recogniser of a stage that takes so many seconds more."""

    def recognise(audio: Tensor) -> list[ScoredWord]:
        words = stage.recognise(audio)
        stage.clock.now_s += seconds
        return words

    return recognise


def test_turn_waits_for_a_slow_recogniser_and_loses_no_question() -> None:
    stage = Stage()
    engines = replace(stage.engines(), recognise=recogniser_that_takes(stage, 1.2))
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("what is the capital of France? - - - - please tell me now."))
    cascade.hear(silence(100))
    assert stage.asked[-1].text == "what is the capital of France? please tell me now."
    assert texts(cascade.timeline(), "turn") == [stage.asked[-1].text]


def test_turn_ends_although_its_words_never_come() -> None:
    stage = Stage()
    engines = replace(stage.engines(), recognise=recogniser_that_takes(stage, 60.0))
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(round(5.0 / BLOCK_S) - 1))
    assert cascade._ear.in_turn
    cascade.hear(silence(2))
    assert not cascade._ear.in_turn


def test_no_apology_sounds_over_a_user_whose_words_are_not_known_yet() -> None:
    stage = Stage()
    engines = replace(stage.engines(), recognise=recogniser_that_takes(stage, 9.0))
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("what is this now?"))
    cascade.hear(silence(160))  # more than 5 s: the turn is over
    sound = cascade.hear(stage.sound("tell me what it is."))
    assert not sound.any()
    assert not cascade.timeline().where(kind="answer")


# ------------------------------------------------------------------------- failing recognition


def test_recogniser_that_keeps_failing_lets_no_sound_grow_without_end() -> None:
    stage = Stage()
    lengths_s: list[float] = []

    def recognise(audio: Tensor) -> list[ScoredWord]:
        lengths_s.append(len(audio) / EAR_HZ)
        raise RuntimeError("no memory")

    cascade = stage.cascade(replace(stage.engines(), recognise=recognise))
    for _ in range(6):
        cascade.hear(torch.full((10 * EAR_HZ,), 0.5))
    assert max(lengths_s) < 18.6  # `EarRules.fixed_s`, and the time between two recognitions


def test_failures_in_a_long_turn_lose_no_word_that_was_known() -> None:
    stage = Stage()
    num_failed = 0

    def recognise(audio: Tensor) -> list[ScoredWord]:
        nonlocal num_failed
        if 3.5 < cascade.now_s < 6.0:
            num_failed += 1
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    text = " ".join(f"w{number}" for number in range(30)) + "."
    rules = CascadeRules(ear=EarRules(fixed_s=4.0))
    cascade = stage.cascade(replace(stage.engines(), recognise=recognise), rules)
    cascade.hear(stage.sound(text + " - - - - -"))
    assert num_failed > 2
    assert texts(cascade.timeline(), "turn") == [text]


@pytest.mark.parametrize("shift_s", [29.0, -29.0])
def test_words_outside_of_the_sound_shift_no_others(shift_s: float) -> None:
    """Whisper reads 30 s, and may find words in the silence with which it fills them up.

    A recogniser that subtracts a delay from its times may find words before the sound.
    """
    stage = Stage()

    def recognise(audio: Tensor) -> list[ScoredWord]:
        words = stage.recognise(audio)
        if 4.0 < cascade.now_s < 5.0 or 7.0 < cascade.now_s < 8.0:
            words = [word._replace(start_s=shift_s, end_s=shift_s + 0.5) for word in words]
        return words

    text = " ".join(f"w{number}" for number in range(30)) + "."
    rules = CascadeRules(ear=EarRules(fixed_s=4.0))
    cascade = stage.cascade(replace(stage.engines(), recognise=recognise), rules)
    cascade.hear(stage.sound(text + " - - - - -"))
    said = cascade.timeline().where(stream="user", kind="word")
    assert said.end_s <= cascade.now_s
    last = next(event for event in said if event.text == "w29.")
    assert last.start_s == pytest.approx(29 * WORD_S, abs=WORD_S)


# ------------------------------------------------------------------------ words that are revised


def test_words_that_are_revised_after_an_interruption_are_told_once() -> None:
    """Two words become one, so those after them stand at other places than before."""
    stage = Stage()

    def recognise(audio: Tensor) -> list[ScoredWord]:
        words = stage.recognise(audio)
        if len(words) > 4:
            words[1:3] = [words[1]._replace(text="twowrong", end_s=words[2].end_s)]
        return words

    engines = replace(
        stage.engines("No."),
        recognise=recognise,
        judge=lambda scene: float("wrong" in scene.text),
    )
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=0.6)))
    cascade.hear(stage.sound("one two wrong four five six. - - - - - - - -"))
    timeline = cascade.timeline()
    assert texts(timeline, "turn") == ["one twowrong four five six."]
    told = [event.text for event in timeline.where(stream="user", kind="word")]
    assert sorted(told) == sorted([*["one", "two", "wrong", "four", "twowrong", "five", "six."]])
    assert texts(timeline, "retracted") == ["two", "wrong"]
    standing = [event.text for event in standing_words(timeline, "user")]
    assert standing == ["one", "twowrong", "four", "five", "six."]
    assert [message["content"] for message in cascade.history] == [
        "one two wrong four",
        "No.",
        "five six.",
    ]
