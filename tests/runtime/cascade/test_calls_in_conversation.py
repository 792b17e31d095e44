"""Tools in a conversation: when calls are made, taken back and waited for while people speak."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.data.tools import Effect
from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from tests.runtime.cascade.scripted import WORD_S, Stage
from tests.runtime.cascade.test_calls import Counter, wanted


def ordering(stage: Stage, counter: Counter, *, early: bool, effect: Effect = "undoable") -> Any:
    tool = counter.tool(effect)
    engines = replace(stage.engines("Done."), think=SchemaCaller([tool]))
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0), early_calls=early)
    return stage.cascade(engines, rules, [tool])


def times(cascade: Any, kind: str) -> list[float]:
    return [one.start_s for one in cascade.timeline().where(stream="agent", kind=kind)]


@pytest.mark.parametrize("early", [True, False])
def test_call_is_done_before_the_user_stops_or_only_after(early: bool) -> None:
    stage = Stage()
    counter = Counter(stage.clock, cost_s=0.3)
    cascade = ordering(stage, counter, early=early)
    cascade.hear(stage.sound("a large tea for me and my dear wife please. - - - - - - - -"))
    (call,) = cascade.timeline().where(kind="call")
    assert call.end_s - call.start_s == pytest.approx(0.3)
    assert (call.end_s < 10 * WORD_S) == early == call.payload["early"]
    assert list(counter.orders.values()) == ["large"]
    assert stage.asked[-1].calls[0].result == '{"ordered": "large"}'


@pytest.mark.parametrize("effect", ["undoable", "lasting"])
def test_self_correction_leaves_only_what_was_wanted(effect: Effect) -> None:
    stage = Stage()
    counter = Counter(stage.clock, cost_s=0.1)
    cascade = ordering(stage, counter, early=True, effect=effect)
    text = "a large tea for me no wait a small one please. - - - - - - - - -"
    cascade.hear(stage.sound(text))
    assert list(counter.orders.values()) == ["small"]
    assert len(times(cascade, "cancel")) == 1
    assert len(times(cascade, "call")) == (2 if effect == "undoable" else 1)


@pytest.mark.parametrize("effect", ["undoable", "lasting"])
def test_agent_that_interrupts_makes_no_call_that_stays(effect: Effect) -> None:
    stage = Stage()
    counter = Counter(stage.clock)
    tool = counter.tool(effect)
    order = f"<tool_call>{wanted('large')}</tool_call>"

    def think(scene: Scene) -> Iterator[str]:
        pieces = () if scene.is_over else (order, "[INTERRUPT]")
        yield from stage.writer(*pieces)(scene)

    engines = replace(stage.engines("No."), think=think)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0))
    cascade = stage.cascade(engines, rules, [tool])
    cascade.hear(stage.sound("a large tea for the moon please. - - - - - - - - - -"))
    assert len(times(cascade, "interruption")) == 1
    assert list(counter.orders.values()) == (["large"] if effect == "undoable" else [])
    assert len(times(cascade, "cancel")) == (effect == "lasting")
    assert cascade.backlog.open_calls == 0


def test_conversation_forgets_the_calls_of_earlier_turns() -> None:
    stage = Stage()
    counter = Counter(stage.clock)
    cascade = ordering(stage, counter, early=True)
    for _ in range(3):
        cascade.hear(stage.sound("a large tea for me please. - - - - - - - - - - - -"))
        assert len(cascade.calls.calls) == 1
    assert len(counter.orders) == 3


def test_answer_waits_for_a_slow_call_and_goes_on_without_a_hanging_one() -> None:
    stage = Stage()
    counter = Counter(stage.clock, cost_s=1.5)
    cascade = ordering(stage, counter, early=False)
    cascade.hear(stage.sound("a large tea. - - - - - - - - - - - -"))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.start_s > 3 * WORD_S + 1.5
    assert stage.asked[-1].calls[0].state == "done"

    stage = Stage()
    counter = Counter(stage.clock, cost_s=100.0)
    cascade = ordering(stage, counter, early=False)
    cascade.hear(stage.sound("a large tea. " + "- " * 40))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.start_s > 3 * WORD_S + 8.0
    assert stage.asked[-1].calls[0].state == "cancelled"


def test_unclosed_call_of_a_thought_is_one_event() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if not scene.is_over:
            yield from stage.writer('<tool_call>{"name": "or')(scene)

    counter = Counter()
    engines = replace(stage.engines("Yes."), think=think)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0))
    cascade = stage.cascade(engines, rules, [counter.tool()])
    cascade.hear(stage.sound("a large tea for me. - - - - - - - -"))
    events = cascade.timeline().where(kind="call").events
    assert {one.payload["why"] for one in events} == {"the call was cut off"}
    assert len(cascade.timeline().where(kind="answer")) == 1
