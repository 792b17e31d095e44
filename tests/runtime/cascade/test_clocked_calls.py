"""The calls of a cascade as tools of a model that thinks against a clock."""

import time

import pytest

from counterpoint.data.tools import Effect, Tool
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import ThreadLane, TimedLane
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder
from counterpoint.runtime.clocks import SimulatedClock, Tools
from counterpoint.streams.rounds import CANCEL
from counterpoint.streams.timeline import Event, Timeline
from tests.runtime.cascade.scripted import FakeClock
from tests.runtime.cascade.test_calls import Counter, tool_of, wanted
from tests.runtime.test_clocked import Program

CONFIG = ClockConfig(chunk_s=4.0, tokens_per_s=2.0)


def calling(written: str) -> list[str]:
    return ["<tool_call>", written, "</tool_call>", "</think>"]


def hold(tool: Tool, *thoughts: list[str], lanes: FakeClock | None = None) -> ClockedDecoder:
    """Let a program think aloud, the last time after the speech has ended."""
    clock = SimulatedClock(CONFIG.tokens_per_s)
    calls = Calls([tool], lambda: TimedLane(lanes or FakeClock()))
    tools = ClockedCalls(calls, clock)
    assert isinstance(tools, Tools)
    decoder = ClockedDecoder(Program(*thoughts), CONFIG, clock, tools)
    for number in range(len(thoughts)):
        last = number == len(thoughts) - 1
        decoder.hear(number, 4 * number, 4 * number + 4, last=last)
    return decoder


def calls_of(timeline: Timeline) -> list[Event]:
    return [*timeline.where(kind="call")]


def context(decoder: ClockedDecoder) -> list[str]:
    assert isinstance(decoder.thinker, Program)
    return decoder.thinker.context


def test_call_that_fails_is_repeated_while_the_user_speaks() -> None:
    counter = Counter()
    counter.failures = [OSError("busy"), OSError("busy")]
    decoder = hold(counter.tool(), calling(wanted("small")), ["</think>"])
    (call,) = calls_of(decoder.timeline)
    assert (call.payload["ok"], call.payload["early"]) == (True, True)
    assert call.payload["response"] == '{"ordered": "small"}'
    assert (call.start_s, call.text) == (5.5, wanted("small"))
    assert call.end_s == pytest.approx(5.5 + 0.5 + 1.0, abs=0.1)  # two waits between attempts
    assert counter.keys == ["turn 0, call 1"] * 3
    assert counter.orders == {"turn 0, call 1": "small"}
    response = '<tool_response>{"ordered": "small"}</tool_response>'
    assert context(decoder)[4:7] == ["</tool_call>", response, "</think>"]


def test_call_that_is_slow_is_answered_in_the_next_round_and_made_once() -> None:
    lanes = FakeClock()
    counter = Counter(lanes, cost_s=3.0)
    again = calling(wanted("small"))
    decoder = hold(counter.tool(), calling(wanted("small")), again, ["</think>"], lanes=lanes)
    first, second = calls_of(decoder.timeline)
    assert first.start_s == 5.5
    assert first.end_s == second.start_s == second.end_s == 9.5  # it was there since 8.5
    assert [one.payload["ok"] for one in (first, second)] == [True, True]
    assert len(counter.keys) == 1


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{bad json", "malformed call: JSONDecodeError"),
        ("[1]", "malformed call: TypeError"),
        ('{"name": "sing"}', "no tool 'sing'"),
        ('{"name": "order", "arguments": {"size": "huge"}}', "size must be one of small, large"),
    ],
)
def test_what_is_no_call_is_told(written: str, why: str) -> None:
    counter = Counter()
    decoder = hold(counter.tool(), calling(written), ["</think>"])
    (call,) = calls_of(decoder.timeline)
    assert (call.text, call.payload["ok"]) == (written, False)
    assert why in call.payload["why"]
    assert f"<tool_response>{call.payload['why']}</tool_response>" in context(decoder)
    assert counter.keys == []


@pytest.mark.parametrize(("effect", "num_orders"), [("undoable", 1), ("lasting", 0)])
def test_lasting_call_is_refused_while_the_user_speaks(effect: Effect, num_orders: int) -> None:
    counter = Counter()
    decoder = hold(counter.tool(effect), calling(wanted("small")), ["</think>"])
    assert len(counter.orders) == num_orders
    (call,) = calls_of(decoder.timeline)
    assert call.payload["ok"] == bool(num_orders)
    assert num_orders or "only when the user has finished" in call.payload["why"]


def test_lasting_call_is_made_when_the_user_has_finished() -> None:
    counter = Counter()
    decoder = hold(counter.tool("lasting"), calling(wanted("small")), calling(wanted("small")))
    early, late = calls_of(decoder.timeline)
    assert (early.payload["ok"], late.payload["ok"]) == (False, True)
    assert [*counter.orders.values()] == ["small"]


def test_call_that_fails_before_the_end_is_repeated_after_it_and_answered() -> None:
    """The attempt fails at 8.3 s, after the end of the speech, and is repeated at 8.8 s."""
    lanes = FakeClock()
    counter = Counter(lanes, cost_s=2.8)
    counter.failures = [OSError("busy")]
    clock = SimulatedClock(CONFIG.tokens_per_s)
    calls = Calls([counter.tool()], lambda: TimedLane(lanes))
    thoughts = calling(wanted("small")), ["</think>", "done", "</think>"]
    decoder = ClockedDecoder(Program(*thoughts), CONFIG, clock, ClockedCalls(calls, clock))
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=True)
    (call,) = calls_of(decoder.timeline)
    assert (call.payload["early"], call.payload["ok"]) == (True, True)
    assert call.end_s == pytest.approx(8.3 + 0.5 + 2.8, abs=0.1)
    assert [one.payload["early"] for one in calls.events] == [True, False]
    assert context(decoder)[-4:-2] == [
        '<tool_response>{"ordered": "small"}</tool_response>', "done",
    ]  # fmt: skip


def test_result_that_is_too_long_is_no_response() -> None:
    tool = tool_of(lambda size: "x" * 1_000_000)
    decoder = hold(tool, calling(wanted("small")), ["</think>"])
    (call,) = calls_of(decoder.timeline)
    assert call.payload["ok"] is False
    assert "at most 65536" in call.payload["why"]


class RealClock:
    """The time since it was made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began_s

    def reach(self, time_s: float) -> None:
        time.sleep(max(time_s - self.now(), 0.0))

    def write_token(self) -> None:
        pass


def test_tool_that_runs_in_a_thread_is_waited_for() -> None:
    clock = RealClock()
    counter = Counter()
    tools = ClockedCalls(Calls([counter.tool()], ThreadLane), clock)
    decoder = ClockedDecoder(Program(calling(wanted("small"))), CONFIG, clock, tools)
    decoder.hear("one", 0.0, 0.0, last=True)
    (call,) = calls_of(decoder.timeline)
    assert call.payload["response"] == '{"ordered": "small"}'


def test_call_that_is_taken_back_is_undone_and_may_be_made_again() -> None:
    counter = Counter()
    other = [CANCEL, *calling(wanted("large"))]
    decoder = hold(counter.tool(), calling(wanted("small")), other, ["</think>"])
    assert counter.orders == {"turn 0, call 2": "large"}
    decoder = hold(counter.tool(), calling(wanted("small")), [CANCEL, "</think>"], ["</think>"])
    assert not counter.orders.keys() & {"turn 0, call 1"}
    again = [CANCEL, *calling(wanted("small"))]
    decoder = hold(counter.tool(), calling(wanted("small")), again, ["</think>"])
    assert [one.payload["ok"] for one in calls_of(decoder.timeline)] == [True, True]
    assert counter.orders["turn 0, call 2"] == "small"


def test_call_that_is_taken_back_while_it_runs_has_no_effect_in_the_end() -> None:
    lanes = FakeClock()
    counter = Counter(lanes, cost_s=3.0)
    back = [CANCEL, "</think>"]
    decoder = hold(counter.tool(), calling(wanted("small")), back, ["</think>"], lanes=lanes)
    assert not counter.orders
    (call,) = calls_of(decoder.timeline)
    assert call.payload["ok"] is None


def test_refused_call_is_taken_back_without_an_effect() -> None:
    counter = Counter()
    tool = counter.tool("lasting")
    decoder = hold(tool, calling(wanted("small")), [CANCEL, "</think>"], ["</think>"])
    assert counter.keys == []
    (cancel,) = decoder.timeline.where(kind="cancel")
    assert cancel.payload["call"] == 0


def test_lasting_effect_is_not_taken_back_and_says_so() -> None:
    counter = Counter()
    last = [*calling(wanted("small"))[:-1], CANCEL, *calling(wanted("large"))]
    decoder = hold(counter.tool("lasting"), ["</think>"], last)
    (cancel,) = decoder.timeline.where(kind="cancel")
    assert cancel.payload["why"] == "what order did cannot be undone"
    assert [*counter.orders.values()] == ["small", "large"]
    assert [one.payload["ok"] for one in calls_of(decoder.timeline)] == [True, True]


def test_call_that_was_asked_for_twice_stands_until_it_is_taken_back_twice() -> None:
    for num_cancels, is_made in ((1, True), (2, False)):
        counter = Counter()
        twice = [calling(wanted("small"))] * 2
        decoder = hold(counter.tool(), *twice, [*[CANCEL] * num_cancels, "</think>"], ["</think>"])
        assert bool(counter.orders) == is_made
        assert len(decoder.timeline.where(kind="cancel")) == num_cancels
