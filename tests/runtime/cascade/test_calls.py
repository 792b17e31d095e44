"""Tools that are slow, fail, hang, return rubbish or a megabyte, and calls that are taken back."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.data.tools import Effect, Tool, argument_fault
from counterpoint.runtime.cascade.calls import CallRules, Calls
from counterpoint.runtime.cascade.lanes import ThreadLane, TimedLane
from counterpoint.streams.timeline import Event
from tests.runtime.cascade.scripted import FakeClock

SIZES = {"type": "string", "enum": ["small", "large"]}
PARAMETERS = {"type": "object", "properties": {"size": SIZES}, "required": ["size"]}


class Counter:
    """A counter of orders: an order is in force from its call to its undoing, once for each key."""

    def __init__(self, clock: FakeClock | None = None, cost_s: float = 0.0) -> None:
        self.orders: dict[str, str] = {}
        self.keys: list[str] = []
        self.failures: list[Exception] = []
        self._clock = clock
        self._cost_s = cost_s

    def order(self, size: str, key: str) -> dict[str, str]:
        self.keys.append(key)
        if self._clock is not None:
            self._clock.now_s += self._cost_s
        if self.failures:
            raise self.failures.pop()
        self.orders[key] = size
        return {"ordered": size}

    def undo(self, key: str) -> None:
        self.orders.pop(key, None)

    def tool(self, effect: Effect = "undoable", limit_s: float = 5.0) -> Tool:
        return Tool(
            name="order",
            description="Orders a drink.",
            parameters=PARAMETERS,
            function=self.order,
            effect=effect,
            undo=self.undo if effect == "undoable" else None,
            limit_s=limit_s,
        )


def wanted(size: str) -> str:
    return json.dumps({"name": "order", "arguments": {"size": size}})


def tool_of(function: Callable[..., Any], limit_s: float = 0.2) -> Tool:
    return Tool(
        name="order",
        description="",
        parameters=PARAMETERS,
        function=function,
        effect="none",
        limit_s=limit_s,
    )


def run(calls: Calls, *, is_over: bool = True, until_s: float = 10.0) -> list[Event]:
    """Let time pass until every call is settled."""
    now_s = 0.0
    while now_s < until_s:
        calls.advance(now_s, is_over=is_over)
        now_s += 0.032
    return calls.take_events()


def outcomes(events: list[Event]) -> list[Any]:
    made = [one for one in events if one.kind == "call"]
    return ["ok" if one.payload["ok"] else one.payload.get("why") for one in made]


def calls_of(tool: Tool, clock: FakeClock | None = None, rules: CallRules | None = None) -> Calls:
    return Calls([tool], lambda: TimedLane(clock or FakeClock()), rules)


# ----------------------------------------------------------------------- what tools may do


def test_failed_call_is_repeated_with_the_same_key() -> None:
    counter = Counter()
    counter.failures = [OSError("busy"), OSError("busy")]
    calls = calls_of(counter.tool())
    calls.request(wanted("small"), 1, 0.0)
    events = run(calls)
    assert outcomes(events) == ["OSError: busy", "OSError: busy", "ok"]
    assert len(set(counter.keys)) == 1
    assert counter.orders == {counter.keys[0]: "small"}
    tries = [one.start_s for one in events if one.kind == "call"]
    assert tries[1] - tries[0] >= 0.5
    assert calls.calls[0].result == '{"ordered": "small"}'


@pytest.mark.parametrize(("effect", "tries"), [("undoable", 4), ("lasting", 1)])
def test_failed_call_is_made_anew_if_it_is_asked_for_again(effect: Effect, tries: int) -> None:
    counter = Counter()
    counter.failures = [OSError("busy")] * 3
    calls = calls_of(counter.tool(effect))
    first = calls.request(wanted("small"), 1, 0.0)
    run(calls)
    assert calls.request(wanted("small"), 1, 10.0) is first
    assert outcomes(run(calls)) == []
    assert calls.request(wanted("small"), 1, 10.0, again=True) is first
    assert outcomes(run(calls)) == ["ok"] * (tries == 4)
    assert len(counter.keys) == tries
    assert len(set(counter.keys)) == 1
    calls.request(wanted("small"), 1, 20.0, again=True)
    assert outcomes(run(calls)) == []


def test_call_that_waits_to_be_repeated_has_all_attempts_if_it_is_asked_for_again() -> None:
    counter = Counter()
    counter.failures = [OSError("busy")] * 5
    calls = calls_of(counter.tool())
    calls.request(wanted("small"), 1, 0.0)
    run(calls, until_s=0.7)  # two attempts
    assert len(counter.keys) == 2
    calls.request(wanted("small"), 1, 0.7, again=True)
    assert outcomes(run(calls)) == ["OSError: busy"] * 3
    assert calls.calls[0].state == "failed"


def test_lasting_call_waits_for_the_end_and_is_never_repeated() -> None:
    counter = Counter()
    counter.failures = [OSError("busy")]
    calls = calls_of(counter.tool("lasting"))
    calls.request(wanted("small"), 1, 0.0)
    assert run(calls, is_over=False) == []
    assert outcomes(run(calls)) == ["OSError: busy"]
    assert counter.keys == ["turn 1, call 1"]
    assert calls.calls[0].state == "failed"


class Endless:
    """A value that is no JSON."""


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (Endless(), "the result is no JSON"),
        (float("nan"), "the result is no JSON"),
        ({"a": {1, 2}}, "the result is no JSON"),
        ("x" * 1_000_000, "the result has 1000002 bytes, at most 65536"),
        (b"\x00\xff", "the result is no JSON"),
    ],
)
def test_rubbish_and_a_megabyte_are_failures(result: Any, why: str) -> None:
    calls = calls_of(tool_of(lambda size: result), rules=CallRules(most_attempts=1))
    calls.request(wanted("small"), 1, 0.0)
    (told,) = outcomes(run(calls))
    assert why in told
    assert calls.calls[0].state == "failed"


def test_results_that_contain_themselves_and_exits_are_failures() -> None:
    circle: list[Any] = []
    circle.append(circle)

    def leave(size: str) -> None:
        raise SystemExit(3)

    for function in (lambda size: circle, leave):
        calls = calls_of(tool_of(function), rules=CallRules(most_attempts=1))
        calls.request(wanted("small"), 1, 0.0)
        assert outcomes(run(calls)) != ["ok"]


class WordlessError(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("the machine\nis\tbroken " + "x" * 10**6),
            "RuntimeError: the machine is bro",
        ),
        (WordlessError(), "WordlessError: it has no text"),
    ],
)
def test_what_a_tool_raises_is_one_short_line(error: Exception, told: str) -> None:
    def fail(size: str) -> None:
        raise error

    calls = calls_of(tool_of(fail), rules=CallRules(most_attempts=1))
    calls.request(wanted("small"), 1, 0.0)
    (why,) = outcomes(run(calls))
    assert why.startswith(told)
    assert len(why) <= 200


def test_hanging_tool_ends_in_time_and_too_many_are_refused() -> None:
    release = threading.Event()
    rules = CallRules(most_attempts=3, retry_after_s=0.0, most_hanging=2)
    calls = calls_of(tool_of(lambda size: release.wait(30), limit_s=0.05), rules=rules)
    calls.request(wanted("small"), 1, 0.0)
    assert outcomes(run(calls)) == ["no result within 0.05 s"] * 2 + ["2 calls hang"]
    release.set()


def test_slow_tool_in_a_thread_does_not_hold_up_the_conversation() -> None:
    release = threading.Event()

    def slow(size: str) -> str:
        return "late" if release.wait(30) else "never"

    calls = Calls([tool_of(slow, limit_s=60.0)], ThreadLane)
    calls.request(wanted("small"), 1, 0.0)
    began = time.monotonic()
    calls.advance(0.0, is_over=False)  # it returns, though the tool waits
    release.set()
    while not calls.calls[0].is_settled and time.monotonic() < began + 30:
        calls.advance(time.monotonic() - began, is_over=False)
        time.sleep(0.005)
    assert calls.calls[0].result == '"late"'


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{", "malformed call: JSONDecodeError"),
        ("[]", "malformed call: TypeError"),
        ("3", "malformed call: TypeError"),
        ('{"arguments": {}}', "malformed call: KeyError"),
        ('{"name": ["order"]}', "malformed call: TypeError"),
        ('{"name": "nothing"}', "no tool 'nothing'"),
        ('{"name": "order", "arguments": "small"}', "arguments must be an object"),
        ('{"name": "order", "arguments": {}}', "size missing"),
        ('{"name": "order", "arguments": {"size": 3}}', "size must be of type string"),
        ('{"name": "order", "arguments": {"size": "huge"}}', "size must be one of small, large"),
        ('{"name": "order", "arguments": {"size": "small", "x": 1}}', "no parameter 'x'"),
        ("[" * 100_000, "malformed call: RecursionError"),
    ],
)
def test_malformed_call_is_one_event(written: str, why: str) -> None:
    counter = Counter()
    calls = calls_of(counter.tool())
    calls.request(written, 1, 0.5)
    (event,) = run(calls)
    assert event.kind == "call"
    assert why in event.payload["why"]
    assert len(event.payload["written"]) <= 500
    assert counter.keys == []


def test_booleans_are_no_numbers() -> None:
    schema = {"properties": {"count": {"type": "integer"}}}
    assert argument_fault(schema, {"count": 3}) is None
    assert argument_fault(schema, {"count": True}) is not None


# ------------------------------------------------------------------------- taking back


def test_cancelled_call_is_undone() -> None:
    counter = Counter()
    calls = calls_of(counter.tool())
    calls.request(wanted("large"), 1, 0.0)
    calls.advance(0.1, is_over=False)
    calls.advance(0.2, is_over=False)
    assert list(counter.orders.values()) == ["large"]
    calls.cancel(wanted("large"), 1, 0.3)
    calls.request(wanted("small"), 1, 0.3)
    events = run(calls)
    assert [one.kind for one in events] == ["call", "cancel", "call", "undone"]
    assert list(counter.orders.values()) == ["small"]


class SlowCounter(Counter):
    """A counter whose orders take effect when they are let go, and which counts what it undoes."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.undone: list[str] = []

    def order(self, size: str, key: str) -> dict[str, str]:
        self.begun.set()
        self.let_go.wait(5)
        return super().order(size, key)

    def undo(self, key: str) -> None:
        self.undone.append(key)
        super().undo(key)


def cancelled_while_it_runs(counter: SlowCounter, limit_s: float) -> Calls:
    """Make a call of a slow tool and cancel it."""
    calls = Calls([counter.tool(limit_s=limit_s)], ThreadLane)
    calls.request(wanted("large"), 1, 0.0)
    calls.advance(0.0, is_over=False)
    assert counter.begun.wait(5)
    calls.cancel(wanted("large"), 1, 0.1)
    return calls


def wait_for(calls: Calls, what: Callable[[], bool]) -> None:
    """Let calls advance until something is so."""
    ends = time.monotonic() + 5
    while not what() and time.monotonic() < ends:
        calls.advance(0.2, is_over=False)
        time.sleep(0.002)
    assert what()


def is_undone(calls: Calls) -> bool:
    return any(one.kind == "undone" for one in calls.events)


def test_call_that_is_cancelled_while_it_runs_is_undone_once_when_it_has_ended() -> None:
    counter = SlowCounter()
    calls = cancelled_while_it_runs(counter, limit_s=5.0)
    for _ in range(10):
        calls.advance(0.2, is_over=False)
        time.sleep(0.002)
    assert counter.undone == []
    counter.let_go.set()
    wait_for(calls, lambda: is_undone(calls))
    assert counter.orders == {}
    assert counter.undone == counter.keys


def test_effect_that_comes_after_the_longest_time_is_undone_again() -> None:
    counter = SlowCounter()
    calls = cancelled_while_it_runs(counter, limit_s=0.05)
    wait_for(calls, lambda: is_undone(calls))
    assert counter.undone == ["turn 1, call 1"]  # it may have had an effect before it hung
    counter.let_go.set()
    wait_for(calls, lambda: len(counter.undone) == 2)
    assert counter.orders == {}


def test_call_that_is_cancelled_before_it_began_is_never_made() -> None:
    counter = Counter()
    calls = calls_of(counter.tool())
    calls.request(wanted("large"), 1, 0.0)
    calls.advance(0.0, is_over=False)  # it waits in its lane
    calls.cancel(wanted("large"), 1, 0.0)
    assert [one.kind for one in run(calls)] == ["call", "cancel"]
    assert counter.keys == []


def test_settled_calls_of_earlier_turns_are_forgotten_with_their_results() -> None:
    counter = Counter()
    calls = calls_of(counter.tool())
    for turn in range(1, 4):
        calls.forget_before(turn)
        calls.request(wanted("small"), turn, 0.0)
        run(calls)
        assert [one.turn for one in calls.calls] == [turn]
    assert counter.keys == [f"turn {turn}, call {turn}" for turn in range(1, 4)]


def test_lasting_call_that_was_made_cannot_be_taken_back() -> None:
    counter = Counter()
    calls = calls_of(counter.tool("lasting"))
    calls.request(wanted("large"), 1, 0.0)
    run(calls)
    calls.cancel(wanted("large"), 1, 20.0)
    assert calls.take_events() == []
    assert list(counter.orders.values()) == ["large"]


def test_undo_that_fails_is_told() -> None:
    counter = Counter()

    def stuck(key: str) -> None:
        raise OSError("no way back")

    calls = calls_of(replace(counter.tool(), undo=stuck))
    calls.request(wanted("large"), 1, 0.0)
    run(calls)
    calls.cancel(wanted("large"), 1, 0.0)
    (undone,) = [one for one in run(calls) if one.kind == "undone"]
    assert undone.payload["why"] == "OSError: no way back"


def test_tool_must_have_an_undo_exactly_if_it_is_undoable() -> None:
    with pytest.raises(ValueError, match="exactly if its effect is undoable"):
        replace(Counter().tool("lasting"), effect="undoable")


def test_failed_call_that_may_have_had_an_effect_is_undone_when_it_is_taken_back() -> None:
    counter = Counter()

    def order(size: str, key: str) -> dict[str, str]:
        counter.order(size, key)
        raise OSError("the line broke after the order")

    calls = Calls([replace(counter.tool(), function=order)], ThreadLane)
    calls.request(wanted("small"), 1, 0.0)
    deadline_s = time.monotonic() + 5.0
    now_s = 0.0
    while not calls.calls[0].is_settled and time.monotonic() < deadline_s:
        calls.advance(now_s, is_over=True)
        now_s += 0.1
        time.sleep(0.001)
    assert calls.calls[0].state == "failed"
    assert counter.orders
    calls.cancel(wanted("small"), 1, now_s)
    while counter.orders and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert not counter.orders
