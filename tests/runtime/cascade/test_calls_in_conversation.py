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


def ordering(
    stage: Stage,
    counter: Counter,
    *,
    early: bool,
    effect: Effect = "undoable",
    checks: bool = False,
) -> Any:
    tool = counter.tool(effect)
    engines = replace(stage.engines("Done."), think=SchemaCaller([tool]))
    trigger = FixedChunks(chunk_s=1.0)
    rules = CascadeRules(trigger=trigger, early_calls=early, checks_calls=checks)
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


@pytest.mark.parametrize("checks", [False, True])
def test_call_that_has_failed_early_is_made_anew_when_the_whole_turn_is_known(checks: bool) -> None:
    """SHANKS + call-after-listen: three attempts fail while the user speaks, and no more follow."""
    stage = Stage()
    counter = Counter(stage.clock)
    counter.failures = [OSError("busy")] * 3
    cascade = ordering(stage, counter, early=True, checks=checks)
    cascade.hear(stage.sound("a large tea for me and my dear wife and our son please. " + "- " * 9))
    (turn,) = cascade.timeline().where(kind="turn")
    made = [one.payload["ok"] for one in cascade.timeline().where(kind="call")]
    assert made == [False] * 3 + [True] * checks
    assert [*counter.orders.values()] == ["large"] * checks
    assert len(set(counter.keys)) == 1  # another key could order a second tea
    assert times(cascade, "call")[2] < turn.end_s
    assert all(when > turn.end_s - 0.5 for when in times(cascade, "call")[3:])


@pytest.mark.parametrize("checks", [False, True])
def test_check_leaves_calls_that_have_succeeded(checks: bool) -> None:
    stage = Stage()
    counter = Counter(stage.clock)
    cascade = ordering(stage, counter, early=True, checks=checks)
    cascade.hear(stage.sound("a large tea for me and my dear wife please. - - - - - - - -"))
    assert len(counter.keys) == 1
    assert times(cascade, "cancel") == []


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
