"""Tools that a language model calls by itself, while somebody speaks and afterwards."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.calls import Call, CallState
from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.models import Message
from counterpoint.runtime.cascade.schema_caller import can_find
from counterpoint.runtime.cascade.thinking import Answerer, ClauseTrigger, NoteTaker, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import WORD_S, Stage

TEXT = {"type": "object", "properties": {"words": {"type": "string"}}, "required": ["words"]}


def reminder(kept: dict[str, str]) -> Tool:
    """Return a tool whose argument is any text, which only a language model can find."""

    def remind(words: str, key: str) -> str:
        kept[key] = words
        return words

    return Tool(
        name="remind",
        description="Keeps a reminder.",
        parameters=TEXT,
        function=remind,
        effect="undoable",
        undo=lambda key: kept.pop(key, None),
        say=lambda words: f"I will remind you of {words}.",
    )


class Scripted:
    """A language model that finds what stands after "of", and takes back what was said before."""

    def __init__(self) -> None:
        self.prompts: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        self.prompts.append([*messages])
        said = messages[-1]["content"].splitlines()[0]
        *_, wanted = said.split(" of ")
        called = [one for one in messages[-1]["content"].splitlines() if "Called already" in one]
        mark = json.dumps({"name": "remind", "arguments": {"words": wanted.split()[0]}})
        if " no " in f" {said} " and called:
            name, old = json.loads(called[0].split(": ", 1)[1].removesuffix(")"))
            if old["words"] != wanted.split()[0]:
                taken = json.dumps({"name": name, "arguments": old})
                yield f"<tool_cancel>{taken}</tool_cancel>"
        yield f"<tool_call>{mark}</tool_call>"


def hold(said: str, rules: CascadeRules, *, is_early: bool = True) -> tuple[Any, Any, Scripted]:
    stage = Stage()
    kept: dict[str, str] = {}
    tool = reminder(kept)
    model = Scripted()
    engines = replace(
        stage.engines(),
        think=NoteTaker(model, [tool], is_early=is_early),
        answer=Answerer(lambda messages, most: iter(["Well."])),
    )
    cascade = stage.cascade(engines, rules, [tool])
    cascade.hear(stage.sound(said))
    return cascade.timeline(), kept, model


def test_model_calls_a_tool_before_the_speaker_has_finished() -> None:
    said = "remind me of bread, please and thank you very much - - - - - - - - - -"
    timeline, kept, model = hold(said, CascadeRules(trigger=ClauseTrigger()))
    assert [*kept.values()] == ["bread,"]
    (call,) = timeline.where(kind="call")
    assert call.payload["early"]
    assert call.end_s < 10 * WORD_S
    (answer,) = timeline.where(kind="answer")
    assert answer.text == "I will remind you of bread,."
    system = model.prompts[0][0]["content"]
    assert "remind" in system
    assert "<tool_cancel>" in system
    assert "[INTERRUPT]" in system
    assert "finished" in model.prompts[-1][-1]["content"]  # it thinks about the last words, too


@pytest.mark.parametrize("rules", [CascadeRules(early_calls=False), CascadeRules()])
def test_baseline_calls_when_the_speaker_has_finished(rules: CascadeRules) -> None:
    """Call after listen: thoughts are not asked for, or their calls are not made."""
    said = "remind me of bread and please do that right now and here okay - - - - - - - -"
    timeline, kept, model = hold(said, rules, is_early=not rules.early_calls)
    assert [*kept.values()] == ["bread"]
    (call,) = timeline.where(kind="call")
    assert not call.payload["early"]
    (turn,) = timeline.where(kind="turn")
    assert call.start_s > turn.end_s
    assert (len(model.prompts) == 1) == rules.early_calls


def test_baseline_makes_no_call_in_a_pause_after_which_the_user_goes_on() -> None:
    said = "remind me of bread - of milk and that is all for now okay - - - - - - - -"
    timeline, kept, _ = hold(said, CascadeRules(early_calls=False))
    (turn,) = timeline.where(kind="turn")
    assert all(call.start_s > turn.end_s for call in timeline.where(kind="call"))
    assert [*kept.values()]


def test_model_takes_a_call_back() -> None:
    said = "remind me of bread, and then no of milk, please - - - - - - - - - -"
    timeline, kept, _ = hold(said, CascadeRules(trigger=ClauseTrigger()))
    assert [*kept.values()] == ["milk,"]
    assert len(timeline.where(kind="undone")) == 1


def test_without_tools_nothing_is_thought_at_the_end() -> None:
    model = Scripted()
    scene = Scene(words=(ScoredWord("hello", 0.0, 0.3, 1.0),), is_over=True)
    assert [*NoteTaker(model)(scene)] == []
    assert model.prompts == []


def test_model_is_told_which_calls_were_made_and_which_have_failed() -> None:
    model = Scripted()
    tool = reminder({})
    states: tuple[CallState, ...] = ("done", "failed", "cancelled")
    calls = tuple(
        Call(number=number, tool=tool, arguments={"words": state}, turn=0, state=state)
        for number, state in enumerate(states)
    )
    words = tuple(ScoredWord(word, 0.0, 0.3, 1.0) for word in ("think", "of", "bread"))
    scene = Scene(words=words, calls=calls, is_over=True)
    next(NoteTaker(model, [tool])(scene))
    told = model.prompts[0][-1]["content"].splitlines()
    assert told[1:3] == [
        '(Called already: ["remind", {"words": "done"}])',
        '(Failed: ["remind", {"words": "failed"}])',
    ]


def test_small_model_finds_only_what_a_tool_lists() -> None:
    listed = {"type": "string", "enum": ["small", "large"]}

    def tool(properties: dict[str, Any], required: Sequence[str] = ()) -> Tool:
        schema = {"type": "object", "properties": properties, "required": [*required]}
        return Tool(name="a", description="", parameters=schema, function=str, effect="none")

    assert can_find(tool({"size": listed}, ["size"]))
    assert can_find(tool({"size": listed, "note": {"type": "string"}}, ["size"]))
    assert not can_find(tool({"size": listed, "note": {"type": "string"}}, ["size", "note"]))
    assert not can_find(tool({}))
    assert not can_find(tool({"count": {"type": "integer", "enum": [1, 2]}}, ["count"]))


def test_call_of_an_earlier_turn_answers_no_later_question() -> None:
    """The order was asked for in a turn whose answer was dropped; its result is told beside."""
    stage = Stage()
    prompts: list[str] = []

    def complete(messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        prompts.append(messages[-1]["content"])
        yield "Well."

    def think(scene: Scene) -> Iterator[str]:
        if "bread" in scene.text:
            words = {"words": "bread"}
            yield f"<tool_call>{json.dumps({'name': 'remind', 'arguments': words})}</tool_call>"

    def answer(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += 1.5
        yield from Answerer(complete)(scene)

    engines = replace(stage.engines(), think=think, answer=answer)
    cascade = stage.cascade(engines, None, [reminder({})])
    cascade.hear(stage.sound("remind me of bread - - - - what is the time now? - - - - - - - -"))
    (told,) = cascade.timeline().where(kind="answer")
    assert told.text == "Well."
    assert "what is the time" in prompts[-1]
    assert 'remind: "bread"' in prompts[-1]
