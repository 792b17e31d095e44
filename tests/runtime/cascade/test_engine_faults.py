"""Engines and tools that fail in odd ways: each is an event, and the conversation goes on."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.data.tools import Tool, argument_fault
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.cascade import CascadeRules, Engines
from counterpoint.runtime.cascade.lanes import ThreadLane, TimedLane
from counterpoint.runtime.cascade.thinking import Answerer, FixedChunks, MarkReader, Scene
from counterpoint.runtime.talk import AGENT
from tests.runtime.cascade.scripted import FakeClock, Stage
from tests.runtime.cascade.test_calls import Counter, tool_of, wanted

ASKED = "a large tea. - - - - - - - - - - - - -"


def refusing(scene: Scene) -> Iterator[str]:
    """Fail when it is called, and not when its first piece is taken."""
    raise OSError("no model")


@pytest.mark.parametrize(("part", "told"), [("answer", "answer"), ("read", "reading")])
def test_engine_that_fails_when_it_is_asked_is_an_event(part: str, told: str) -> None:
    stage = Stage()
    changes: dict[str, Any] = {part: refusing}
    cascade = stage.cascade(replace(stage.engines(), **changes))
    cascade.hear(stage.sound(ASKED))
    faults = cascade.timeline().where(kind="error")
    assert {(fault.stream, fault.text) for fault in faults} == {(told, "no model")}
    (answer,) = cascade.timeline().where(kind="answer")
    assert ("Sorry" in answer.text) == (part == "answer")


def test_what_a_writer_wrote_before_it_failed_is_said() -> None:
    stage = Stage()

    def answer(scene: Scene) -> Iterator[str]:
        yield from ("The ", "capital ", "of ", "France ", "is ", "Paris")
        raise OSError("it broke")

    cascade = stage.cascade(replace(stage.engines(), answer=answer))
    cascade.hear(stage.sound(ASKED))
    (said,) = cascade.timeline().where(kind="answer")
    assert said.text == "The capital of France is Paris"
    assert len(cascade.timeline().where(kind="error")) == 1


def ordering(engines: Engines, arguments: str = wanted("large")) -> Engines:
    """Return engines whose thoughts call the tool."""

    def think(scene: Scene) -> Iterator[str]:
        yield f"<tool_call>{arguments}</tool_call>"

    return replace(engines, think=think)


@pytest.mark.parametrize("words", [lambda result: result["missing"], lambda result: None])
def test_tool_without_words_for_its_result_leaves_them_to_the_model(words: Any) -> None:
    stage = Stage()
    prompts = []

    def complete(messages: Any, most_tokens: int) -> Iterator[str]:
        prompts.append(messages[-1]["content"])
        yield "It is done."

    tool = replace(tool_of(lambda size: {"ordered": size}), say=words)
    engines = replace(ordering(stage.engines()), answer=Answerer(complete))
    cascade = stage.cascade(engines, tools=[tool])
    cascade.hear(stage.sound(ASKED))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "It is done."
    assert '{"ordered": "large"}' in prompts[-1]


def test_interruption_says_the_mistake_and_not_the_result_of_a_call() -> None:
    stage = Stage()
    tool = replace(tool_of(lambda size: 1), say=lambda result: "Your tea is ordered.")
    engines = replace(
        ordering(stage.engines()),
        judge=lambda scene: float("wrong" in scene.text),
        answer=Answerer(lambda messages, most: iter([messages[-1]["content"].split("(")[1]])),
    )
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=1.0)), [tool])
    cascade.hear(stage.sound("a large tea and that is quite wrong as they all say - - - - - -"))
    assert len(cascade.timeline().where(kind="interruption")) == 1
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text.startswith("The person made a mistake")


@pytest.mark.parametrize(
    ("effect", "told"), [("undoable", "Not possible now: order"), ("lasting", "Not finished yet")]
)
def test_model_is_told_of_a_call_that_an_answer_could_not_wait_for(effect: Any, told: str) -> None:
    stage = Stage()
    prompts = []

    def complete(messages: Any, most_tokens: int) -> Iterator[str]:
        prompts.append(messages[-1]["content"])
        yield "Well."

    slow = Counter(stage.clock, cost_s=20.0)
    engines = replace(ordering(stage.engines()), answer=Answerer(complete))
    cascade = stage.cascade(engines, CascadeRules(wait_s=0.5), [slow.tool(effect, limit_s=60.0)])
    cascade.hear(stage.sound(ASKED))
    assert told in prompts[-1]


def test_calls_that_were_taken_back_before_they_began_do_not_hang() -> None:
    clock = FakeClock()
    counter = Counter(clock)
    calls = Calls([counter.tool()], lambda: TimedLane(clock))
    for number in range(8):
        calls.request(wanted("large"), number, 0.0)
        calls._make(calls.calls[-1], 0.0, early=False)  # its lane was never polled
        calls.cancel(wanted("large"), number, 0.0)
    calls.request(wanted("small"), 9, 0.0)
    for step in range(10):
        calls.advance(0.1 * step, is_over=True)
    assert calls.calls[-1].state == "done"
    assert [*counter.orders.values()] == ["small"]


def test_parameter_with_the_name_of_the_key_is_a_mistake_of_the_tool() -> None:
    schema = {"type": "object", "properties": {"key": {"type": "string"}}}
    about: dict[str, Any] = {"name": "find", "description": "", "parameters": schema}
    assert Tool(**about, function=str, effect="none").is_safe
    with pytest.raises(ValueError, match="another name"):
        Tool(**about, function=str, effect="lasting")


def test_a_value_may_have_one_of_several_types() -> None:
    schema = {"properties": {"note": {"type": ["string", "null"]}}}
    assert argument_fault(schema, {"note": None}) is None
    assert argument_fault(schema, {"note": "hot"}) is None
    fault = argument_fault(schema, {"note": 3})
    assert fault == "note must be of type string or null, got 3"
    assert argument_fault({"properties": {"n": {"type": ["integer", "null"]}}}, {"n": True})


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_mark_within_a_call_is_a_part_of_the_call(size: int) -> None:
    text = 'so <tool_call>{"a": "[INTERRUPT]"}</tool_call> and [INTERRUPT]'
    reader = MarkReader()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    marks = [one for piece in pieces for one in reader.read(piece)] + [*reader.end()]
    assert [one for one in marks if one.kind != "text"] == [
        ("call", '{"a": "[INTERRUPT]"}'),
        ("interrupt", ""),
    ]


def test_lane_leaves_a_few_hanging_jobs_and_then_refuses() -> None:
    release = threading.Event()

    def hang() -> Iterator[int]:
        release.wait(10)
        yield 1

    lane = ThreadLane()
    before = threading.active_count()
    for _ in range(20):
        lane.start(hang(), 0.0)
    assert threading.active_count() <= before + 4
    (step,) = lane.poll(0.0)
    assert step.is_last
    assert str(step.error) == "4 jobs hang"
    assert not lane.busy
    release.set()
    lane.close(5.0)


@pytest.mark.parametrize("lane", [ThreadLane(), TimedLane()], ids=["threads", "timed"])
def test_engine_that_wants_to_end_the_process_is_an_error(lane: Any) -> None:
    def leave() -> Iterator[int]:
        raise SystemExit(2)
        yield 1  # type: ignore[unreachable]

    lane.start(leave(), 0.0)
    steps: list[Any] = []
    while not steps:
        steps = lane.poll(1e9)
    assert str(steps[-1].error) == "SystemExit: 2"
    assert not lane.busy


def test_failed_call_of_an_earlier_turn_may_be_asked_for_again() -> None:
    clock = FakeClock()
    counter = Counter(clock)
    calls = Calls([counter.tool()], lambda: TimedLane(clock))
    counter.failures = [OSError("down")] * 3
    calls.request(wanted("large"), 1, 0.0)
    for step in range(60):
        calls.advance(0.1 * step, is_over=True)
    assert calls.calls[0].state == "failed"
    calls.request(wanted("large"), 1, 6.0)  # the same turn says it once more: nothing new
    assert len(calls.calls) == 1
    calls.request(wanted("large"), 2, 6.0)
    for step in range(10):
        calls.advance(6.0 + 0.1 * step, is_over=True)
    assert [call.state for call in calls.calls] == ["failed", "done"]


def test_call_that_waits_is_told_when_the_conversation_is_closed() -> None:
    clock = FakeClock()
    counter = Counter(clock)
    calls = Calls([counter.tool("lasting")], lambda: TimedLane(clock))
    calls.request(wanted("large"), 1, 0.0)
    calls.advance(0.1, is_over=False)
    assert calls.leave(0.2, 1.0) == []
    (event,) = calls.take_events()
    assert (event.kind, event.payload["was"]) == ("cancel", "waiting")
    assert not counter.orders


def test_user_who_pauses_often_is_judged_too() -> None:
    """The thought in each pause knew all words, and the judge was never asked about any."""
    stage = Stage()
    engines = replace(
        stage.engines(), think=stage.writer("hm"), judge=lambda scene: float("wrong" in scene.text)
    )
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=2.0)))
    cascade.hear(stage.sound("this is wrong - and so - it goes - on and - on and on - so on"))
    made = cascade.timeline().where(kind="interruption").events
    (interruption,) = (one for one in made if one.payload["by"] == AGENT)
    assert interruption.start_s < 3.0
    thoughts = cascade.timeline().where(stream="thought")
    assert [one.payload["closed"] for one in thoughts].count("interruption") == 1
