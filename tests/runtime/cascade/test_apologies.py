"""Whoever is to be answered hears a sentence, whatever the engines do: never only silence."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EarRules
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.speech.partials import ScoredWord
from counterpoint.speech.spoken_words import SpokenWord
from tests.runtime.cascade.scripted import HANG_S, Stage

ASKED = "what is this? - - -"
APOLOGY = CascadeRules().apology
UNCLEAR = CascadeRules().unclear


def silence(seconds: float) -> Tensor:
    return torch.zeros(round(seconds / BLOCK_S) * EAR_BLOCK)


def answers(cascade: Cascade) -> list[str]:
    """Return what was heard of each answer."""
    return [event.text for event in cascade.timeline().where(kind="answer")]


def faults(cascade: Cascade) -> list[tuple[str, str]]:
    return [(event.stream, event.text) for event in cascade.timeline().where(kind="error")]


class Voice:
    """A voice that does something else than to speak, at some of its sentences.

    Args:
        stage: Speaks all else, and has the clock.
        fails: Takes the place of the voice.
        at: Numbers of these sentences, counted from 1, those of the apology left out.
        knows_apology: Whether the apology is spoken rightly when it is the first that is spoken.
    """

    def __init__(
        self, stage: Stage, fails: object, at: range, *, knows_apology: bool = True
    ) -> None:
        self.stage = stage
        self.fails = fails
        self.at = at
        self.knows_apology = knows_apology
        self.count = 0

    def __call__(self, text: str) -> Voiced:
        is_known = text == APOLOGY and self.knows_apology
        self.count += not is_known
        if is_known or self.count not in self.at:
            return self.stage.speak(text)
        return self.fails(self.stage, text)  # type: ignore[operator]


def hanging(stage: Stage, text: str) -> Voiced:
    stage.clock.now_s += HANG_S
    return stage.speak(text)


def raising(stage: Stage, text: str) -> Voiced:
    raise OSError("no voice")


def speaking(audio: object) -> object:
    """Return a voice that gives this in place of sound."""

    def speak(stage: Stage, text: str) -> object:
        return Voiced(audio, (SpokenWord("word", 0.0, 0.0),))  # type: ignore[arg-type]

    return speak


BAD_SOUND = {
    "no samples": torch.zeros(0),
    "silence": torch.zeros(1600),
    "no numbers": torch.full((1600,), torch.nan),
    "two channels": torch.ones(2, 1600),
    "integers": torch.ones(1600, dtype=torch.int16),
    "nothing": None,
}


@pytest.mark.parametrize("written", ["That is this.", "That is this. It is here. So it is."])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(
    "fails",
    [hanging, raising, *map(speaking, BAD_SOUND.values())],
    ids=["hangs", "raises", *BAD_SOUND],
)
def test_voice_that_gives_no_sound_is_followed_by_an_apology(
    fails: object, first: int, written: str
) -> None:
    """If nothing of the answer was heard; what comes after it is answered as ever."""
    stage = Stage()
    sentences = written.count(".")
    voice = Voice(stage, fails, range(first, sentences + 1))
    engines = replace(stage.engines(written), speak=voice)
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound(ASKED))
    sound = cascade.hear(silence(8.0))
    heard = "That is this." if first == 2 else APOLOGY
    assert answers(cascade) == [heard]
    assert sound.any() or first == 2
    assert {stream for stream, _ in faults(cascade)} == (
        {"speech"} if first <= sentences else set()
    )
    assert cascade.is_idle
    voice.at = range(0)
    cascade.hear(stage.sound("and now? - - - - - - - - - - - - -"))
    assert answers(cascade) == [heard, written]
    assert cascade.history[-2:] == [
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": written},
    ]


@pytest.mark.parametrize("fails", [hanging, raising])
def test_voice_that_never_works_ends_an_answer_too(fails: object) -> None:
    stage = Stage()
    voice = Voice(stage, fails, range(1, 100), knows_apology=False)
    engines = replace(stage.engines("That is this."), speak=voice)
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence(12.0))
    assert answers(cascade) == [""]
    assert [stream for stream, _ in faults(cascade)] == ["speech", "speech"]
    assert cascade.is_idle


@pytest.mark.parametrize("pieces", [(), ("",), (" ", "\n\n"), ("...", " - "), ("**", "`` ")])
def test_answer_without_words_is_followed_by_an_apology(pieces: tuple[str, ...]) -> None:
    stage = Stage()
    cascade = stage.cascade(replace(stage.engines(), answer=stage.writer(*pieces)))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence(4.0))
    assert answers(cascade) == [APOLOGY]
    assert faults(cascade) == [("answer", "the answer has no words")]
    assert cascade.is_idle


def recognising(stage: Stage, fails: str) -> Cascade:
    """Return a conversation whose recogniser hangs or raises in the first five seconds."""

    def recognise(audio: Tensor) -> list[ScoredWord]:
        if cascade.now_s < 5.0:
            if fails == "raises":
                raise RuntimeError("no memory")
            stage.clock.now_s += HANG_S
        return stage.recognise(audio)

    rules = CascadeRules(ear=EarRules(recognise_s=6.0))
    cascade = stage.cascade(replace(stage.engines("Fine."), recognise=recognise), rules)
    return cascade


@pytest.mark.parametrize("fails", ["hangs", "raises"])
@pytest.mark.parametrize("words", ["yes.", "what is this now?"])
def test_voice_whose_words_cannot_be_recognised_is_told_so_however_short(
    fails: str, words: str
) -> None:
    stage = Stage()
    cascade = recognising(stage, fails)
    cascade.hear(stage.sound(words))
    cascade.hear(silence(10.0))
    assert answers(cascade) == [UNCLEAR]
    assert cascade.is_idle
    cascade.hear(stage.sound("and now? - - - - - -"))
    assert answers(cascade) == [UNCLEAR, "Fine."]


def test_every_turn_that_a_broken_recogniser_loses_is_told() -> None:
    stage = Stage()

    def recognise(audio: Tensor) -> list[ScoredWord]:
        raise RuntimeError("no memory")

    cascade = stage.cascade(replace(stage.engines(), recognise=recognise))
    for _ in range(3):
        cascade.hear(stage.sound("what is this? - - - - - - - -"))
    assert answers(cascade) == [UNCLEAR] * 3


# -------------------------------------------------------------------------------- lasting calls


WANTED = '<tool_call>{"name": "order", "arguments": {}}</tool_call>'


def ordering(stage: Stage, keys: list[str], hangs: range, rules: EarRules) -> Cascade:
    """Return a conversation that orders tea for good, whose recogniser hangs at some calls."""

    def think(scene: Scene) -> Iterator[str]:
        yield WANTED if "tea" in scene.text else ""

    schema = {"type": "object", "properties": {}}
    tool = Tool(
        name="order",
        description="",
        parameters=schema,
        function=lambda key: keys.append(key),
        effect="lasting",
    )
    recognise = stage.recogniser_that_hangs(hangs)
    engines = replace(stage.engines("Well."), recognise=recognise, think=think)
    return stage.cascade(engines, CascadeRules(ear=rules), [tool])


@pytest.mark.parametrize("hangs", [range(0), range(3, 6)])
def test_lasting_call_rests_on_the_last_words(hangs: range) -> None:
    """What was said after the partial words may have taken it back."""
    stage = Stage()
    keys: list[str] = []
    cascade = ordering(stage, keys, hangs, EarRules(recognise_s=6.0))
    cascade.hear(stage.sound("order a tea for me oh no please."))
    cascade.hear(silence(12.0))
    assert len(keys) == (not hangs)
    assert len(cascade.timeline().where(kind="cancel")) == bool(hangs)
    assert answers(cascade) == ["Well."]
    (call,) = stage.asked[-1].calls
    assert call.is_given_up is bool(hangs)  # so the model knows that it was not made
    assert cascade.backlog.open_calls == 0


def test_lasting_call_is_not_made_after_words_in_the_middle_were_lost() -> None:
    """A recogniser that fails for long loses sound, although the last words are known."""
    stage = Stage()
    keys: list[str] = []
    cascade = ordering(stage, keys, range(0), EarRules(fixed_s=3.0))
    recognise = cascade._ear._recognise

    def failing(audio: Tensor) -> object:
        if 2.0 < cascade.now_s < 9.0:
            raise RuntimeError("no memory")
        return recognise(audio)

    cascade._ear._recognise = failing  # type: ignore[assignment]
    middle = " ".join(f"w{number}" for number in range(24))
    cascade.hear(stage.sound(f"order a tea {middle} so it is."))
    cascade.hear(silence(4.0))
    (turn,) = cascade.timeline().where(kind="turn")
    assert turn.text.startswith("order a tea")
    assert turn.text.endswith("so it is.")
    assert "w10" not in turn.text
    assert keys == []


def test_pause_in_which_recognition_fails_does_not_stop_a_call_of_words_that_follow() -> None:
    """The sound is kept, so a later recognition knows all of it."""
    stage = Stage()
    keys: list[str] = []
    cascade = ordering(stage, keys, range(0), EarRules())
    recognise = cascade._ear._recognise

    def failing(audio: Tensor) -> object:
        if not audio[-1] and cascade.now_s < 1.6:
            raise RuntimeError("no memory")
        return recognise(audio)

    cascade._ear._recognise = failing  # type: ignore[assignment]
    cascade.hear(stage.sound("order a tea -"))
    assert len(cascade.timeline().where(kind="error")) == 2
    cascade.hear(stage.sound("for me now."))
    cascade.hear(silence(3.0))
    assert [event.text for event in cascade.timeline().where(kind="turn")] == [
        "order a tea for me now."
    ]
    assert len(keys) == 1


# ------------------------------------------------------------- marks that are not to be spoken


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_call_in_an_answer_is_neither_spoken_nor_made(size: int) -> None:
    stage = Stage()
    keys: list[str] = []
    text = f"Yes, I do that. {WANTED} It is [INTERRUPT] done."
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    cascade = ordering(stage, keys, range(0), EarRules())
    cascade._mouth._answer = stage.writer(*pieces, step_s=0.001)
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence(6.0))
    assert answers(cascade) == ["Yes, I do that. It is done."]
    assert faults(cascade) == [("answer", "calls are made by thoughts only")]
    assert keys == []


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_a_model_thinks_before_it_answers_is_not_spoken(size: int) -> None:
    stage = Stage()
    text = "<think>\nThe user asks. That is it?\n</think>\n\nIt is this."
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    engines = replace(stage.engines(), answer=stage.writer(*pieces, step_s=0.001))
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence(4.0))
    assert answers(cascade) == ["It is this."]
    assert not faults(cascade)


@pytest.mark.parametrize("text", ["<think>The user asks. That is it?", WANTED, WANTED[:20]])
def test_answer_of_marks_alone_is_followed_by_an_apology(text: str) -> None:
    stage = Stage()
    cascade = stage.cascade(replace(stage.engines(), answer=stage.writer(text)))
    cascade.hear(stage.sound(ASKED))
    cascade.hear(silence(4.0))
    assert answers(cascade) == [APOLOGY]
    assert faults(cascade)[-1] == ("answer", "the answer has no words")
