"""Engines that stall when a part of their work is done: the conversation ends it and goes on."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EarRules
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.thinking import Scene
from tests.runtime.cascade.scripted import HANG_S, Stage

ASKED = "what is this? - - -"
APOLOGY = CascadeRules().apology


def silence_of(seconds: float) -> Tensor:
    return torch.zeros(round(seconds / BLOCK_S) * EAR_BLOCK)


def told(cascade: Cascade) -> list[str]:
    return [message["content"] for message in cascade.history]


def writing_once_badly(stage: Stage, *pieces: str, empty: bool) -> Cascade:
    """Return a conversation whose first answer stalls after its pieces; the next is "Fine."."""
    asked: list[Scene] = []

    def answer(scene: Scene) -> Iterator[str]:
        asked.append(scene)
        if len(asked) > 1:
            yield "Fine."
            return
        yield from pieces
        for _ in range(1000 if empty else 0):
            stage.clock.now_s += 0.5
            yield ""
        stage.clock.now_s += HANG_S

    return stage.cascade(replace(stage.engines(), answer=answer), CascadeRules(answer_s=3.0))


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (("Well, this is it. ",), "Well, this is it."),
        (("Well, this is it. ", "And that "), "Well, this is it. And that"),
        (("Well, this",), "Sorry, I cannot answer that now."),
    ],
)
def test_answer_whose_text_stalls_ends(pieces: tuple[str, ...], said: str, empty: bool) -> None:
    """What was written of it is said, also without its end, if a sentence of it was complete."""
    stage = Stage()
    cascade = writing_once_badly(stage, *pieces, empty=empty)
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence_of(2.0))
    assert cascade._mouth.reply is not None
    assert not cascade.timeline().where(kind="error")
    cascade.hear(silence_of(6.0))
    (error,) = cascade.timeline().where(kind="error")
    assert (error.stream, error.text) == ("answer", "no text within 3 s")
    (answer,) = cascade.timeline().where(kind="answer")
    assert (answer.text, answer.payload["cut"]) == (said, False)
    assert cascade.is_idle
    cascade.hear(stage.sound("and now? - - - - - -"))
    assert told(cascade) == ["what is this?", said, "and now?", "Fine."]


def test_writer_that_is_slow_but_goes_on_is_waited_for() -> None:
    stage = Stage()
    words = [f"w{number}. " for number in range(6)]
    engines = replace(stage.engines(), answer=stage.writer(*words, step_s=2.5))
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence_of(20.0))
    assert not cascade.timeline().where(kind="error")
    assert told(cascade) == ["what is this?", "".join(words).strip()]


def test_long_answer_that_is_spoken_is_played_to_its_end() -> None:
    stage = Stage()
    text = " ".join(f"w{number}" for number in range(40)) + "."
    cascade = stage.cascade(stage.engines(text), CascadeRules(answer_s=2.0))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence_of(15.0))
    assert not cascade.timeline().where(kind="error")
    assert told(cascade) == ["what is this?", text]


@pytest.mark.parametrize("hangs_at", [1, 2])
def test_answer_whose_voice_hangs_ends_when_the_sound_so_far_was_played(hangs_at: int) -> None:
    stage = Stage()
    spoken: list[str] = []

    def speak(text: str) -> Voiced:
        if text != APOLOGY:
            spoken.append(text)
            stage.clock.now_s += HANG_S if len(spoken) == hangs_at else 0.0
        return stage.speak(text)

    written = "That is this. It is here. So it is."
    engines = replace(stage.engines(written), speak=speak)
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence_of(6.0))
    (error,) = cascade.timeline().where(kind="error")
    assert (error.stream, error.text) == ("speech", "no sound within 3 s")
    (answer,) = cascade.timeline().where(kind="answer")
    if hangs_at == 2:
        assert (answer.text, answer.payload["written"]) == ("That is this.", written)
    else:
        assert (answer.text, answer.payload["written"]) == (APOLOGY, f"{written} {APOLOGY}")
    assert len(spoken) == hangs_at
    assert cascade.is_idle
    cascade.hear(stage.sound("and now? - - - - - - - - - - -"))
    assert told(cascade)[-2:] == ["and now?", written]


def test_voice_that_hangs_is_noticed_while_the_writer_goes_on() -> None:
    stage = Stage()

    def speak(text: str) -> Voiced:
        stage.clock.now_s += HANG_S
        return stage.speak(text)

    def answer(scene: Scene) -> Iterator[str]:
        while True:
            stage.clock.now_s += 0.5
            yield "More of it. "

    engines = replace(stage.engines(), speak=speak, answer=answer)
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence_of(4.0))
    assert [event.stream for event in cascade.timeline().where(kind="error")] == ["speech"]
    cascade.hear(silence_of(3.0))  # for the apology
    assert [event.stream for event in cascade.timeline().where(kind="error")] == ["speech"] * 2
    assert cascade.is_idle


def hearing(stage: Stage, hanging: range, rules: EarRules) -> Cascade:
    """Return a conversation in which some recognitions hang, counted from 1."""
    recognise = stage.recogniser_that_hangs(hanging)
    engines = replace(stage.engines("Fine."), recognise=recognise)
    return stage.cascade(engines, CascadeRules(ear=rules))


@pytest.mark.parametrize(
    ("first", "words", "answer"),
    [(3, "one two three four", "Fine."), (1, "", "Sorry, I did not understand that.")],
)
def test_turn_whose_last_words_never_come_is_told_as_far_as_it_is_known(
    first: int, words: str, answer: str
) -> None:
    stage = Stage()
    cascade = hearing(stage, range(first, 6), EarRules(recognise_s=6.0))
    cascade.hear(stage.sound("one two three four five six seven."))
    cascade.hear(silence_of(6.0))
    assert not cascade.timeline().where(kind="turn")
    cascade.hear(silence_of(3.0))
    (error,) = cascade.timeline().where(kind="error")
    assert (error.stream, error.text) == ("ear", "no words within 6 s")
    (turn,) = cascade.timeline().where(kind="turn")
    assert turn.text == words
    assert [event.text for event in cascade.timeline().where(kind="answer")] == [answer]
    assert cascade.is_idle


def test_words_are_recognised_again_while_the_user_speaks_on() -> None:
    stage = Stage()
    cascade = hearing(stage, range(2, 3), EarRules(recognise_s=2.0))
    text = " ".join(f"w{number}" for number in range(16)) + "."
    cascade.hear(stage.sound(text))
    turn = cascade._ear.turn
    assert turn is not None
    assert len(turn.words) > 12
    (error,) = cascade.timeline().where(kind="error")
    assert error.text == "no words within 2 s"
    cascade.hear(silence_of(3.0))
    assert told(cascade) == [text, "Fine."]
