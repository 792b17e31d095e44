"""What makes answers quick loses nothing: clauses cut early, attention between blocks, retries."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EarRules
from counterpoint.runtime.cascade.lanes import LaneStep, TimedLane
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import WORD_S, Stage, sounding_s

HASTY = CascadeRules(ear=EarRules(look_s=0.03, pause_s=0.03, end_s=0.06))
"""Turns end so soon that the answer is written by then only if it is looked at between blocks."""


def heard_with_attention(cascade: Cascade, sound: Tensor) -> Tensor:
    """Hear sound block by block, and attend to the conversation twenty times between them."""
    pieces = []
    for block in sound.split(EAR_BLOCK):
        pieces.append(cascade.hear(block))
        for _ in range(20):
            cascade.attend()
    return torch.cat(pieces)


class _LookedAt:
    """A lane that finishes a step after every look, so that only the next look finds it."""

    def __init__(self) -> None:
        self.lane = TimedLane(lambda: 0.0)
        self.finished: list[LaneStep] = []

    @property
    def busy(self) -> bool:
        return self.lane.busy or bool(self.finished)

    def start(self, job: Iterator[Any], now_s: float) -> None:
        self.stop()
        self.lane.start(job, now_s)

    def poll(self, now_s: float) -> list[LaneStep]:
        found, self.finished = self.finished[:1], self.finished[1:]
        self.finished += self.lane.poll(now_s)
        return found

    def stop(self) -> None:
        self.lane.stop()
        self.finished = []

    def close(self, wait_s: float) -> None:
        self.stop()


def test_what_is_finished_between_blocks_waits_for_no_block() -> None:
    pauses_s = []
    for hear in (Cascade.hear, heard_with_attention):
        stage = Stage()
        cascade = Cascade(stage.engines(), rules=HASTY, lanes=_LookedAt)
        asked = stage.sound("what is this? - - - -")
        pauses_s.append(sounding_s(hear(cascade, asked))[0] - 3 * WORD_S)
    without, with_attention = pauses_s
    # Words are recognised, the answer begins, and its sound is made: three looks.
    assert with_attention < without - 1.5 * BLOCK_S
    assert 0.06 <= with_attention < 0.06 + BLOCK_S  # the very block after the end of the turn


class _Gated(TimedLane):
    """A lane whose steps cannot be taken before it is opened."""

    is_open = True

    def poll(self, now_s: float) -> list[LaneStep]:
        return super().poll(now_s) if self.is_open else []


def test_sound_that_is_ready_between_blocks_is_dropped_if_the_user_begins() -> None:
    """None of it was sent: the new turn begins before an answer could be heard."""
    stage = Stage()
    lanes: list[_Gated] = []

    def make() -> TimedLane:
        lanes.append(_Gated(lambda: 0.0))
        return lanes[-1]

    cascade = Cascade(stage.engines(), lanes=make)
    for lane in lanes:
        lane.is_open = True
    speaking = lanes[2]
    speaking.is_open = False
    cascade.hear(stage.sound("what is this? - - -"))
    second = stage.sound("no wait please stop it now - -").split(EAR_BLOCK)
    sounds = []
    for number, block in enumerate(second):
        if number == 2:  # the next block begins the turn
            speaking.is_open = True
            for _ in range(5):
                cascade.attend()
        sounds.append(cascade.hear(block))
    assert not torch.cat(sounds)[: 6 * round(WORD_S * 16_000)].any()
    timeline = cascade.timeline()
    assert len(timeline.where(kind="discarded")) == 1
    assert not timeline.where(kind="interruption")


def test_attention_does_not_change_what_is_heard_and_said() -> None:
    found = []
    for attends in (False, True):
        stage = Stage()
        cascade = stage.cascade()
        asked = stage.sound("what is this? - - - stop now please. - - - - - - - - - -")
        sound = heard_with_attention(cascade, asked) if attends else cascade.hear(asked)
        found.append((sound, cascade.history, cascade.timeline().events))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


@pytest.mark.parametrize("pause_blocks", range(6, 16))
def test_answer_to_a_turn_that_goes_on_leaves_no_trace(pause_blocks: int) -> None:
    """Wherever the user goes on within the pause, and however much is prepared by then."""
    stage = Stage()
    cascade = Cascade(stage.engines(), lanes=lambda: TimedLane(lambda: 0.0))
    first, rest = stage.sound("I want this."), stage.sound("No, that. - - - - - - -")
    heard_with_attention(cascade, torch.cat([first, torch.zeros(pause_blocks * EAR_BLOCK)]))
    prepared = cascade._mouth.reply
    assert prepared is not None
    assert prepared.ready  # its sound is there already
    assert cascade._mouth.ledger.amounts(cascade.now_s).generated_s == 0
    sound = heard_with_attention(cascade, rest)
    assert sounding_s(sound)[0] > 2 * WORD_S
    timeline = cascade.timeline()
    assert [event.text for event in timeline.where(kind="turn")] == ["I want this. No, that."]
    assert len(timeline.where(kind="discarded")) == 1
    cascade.hear(torch.zeros(60 * EAR_BLOCK))
    assert [message["content"] for message in cascade.history] == [
        "I want this. No, that.",
        "Here is a rather long answer for you.",
    ]
    assert len(cascade.timeline().where(kind="answer")) == 1


def reading(stage: Stage, read: list[tuple[float, Scene]], read_s: float) -> Cascade:
    """Return a conversation whose model notes when it reads what."""

    def note(scene: Scene) -> Iterator[str]:
        read.append((cascade.now_s, scene))
        stage.clock.now_s += read_s
        yield ""

    cascade = stage.cascade(replace(stage.engines(), read=note))
    return cascade


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_history_is_read_while_the_answer_is_heard(is_interrupted: bool) -> None:
    """Not after it: the next question may come at once, and the model may have much to read."""
    stage = Stage()
    read: list[tuple[float, Scene]] = []
    cascade = reading(stage, read, read_s=0.05)
    cascade.hear(stage.sound("what is this? - - - - " + "stop now please. " * is_interrupted))
    cascade.hear(stage.sound("- - - - - - - -"))
    answer = cascade.timeline().where(kind="answer").events[0]
    assert answer.payload["cut"] == is_interrupted
    histories = [(at_s, scene.history) for at_s, scene in read if scene.history]
    at_s, history = histories[0]
    assert answer.start_s <= at_s < answer.end_s - 0.2
    written = "Here is a rather long answer for you."
    assert [one["content"] for one in history] == ["what is this?", written]
    if is_interrupted:  # then what was heard is read instead
        heard = [one["content"] for one in histories[1][1]]
        assert heard == ["what is this?", answer.text]
        assert len(answer.text) < len(written)


def test_what_is_to_be_read_while_the_model_reads_is_read_next() -> None:
    """Only the newest: the ones before are beginnings of it."""
    stage = Stage()
    read: list[tuple[float, Scene]] = []
    cascade = reading(stage, read, read_s=1.5)
    cascade.hear(stage.sound("now what is this strange red thing over there on the old table?"))
    lengths = [len(scene.words) for _, scene in read]
    begins = [at_s for at_s, _ in read]
    assert len(read) == 3
    assert lengths == sorted(set(lengths))
    assert all(
        1.5 <= after - before < 1.5 + 2 * EAR_BLOCK / 16_000 for before, after in pairwise(begins)
    )


def test_nothing_is_read_ahead_once_the_agent_interrupts() -> None:
    """The interruption needs the slot of the model in which what is read ahead would be read."""
    stage = Stage()
    asked: list[str] = []

    def read(scene: Scene) -> Iterator[str]:
        for _ in range(20):
            stage.clock.now_s += 0.1
            asked.append("read" if scene.words else "history")
            yield ""

    def answer(scene: Scene) -> Iterator[str]:
        asked.append("answer")
        yield from stage.writer("No, ", "that is wrong.")(scene)

    def judge(scene: Scene) -> float:
        return float(len(scene.words) >= 4)

    engines = replace(stage.engines(), read=read, answer=answer, judge=judge)
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=1.0)))
    cascade.hear(stage.sound("now what is this strange red thing over there on the old table?"))
    assert len(cascade.timeline().where(kind="interruption")) == 1
    assert asked[0] == "read"
    assert "read" not in asked[asked.index("answer") :]
    assert asked[-1] == "history"  # that of the interruption, while it is heard


@pytest.mark.parametrize("failure_s", [0.02, 0.1, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("failures", [1, 2])
def test_recognition_that_fails_when_the_voice_stops_is_tried_once_more(
    failure_s: float, failures: int
) -> None:
    stage = Stage()
    calls: list[bool] = []  # whether each call heard the end of the voice

    def recognise(audio: Tensor) -> list[ScoredWord]:
        calls.append(not audio[-1])
        if 0 < sum(calls) <= failures and calls[-1]:
            stage.clock.now_s += failure_s
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    rules = EarRules(partial_s=0.4)
    cascade = stage.cascade(
        replace(stage.engines(), recognise=recognise), rules=CascadeRules(ear=rules)
    )
    cascade.hear(stage.sound("now what is this? - - - - - - - - - -"))
    timeline = cascade.timeline()
    assert [event.text for event in timeline.where(kind="error")] == ["no memory"] * failures
    assert sum(calls) == 2  # neither given up at once nor tried for ever
    (turn,) = timeline.where(kind="turn")
    (answer,) = timeline.where(kind="answer")
    if failures == 1:
        assert turn.text == "now what is this?"
        assert stage.asked[-1].text == turn.text
    else:  # what was known while the user spoke must do
        assert turn.text
        assert "now what is this?".startswith(turn.text)
    assert answer.text == "Here is a rather long answer for you."


def test_failure_while_the_user_speaks_leaves_another_try_for_the_pause() -> None:
    stage = Stage()
    failed: set[bool] = set()  # whether the end of the voice was heard by each call that failed

    def recognise(audio: Tensor) -> list[ScoredWord]:
        is_end = not audio[-1]
        if is_end not in failed:
            failed.add(is_end)
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    cascade = stage.cascade(replace(stage.engines(), recognise=recognise))
    cascade.hear(stage.sound("now what is this thing there? - - - - - - - - - -"))
    assert failed == {False, True}
    assert [scene.text for scene in stage.asked] == ["now what is this thing there?"]


@pytest.mark.parametrize("partial_s", [0.2, 0.3, 0.4, 0.5])
def test_failure_of_what_had_not_heard_the_end_spends_no_try(partial_s: float) -> None:
    """Also if it fails after the voice has stopped."""
    stage = Stage()
    ends = 0

    def recognise(audio: Tensor) -> list[ScoredWord]:
        nonlocal ends
        ends += not audio[-1]
        if audio[-1] and len(audio) > 0.9 * 16_000:
            stage.clock.now_s += 0.25
            raise RuntimeError("slow, and no memory")
        if not audio[-1] and ends == 1:
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    rules = CascadeRules(ear=EarRules(partial_s=partial_s))
    cascade = stage.cascade(replace(stage.engines(), recognise=recognise), rules=rules)
    cascade.hear(stage.sound("now what is this? - - - - - - - - - -"))
    (turn,) = cascade.timeline().where(kind="turn")
    assert turn.text == "now what is this?"
