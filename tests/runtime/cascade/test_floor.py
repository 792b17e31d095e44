"""Who has the floor: what stops the agent, and what is said while it speaks."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import EAR_BLOCK
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from tests.runtime.cascade.scripted import WORD_S, Stage, sounding_s

LONG = " ".join(f"w{number}" for number in range(30)) + "."


def interrupting(stage: Stage, answer: str, wait_s: float = 0.0) -> Cascade:
    """Return a conversation in which the agent interrupts who says "wrong"."""
    engines = stage.engines(answer)

    def write(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += wait_s if scene.interrupts else 0.0
        yield from engines.answer(scene)

    engines = replace(engines, judge=lambda scene: float("wrong" in scene.text))
    rules = CascadeRules(trigger=FixedChunks(chunk_s=0.6))
    return stage.cascade(replace(engines, answer=write), rules)


def said(cascade: Cascade) -> list[str]:
    """Return what the history holds."""
    return [message["content"] for message in cascade.history]


def turns(cascade: Cascade) -> list[str]:
    return [event.text for event in cascade.timeline().where(kind="turn")]


# ---------------------------------------------------------------- after the agent interrupts


def test_who_speaks_after_an_interruption_of_the_agent_is_answered() -> None:
    stage = Stage()
    cascade = interrupting(stage, "That is not so.")
    cascade.hear(stage.sound("one two wrong four five six - - oh what is nine times nine?"))
    cascade.hear(stage.sound("- - - - - - - - - -"))
    assert turns(cascade) == ["one two wrong four five six", "oh what is nine times nine?"]
    first, second = cascade.timeline().where(kind="answer").events
    assert (first.payload["turn"], second.payload["turn"]) == (1, 2)
    before = ["one two wrong four", "That is not so.", "five six"]
    assert [message["content"] for message in stage.asked[-1].history] == before
    assert said(cascade) == [*before, "oh what is nine times nine?", "That is not so."]


def test_user_can_stop_an_agent_that_has_interrupted() -> None:
    stage = Stage()
    cascade = interrupting(stage, LONG)
    sound = cascade.hear(stage.sound("one two wrong four five six - - no stop it is right. -"))
    barged_s = 8 * WORD_S
    assert sound[: round(barged_s * 16_000)].any()
    assert not sound[round((barged_s + 0.3) * 16_000) :].any()
    agent, user = cascade.timeline().where(kind="interruption").events
    assert (agent.payload["by"], user.payload["by"]) == ("agent", "user")
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.payload["cut"]
    assert said(cascade) == ["one two wrong four", answer.text, "five six"]


def test_user_who_talks_on_through_an_interruption_is_remembered() -> None:
    stage = Stage()
    cascade = interrupting(stage, "No.")
    cascade.hear(stage.sound("one two wrong four five six seven eight nine ten. - - - -"))
    assert said(cascade) == ["one two wrong four", "No.", "five six seven eight nine ten."]


def test_user_who_talks_on_is_remembered_after_the_interruption_that_still_sounds() -> None:
    stage = Stage()
    cascade = interrupting(stage, LONG)
    cascade.hear(stage.sound("one two wrong four five six. - - -"))
    assert said(cascade) == []
    cascade.hear(torch.zeros(220 * EAR_BLOCK))
    assert said(cascade) == ["one two wrong four", LONG, "five six."]
    assert cascade.is_idle


def test_short_pause_before_an_interruption_is_heard_does_not_drop_it() -> None:
    """The user, who does not know of it yet, goes on in the same turn."""
    stage = Stage()
    cascade = interrupting(stage, "That is not so.", wait_s=1.2)
    sound = cascade.hear(stage.sound("one two wrong four five - six seven eight. - - - - -"))
    assert sounding_s(sound)[0] > 6 * WORD_S
    assert not cascade.timeline().where(kind="discarded")
    assert len(cascade.timeline().where(kind="answer")) == 1
    assert len(turns(cascade)) == 1


# ------------------------------------------------------------------------------ short voices


def blocks_of_voice(*numbers: int) -> torch.Tensor:
    """Return voice without words of so many blocks, with silence of 8 blocks between."""
    pieces = []
    for number in numbers:
        pieces += [torch.full((number * EAR_BLOCK,), 0.0004), torch.zeros(8 * EAR_BLOCK)]
    return torch.cat(pieces)


@pytest.mark.parametrize(
    ("voice", "stops"),
    [((2,), False), ((3,), False), ((6,), False), ((7,), True), ((3, 3), False), ((4, 3), True)],
)
def test_only_so_much_voice_stops_the_agent(voice: tuple[int, ...], stops: bool) -> None:
    """7 blocks are the first that are 0.2 s; the silence between and after them does not count."""
    stage = Stage()
    cascade = stage.cascade(stage.engines(LONG))
    cascade.hear(stage.sound("what is this? - - - -"))
    cascade.hear(blocks_of_voice(*voice))
    cascade.hear(torch.zeros(200 * EAR_BLOCK))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.payload["cut"] is stops
    assert (answer.text == LONG) is not stops


def test_short_turn_is_answered_when_the_agent_has_finished() -> None:
    stage = Stage()
    cascade = stage.cascade(stage.engines(LONG), CascadeRules(barge_in_s=2.0))
    cascade.hear(stage.sound("what is this? - - - - yes. -"))
    assert not cascade.is_idle
    cascade.hear(torch.zeros(450 * EAR_BLOCK))
    first, second = cascade.timeline().where(kind="answer").events
    assert not first.payload["cut"]
    assert first.text == second.text == LONG
    assert first.end_s <= second.start_s < first.end_s + 0.8  # 0.65 s to write and speak it
    assert said(cascade) == ["what is this?", LONG, "yes.", LONG]
    assert cascade.is_idle


def test_short_turn_before_another_is_remembered_after_what_is_being_answered() -> None:
    stage = Stage()
    cascade = stage.cascade(stage.engines(LONG), CascadeRules(barge_in_s=0.4))
    cascade.hear(stage.sound("what is this? - - - - yes. - - - please stop now. - - - -"))
    history = [message["content"] for message in stage.asked[-1].history]
    assert stage.asked[-1].text == "please stop now."
    assert history[0] == "what is this?"
    assert history[1] == cascade.timeline().where(kind="answer").events[0].text
    assert history[2:] == ["yes."]
