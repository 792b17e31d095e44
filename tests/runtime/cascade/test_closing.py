"""A conversation that is closed leaves no thread behind, except for a tool that cannot be ended."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.lanes import TimedLane, close_lanes
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import FakeClock, Stage

LONG_S = 60.0
WANTED = '<tool_call>{"name": "order", "arguments": {}}</tool_call>'
TAKEN_BACK = '<tool_cancel>{"name": "order", "arguments": {}}</tool_cancel>'


class HangingOrder:
    """An order that hangs until it is let go, and then takes effect."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.thread: threading.Thread | None = None
        self.happened: list[str] = []
        self.undo_hangs = False
        self.undo_thread: threading.Thread | None = None

    def order(self, key: str) -> str:
        self.thread = threading.current_thread()
        self.begun.set()
        self.let_go.wait(LONG_S)
        self.happened.append("ordered")
        return "ordered"

    def undo(self, key: str) -> None:
        self.undo_thread = threading.current_thread()
        if self.undo_hangs:
            self.let_go.wait(LONG_S)
        self.happened.append("undone")

    def tool(self) -> Tool:
        return Tool(
            name="order",
            description="Orders.",
            parameters={"type": "object", "properties": {}},
            function=self.order,
            effect="undoable",
            undo=self.undo,
            limit_s=LONG_S,
        )


def conversation(order: HangingOrder, *thoughts: str) -> Cascade:
    """Return a conversation in threads, in which one thought after another was thought."""
    stage = Stage()
    written = iter(thoughts)

    def think(scene: Scene) -> Iterator[str]:
        thought = next(written, "")
        if thought == TAKEN_BACK:  # what has not begun is only dropped
            order.begun.wait(5)
        yield thought

    engines = replace(stage.engines(), think=think)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=0.5))
    cascade = Cascade(engines, rules=rules, tools=(order.tool(),))
    for word in ("a", "tea", "for", "me", "and", "my", "wife"):
        cascade.hear(stage.sound(word))
        time.sleep(0.02)
    assert order.begun.wait(5)
    until_s = time.monotonic() + 5
    while TAKEN_BACK in thoughts and not cascade.timeline().where(kind="cancel"):
        assert time.monotonic() < until_s
        cascade.hear(stage.sound("too"))
        time.sleep(0.02)
    return cascade


def closed_in_s(cascade: Cascade) -> float:
    began_s = time.monotonic()
    cascade.close(10.0)
    return time.monotonic() - began_s


def test_closed_conversation_leaves_no_thread_in_an_engine() -> None:
    before = set(threading.enumerate())
    stage = Stage()
    is_within = threading.Event()
    has_left = threading.Event()

    def recognise(audio: Tensor) -> list[ScoredWord]:
        is_within.set()
        time.sleep(0.2)
        has_left.set()
        return []

    cascade = Cascade(replace(stage.engines(), recognise=recognise))
    cascade.hear(stage.sound("now what is this thing?"))
    assert is_within.wait(5)
    cascade.close(5.0)
    assert has_left.is_set()
    assert set(threading.enumerate()) <= before


def test_closed_conversation_waits_for_no_tool_and_only_the_tool_keeps_its_thread() -> None:
    before = set(threading.enumerate())
    order = HangingOrder()
    cascade = conversation(order, WANTED)
    assert closed_in_s(cascade) < 5.0
    (call,) = cascade.timeline().where(kind="call")  # its effect comes later
    assert (call.payload["ok"], call.payload["why"]) == (None, "left")
    assert call.end_s == cascade.now_s > call.start_s
    assert set(threading.enumerate()) - before == {order.thread}
    order.let_go.set()
    assert order.thread is not None
    order.thread.join(5)
    assert order.happened == ["ordered"]  # the user wanted it


def test_what_waits_to_be_undone_is_undone_when_the_conversation_is_closed() -> None:
    before = set(threading.enumerate())
    order = HangingOrder()
    cascade = conversation(order, WANTED, TAKEN_BACK)
    assert any(event.kind == "cancel" for event in cascade.timeline().events)
    assert order.happened == []  # it waits until the tool has ended
    assert closed_in_s(cascade) < 5.0
    assert order.happened == ["undone"]
    (undone,) = cascade.timeline().where(kind="undone")
    assert undone.payload["ok"]
    assert set(threading.enumerate()) - before == {order.thread}
    order.let_go.set()
    assert order.thread is not None
    order.thread.join(5)
    assert order.happened == ["undone", "ordered", "undone"]  # no effect stays


def test_what_hangs_when_it_is_to_be_undone_is_waited_for_half_of_the_time() -> None:
    before = set(threading.enumerate())
    order = HangingOrder()
    order.undo_hangs = True
    cascade = conversation(order, WANTED, TAKEN_BACK)
    began_s = time.monotonic()
    cascade.close(4.0)
    assert 1.9 < time.monotonic() - began_s < 3.5
    (undone,) = cascade.timeline().where(kind="undone")
    assert undone.payload["why"] == "no result when the conversation was closed"
    assert set(threading.enumerate()) - before == {order.thread, order.undo_thread}
    order.let_go.set()
    for thread in (order.thread, order.undo_thread):
        assert thread is not None
        thread.join(5)
    assert order.happened.index("ordered") < len(order.happened) - 1  # it was undone after that


def test_what_is_taken_back_in_the_last_block_is_undone_without_threads_too() -> None:
    clock = FakeClock()
    order = HangingOrder()
    order.let_go.set()
    calls = Calls([order.tool()], lambda: TimedLane(clock))
    wanted = '{"name": "order", "arguments": {}}'
    calls.request(wanted, 1, 0.0)
    for now_s in (0.0, 1.0):
        calls.advance(now_s, is_over=False)
    calls.cancel(wanted, 1, 1.0)
    assert order.happened == ["ordered"]
    for _ in range(2):  # to leave twice changes nothing
        close_lanes(calls.leave(1.0, 1.0), 1.0)
        assert order.happened == ["ordered", "undone"]
    told = [(one.kind, one.payload.get("ok")) for one in calls.take_events()]
    assert told == [("call", True), ("cancel", None), ("undone", True)]
