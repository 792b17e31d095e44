"""Short sounds without words between a question and its answer: they cost time and nothing else."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import EAR_BLOCK
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import Stage, sounding_s

ANSWER = "Here is a rather long answer for you."
WANTED = '<tool_call>{"name": "order", "arguments": {}}</tool_call>'


def cough(num_blocks: int = 4) -> Tensor:
    """Return voice in which the recogniser finds no word, however long it is."""
    return torch.full((num_blocks * EAR_BLOCK,), 0.0004)


def silence(num_blocks: int) -> Tensor:
    return torch.zeros(num_blocks * EAR_BLOCK)


def slow(stage: Stage, wait_s: float) -> Cascade:
    """Return a conversation whose answers take so long."""

    def answer(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += wait_s
        yield from stage.writer(ANSWER)(scene)

    return stage.cascade(replace(stage.engines(), answer=answer))


def told(cascade: Cascade) -> list[str]:
    return [message["content"] for message in cascade.history]


@pytest.mark.parametrize("gap", range(16, 38, 3))
@pytest.mark.parametrize("num_blocks", [4, 9])
def test_cough_before_an_answer_only_delays_it(gap: int, num_blocks: int) -> None:
    stage = Stage()
    cascade = slow(stage, 1.0)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(gap))
    during = cascade.hear(cough(num_blocks))
    cascade.hear(silence(6))
    assert not during.any()
    assert not cascade.is_idle
    cascade.hear(silence(200))
    assert not cascade.timeline().where(kind="discarded")
    assert len(cascade.timeline().where(kind="unclear")) == 1
    (answer,) = cascade.timeline().where(kind="answer")
    assert (answer.text, answer.payload["turn"]) == (ANSWER, 1)
    assert len(stage.asked) == 1
    assert told(cascade) == ["what is this?", ANSWER]
    assert cascade.is_idle


def test_answer_that_is_ready_waits_until_the_cough_is_over() -> None:
    stage = Stage()
    cascade = slow(stage, 0.4)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(17))
    began_s = cascade.now_s
    sound = cascade.hear(torch.cat([cough(), silence(100)]))
    assert 0.6 < sounding_s(sound)[0] < 0.75  # 0.13 s of voice, and 0.5 s of silence end a turn
    assert cascade.timeline().where(kind="answer").events[0].start_s > began_s + 0.6


def test_several_coughs_only_delay_an_answer() -> None:
    stage = Stage()
    cascade = slow(stage, 3.0)
    cascade.hear(stage.sound("what is this?"))
    for gap in (17, 18, 8, 20):
        cascade.hear(torch.cat([silence(gap), cough()]))
    assert not cascade.timeline().where(kind="answer")
    cascade.hear(silence(200))
    assert told(cascade) == ["what is this?", ANSWER]


def test_cough_whose_words_come_late_is_a_turn() -> None:
    """The answer is kept while nobody knows, and dropped when the words are there."""
    stage = Stage()
    cascade = slow(stage, 0.4)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(17))
    sound = cascade.hear(stage.sound("no."))
    assert cascade._mouth.reply is not None
    assert cascade._mouth.reply.turn == 1
    sound = torch.cat([sound, cascade.hear(silence(8))])
    assert not sound.any()
    (dropped,) = cascade.timeline().where(kind="discarded")
    assert dropped.payload["why"] == "the user goes on"
    cascade.hear(silence(200))
    assert told(cascade) == ["what is this?", "no.", ANSWER]
    assert [message["content"] for message in stage.asked[-1].history] == ["what is this?"]


@pytest.mark.parametrize("num_blocks", [31, 40, 150, 700])
@pytest.mark.parametrize("wait_s", [0.5, 1.0, 3.0])
def test_long_sound_without_words_only_delays_an_answer(num_blocks: int, wait_s: float) -> None:
    """Noise that the detector takes for a voice: it says nothing that could drop an answer."""
    stage = Stage()
    cascade = slow(stage, wait_s)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(16))
    during = cascade.hear(torch.cat([cough(num_blocks), silence(6)]))
    assert not during.any()
    cascade.hear(silence(200))
    assert told(cascade) == ["what is this?", ANSWER]
    assert len(stage.asked) == 1
    assert len(cascade.timeline().where(kind="unclear")) == 1
    assert not cascade.timeline().where(kind="discarded")
    assert not cascade.timeline().where(kind="error")
    assert cascade.is_idle


def test_long_sound_without_words_is_told_if_no_answer_is_due() -> None:
    stage = Stage()
    cascade = slow(stage, 1.0)
    cascade.hear(torch.cat([stage.sound("what is this?"), silence(200)]))
    cascade.hear(torch.cat([cough(40), silence(100)]))
    texts = [event.text for event in cascade.timeline().where(kind="answer")]
    assert texts == [ANSWER, cascade.rules.unclear]


def failing_after(stage: Stage, begin_s: float, takes_s: float) -> Cascade:
    """Return a conversation whose recogniser fails after a time, each time so late."""

    def recognise(audio: Tensor) -> list[ScoredWord]:
        if cascade.now_s > begin_s:
            stage.clock.now_s += takes_s
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    engines = replace(slow(stage, 1.0).engines, recognise=recognise)
    cascade = stage.cascade(engines)
    return cascade


@pytest.mark.parametrize("word", ["no.", "no I do not want it."])
def test_voice_that_cannot_be_recognised_may_be_a_correction(word: str) -> None:
    """So the answer before it is not given: the user is told that they were not understood."""
    stage = Stage()
    cascade = failing_after(stage, 1.6, 0.1)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(17))
    assert cascade.now_s < 1.6
    cascade.hear(torch.cat([stage.sound(word), silence(200)]))
    texts = [event.text for event in cascade.timeline().where(kind="answer")]
    assert texts == [cascade.rules.unclear]
    assert told(cascade) == ["what is this?", cascade.rules.unclear]
    assert cascade.is_idle


def test_voice_whose_words_are_not_known_when_the_user_goes_on_may_be_a_correction() -> None:
    stage = Stage()
    cascade = failing_after(stage, 1.6, 60.0)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(17))
    cascade.hear(torch.cat([stage.sound("no no no."), silence(170)]))
    cascade.hear(torch.cat([cough(), silence(400)]))
    assert ANSWER not in told(cascade)
    assert len(cascade.timeline().where(kind="discarded")) == 1
    assert cascade.is_idle


def test_cough_before_an_interruption_of_the_agent_only_delays_it() -> None:
    stage = Stage()
    engines = slow(stage, 1.5).engines
    engines = replace(engines, judge=lambda scene: float("wrong" in scene.text))
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=0.6)))
    cascade.hear(stage.sound("one two wrong four"))
    cascade.hear(torch.cat([silence(18), cough()]))
    assert len(cascade.timeline().where(kind="interruption")) == 1
    assert not cascade.timeline().where(kind="answer")
    cascade.hear(silence(200))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == ANSWER
    assert not cascade.timeline().where(kind="discarded")


def test_cough_does_not_drop_a_short_turn_that_waits_until_the_agent_has_finished() -> None:
    stage = Stage()
    cascade = stage.cascade(rules=CascadeRules(barge_in_s=2.0))
    cascade.hear(stage.sound("what is this? - - yes."))
    cascade.hear(torch.cat([silence(20), cough(), silence(300)]))
    assert told(cascade) == ["what is this?", ANSWER, "yes.", ANSWER]
    assert cascade.is_idle


def ordering(stage: Stage, keys: list[str], think_s: float) -> Cascade:
    """Return a conversation that orders tea in its last thought, which takes so long."""

    def think(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += think_s
        yield WANTED if "tea" in scene.text else ""

    def order(key: str) -> None:
        keys.append(key)

    schema = {"type": "object", "properties": {}}
    tool = Tool(name="order", description="", parameters=schema, function=order, effect="lasting")
    return stage.cascade(replace(stage.engines(), think=think), None, [tool])


@pytest.mark.parametrize("num_blocks", [4, 40])
@pytest.mark.parametrize("think_s", [0.3, 0.4, 0.5, 1.0])
def test_lasting_call_is_made_after_a_cough(think_s: float, num_blocks: int) -> None:
    """Whether the last thought has ended before it, or must be thought once more."""
    stage = Stage()
    keys: list[str] = []
    cascade = ordering(stage, keys, think_s)
    cascade.hear(stage.sound("order a tea."))
    cascade.hear(torch.cat([silence(16), cough(num_blocks), silence(300)]))
    assert keys == ["turn 1, call 1"]
    assert not cascade.timeline().where(kind="cancel")
    assert told(cascade) == ["order a tea.", ANSWER]
    (call,) = cascade.timeline().where(kind="call")
    if think_s > 0.3:
        assert call.start_s > cascade.timeline().where(kind="unclear").events[0].end_s


@pytest.mark.parametrize("think_s", [0.4, 0.5, 1.0])
def test_lasting_call_is_not_made_while_a_voice_may_be_a_correction(think_s: float) -> None:
    stage = Stage()
    keys: list[str] = []
    cascade = ordering(stage, keys, think_s)
    cascade.hear(stage.sound("order a tea."))
    cascade.hear(silence(16))
    cascade.hear(stage.sound("no."))
    cascade.hear(silence(300))
    assert keys == []
    assert told(cascade) == ["order a tea.", "no.", ANSWER]
    assert cascade.backlog.open_calls == 0


def test_conversation_that_is_closed_during_a_cough_remembers_the_question() -> None:
    stage = Stage()
    cascade = slow(stage, 1.0)
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(torch.cat([silence(17), cough()]))
    cascade.close()
    assert told(cascade) == ["what is this?"]
    turns = [event.payload["turn"] for event in cascade.timeline().where(kind="turn")]
    assert turns == [1, 2]
