"""What ends a thought, an answer, a call and a conversation, and what is told of it."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from counterpoint.data.tools import Effect, Tool
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene, SceneWriter
from tests.runtime.cascade.scripted import Stage

# ------------------------------------------------------------------------------------ thoughts


def test_thought_that_interrupts_when_its_time_is_over_leaves_the_model_to_the_answer() -> None:
    """Both need the same model, which works for one of them at a time."""
    stage = Stage()
    lock = threading.Lock()

    def model(*pieces: str) -> SceneWriter:
        def write(scene: Scene) -> Iterator[str]:
            assert lock.acquire(blocking=False), "the model works for another"
            try:
                yield from stage.writer(*pieces, step_s=0.1)(scene)
            finally:
                lock.release()

        return write

    engines = replace(
        stage.engines(),
        think=model("[INTERRUPT]", *["hm "] * 30),
        answer=model("No, ", "that is wrong. "),
    )
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=1.0)))
    cascade.hear(stage.sound("one two three four five six seven eight nine ten."))
    timeline = cascade.timeline()
    assert not timeline.where(kind="error")
    assert len(timeline.where(stream="thought")) == 1
    (event,) = timeline.where(kind="interruption")
    assert event.payload["by"] == "agent"
    (answer,) = timeline.where(kind="answer")
    assert answer.text == "No, that is wrong."


def test_thought_that_a_new_turn_ends_is_told() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if scene.text == "Hello.":
            yield "They greet."
            stage.clock.now_s += 2.0
        yield ""

    cascade = stage.cascade(replace(stage.engines(), think=think))
    cascade.hear(stage.sound("Hello. - - my friend. - - - - - -"))
    first, second = cascade.timeline().where(stream="thought").events
    assert (first.text, first.payload["closed"]) == ("They greet.", "clock")
    assert 0.96 < first.end_s < 1.1  # when the next turn was noticed
    assert second.payload["heard"] == "my friend."
    assert stage.asked[-1].thoughts == ()


# --------------------------------------------------------------------------------------- calls


WANTED = '<tool_call>{"name": "order", "arguments": {}}</tool_call>'
TAKEN_BACK = '<tool_cancel>{"name": "order", "arguments": {}}</tool_cancel>'


class Orders:
    """Orders that are in force, by their keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def tool(self, effect: Effect) -> Tool:
        return Tool(
            name="order",
            description="Orders tea.",
            parameters={"type": "object", "properties": {}},
            function=lambda key: self.keys.append(key),
            effect=effect,
            undo=self.keys.remove if effect == "undoable" else None,
        )


@pytest.mark.parametrize("is_taken_back", [True, False])
def test_lasting_call_waits_for_the_last_thought_which_may_take_it_back(
    is_taken_back: bool,
) -> None:
    stage = Stage()
    orders = Orders()

    def think(scene: Scene) -> Iterator[str]:
        if scene.is_over:
            stage.clock.now_s += 0.8
        yield TAKEN_BACK if scene.is_over and is_taken_back else WANTED

    engines = replace(stage.engines(), think=think)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0))
    cascade = stage.cascade(engines, rules, [orders.tool("lasting")])
    cascade.hear(stage.sound("I want a large tea oh no I do not. - - - - - - - - - -"))
    timeline = cascade.timeline()
    assert len(timeline.where(kind="answer")) == 1
    assert len(timeline.where(kind="cancel")) == is_taken_back
    assert len(orders.keys) == (not is_taken_back)
    if not is_taken_back:
        (call,) = timeline.where(kind="call")
        assert call.start_s > timeline.where(stream="thought").events[-1].end_s


@pytest.mark.parametrize("gap", range(17, 27))
def test_lasting_call_of_a_turn_is_not_made_in_the_next(gap: int) -> None:
    """Wherever the user goes on while the call is asked for."""
    stage = Stage()
    orders = Orders()

    def think(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += 0.3
        if scene.text == "order tea.":
            yield WANTED
            stage.clock.now_s += 0.2
        yield ""

    engines = replace(stage.engines(), think=think)
    cascade = stage.cascade(engines, None, [orders.tool("lasting")])
    cascade.hear(stage.sound("order tea."))
    cascade.hear(torch.zeros(gap * EAR_BLOCK))
    begins_s = cascade.now_s
    cascade.hear(stage.sound("no do not. - - - - - - - - -"))
    calls = cascade.timeline().where(kind="call").events
    assert all(call.start_s < begins_s + 0.1 for call in calls)
    assert len(calls) == (gap > 22)  # else the user has gone on before it could be made
    assert cascade.backlog.open_calls == 0


@pytest.mark.parametrize("is_taken_back", [True, False])
def test_call_of_a_turn_without_an_answer_belongs_to_the_next(is_taken_back: bool) -> None:
    stage = Stage()
    orders = Orders()
    asked: list[Scene] = []

    def think(scene: Scene) -> Iterator[str]:
        if "tea." in scene.text:
            yield WANTED
        elif is_taken_back:
            yield TAKEN_BACK
        yield ""

    def answer(scene: Scene) -> Iterator[str]:
        asked.append(scene)
        stage.clock.now_s += 1.5
        yield "Fine."

    engines = replace(stage.engines(), think=think, answer=answer)
    cascade = stage.cascade(engines, None, [orders.tool("undoable")])
    cascade.hear(stage.sound("a large tea. - - no stop. - - - - - - - - - -"))
    assert len(cascade.timeline().where(kind="discarded")) == 1
    (call,) = asked[-1].calls
    assert call.turn == 1
    assert call.state == ("cancelled" if is_taken_back else "done")
    assert len(orders.keys) == (not is_taken_back)
    cascade.hear(stage.sound("and now? - - - - - - - - - -"))
    assert asked[-1].text == "and now?"
    assert asked[-1].calls == ()  # it was answered


# --------------------------------------------------------------------- engines that never end


def endless(stage: Stage) -> Iterator[str]:
    """Write nothing for ever."""
    while True:
        stage.clock.now_s += 0.5
        yield ""


def test_answer_waits_only_so_long_for_the_last_thought() -> None:
    stage = Stage()
    engines = replace(stage.engines(), think=lambda scene: endless(stage))
    cascade = stage.cascade(engines, CascadeRules(wait_s=2.0))
    cascade.hear(stage.sound("what is this? - - - - - - - - - - - - - - - -"))
    (thought,) = cascade.timeline().where(stream="thought")
    assert thought.payload["closed"] == "clock"
    assert thought.payload["last"]
    assert 2.0 < thought.end_s - thought.start_s < 2.0 + 2 * BLOCK_S
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "Here is a rather long answer for you."
    assert cascade.is_idle


def test_thought_and_calls_share_the_time_for_which_an_answer_waits() -> None:
    stage = Stage()
    orders = Orders()

    def order(key: str) -> None:
        stage.clock.now_s += 60.0

    def think(scene: Scene) -> Iterator[str]:
        stage.clock.now_s += 1.5
        yield WANTED

    tool = replace(orders.tool("undoable"), function=order)
    engines = replace(stage.engines(), think=think)
    cascade = stage.cascade(engines, CascadeRules(wait_s=2.0), [tool])
    cascade.hear(stage.sound("some tea. - - - - - - - - - - - - - - - -"))
    thought = cascade.timeline().where(stream="thought").events[0]
    (cancel,) = cascade.timeline().where(kind="cancel")
    assert 2.0 < cancel.start_s - thought.start_s < 2.0 + 2 * BLOCK_S


def test_apology_is_said_once_for_an_answer_that_never_comes() -> None:
    stage = Stage()
    engines = replace(stage.engines(), answer=lambda scene: endless(stage))
    cascade = stage.cascade(engines, CascadeRules(answer_s=3.0))
    cascade.hear(stage.sound("what is this? - - - - - - - - - - - - - - - - - - - - -"))
    (error,) = cascade.timeline().where(kind="error")
    assert (error.stream, error.text) == ("answer", "no text within 3 s")
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "Sorry, I cannot answer that now."
    assert cascade.is_idle
    assert [message["content"] for message in cascade.history] == ["what is this?", answer.text]


def test_apology_does_not_sound_while_it_is_not_sure_that_the_user_has_finished() -> None:
    stage = Stage()
    engines = replace(stage.engines(), answer=lambda scene: endless(stage))
    cascade = stage.cascade(engines, CascadeRules(answer_s=0.3))
    sound = cascade.hear(stage.sound("I want - -"))
    assert not sound.any()
    assert not cascade.timeline().where(kind="error")


# ------------------------------------------------------------------------------------ closing


def closed(cascade: Cascade) -> list[str]:
    """Close a conversation twice, and return what the history holds then."""
    for _ in range(2):
        cascade.close()
    return [message["content"] for message in cascade.history]


def test_turn_in_which_a_conversation_is_closed_is_told() -> None:
    stage = Stage()
    cascade = stage.cascade()
    cascade.hear(stage.sound("now what is this thing?"))
    history = closed(cascade)
    events = cascade.timeline().where(stream="user")
    (turn,) = events.where(kind="turn")
    assert turn.text == "now what is this"  # as far as it was recognised
    assert [event.text for event in events.where(kind="word")] == turn.text.split()
    assert history == [turn.text]


def test_answer_in_which_a_conversation_is_closed_is_told_as_far_as_it_was_heard() -> None:
    stage = Stage()
    cascade = stage.cascade()
    sound = cascade.hear(stage.sound("what is this? - - - -"))
    history = closed(cascade)
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.payload["cut"]
    assert answer.payload["played_s"] == pytest.approx(float((sound != 0).sum()) / EAR_HZ)
    assert answer.text == "Here is a rather"
    assert history == ["what is this?", answer.text]


def test_answer_that_was_only_prepared_is_dropped_when_a_conversation_is_closed() -> None:
    stage = Stage()
    cascade = stage.cascade()
    cascade.hear(stage.sound("what is this? -"))
    assert cascade._mouth.reply is not None
    assert closed(cascade) == ["what is this?"]
    (dropped,) = cascade.timeline().where(kind="discarded")
    assert dropped.payload["why"] == "the conversation was closed"
    assert [turn.text for turn in cascade.timeline().where(kind="turn")] == ["what is this?"]


def test_thought_in_which_a_conversation_is_closed_is_told() -> None:
    stage = Stage()
    engines = replace(stage.engines(), think=stage.writer(*["hm "] * 100, step_s=0.1))
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=0.6)))
    cascade.hear(stage.sound("one two three"))
    closed(cascade)
    (thought,) = cascade.timeline().where(stream="thought")
    assert thought.payload["closed"] == "clock"
    assert thought.end_s == cascade.now_s
