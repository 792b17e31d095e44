"""Spoken orders against the clock: does a model have its tool called before the speech is over?

A model hears held-out orders of `SpokenOrdersData` in words, chunk by chunk, and calls the tool of
a small world. What the world holds in the end is the judge. Time is simulated: a token takes what
the data say, and a call what is chosen here.

Source: the tool task of SHANKS (arXiv:2510.06917), section 3.2, with orders of our own.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from counterpoint.data.tasks.spoken_orders.menu import in_order
from counterpoint.data.tasks.spoken_orders.rounds import (
    ORDERED,
    answer_to,
    order_chunks,
    spaced,
)
from counterpoint.data.tasks.spoken_orders.source import OrderPace, SpokenOrdersData
from counterpoint.data.tasks.spoken_tools import (
    MadeCall,
    ToolOutcome,
    ToolRequest,
    score_requests,
    tool_policies,
)
from counterpoint.data.tasks.tool_world import Faults, OrderWorld
from counterpoint.data.tools import Tool
from counterpoint.errors import UserError
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.runtime.cascade.calls import CALL, CANCEL, Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.clocked import ClockedDecoder, Part, Proposal, Thinker
from counterpoint.runtime.clocks import SimulatedClock
from counterpoint.runtime.listening import clock_of, thinker_of
from counterpoint.streams.rounds import ANSWER, HEARD, THOUGHT
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.contract import System


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderCounter:
    """How the counter behaves at which orders are made.

    Attributes:
        call_s: Seconds that every attempt of a call takes.
        failures: Number of first attempts of every call that fail.
    """

    call_s: float = 0.0
    failures: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.call_s < math.inf and self.failures >= 0):
            raise UserError(
                "`call_s` must be 0 or more seconds, and `failures` 0 or more: got "
                f"{self.call_s} and {self.failures}."
            )


class Served(NamedTuple):
    """An order, and what came of it.

    Attributes:
        request: The order, with the times at which its call is determined and its speech ends.
        outcome: What was called, and what is in force in the end.
        timeline: What was heard, thought, called and answered.
    """

    request: ToolRequest
    outcome: ToolOutcome
    timeline: Timeline


class OrderMaker:
    """Thinks and answers what the program writes that makes the data; a `Thinker`.

    Args:
        request: The order.
        data: The data.
        words_per_s: Words that are spoken in a second.
    """

    def __init__(self, request: ToolRequest, data: SpokenOrdersData, words_per_s: float) -> None:
        self._words = data.words
        self._marks = data.marks
        rounds = data.told_rounds(request.text.split(), OrderPace(words_per_s, 0))
        self._thoughts = [one[THOUGHT] for one in rounds if HEARD in one]  # up to the call
        self._answer = rounds[-1][ANSWER]
        self._goes_on = data.retold  # after a thought that was closed before its end
        self._is_told = False  # of a response that it has not thought about
        self._ahead: list[int] = []
        self._left = ""  # of such a thought
        self._proposed: str | None = None

    def hear(self, content: Any) -> None:
        """Think about the next chunk; see `Thinker.hear`."""
        begun = (ORDERED if self._is_told else "") + self._left
        self._left = ""
        self._think(begun + self._thoughts.pop(0))

    def read(self, text: str) -> None:
        """Go on after its own piece, a response, or the end of its time; see `Thinker.read`."""
        if text == self._proposed:
            self._ahead.pop(0)
            self._is_told = self._is_told and text != ORDERED
        elif text.startswith(self._marks.response):
            self._is_told = True
            self._think(ORDERED + (self._rest() or self._marks.close))
        elif text == self._marks.close:
            self._left = self._rest().removesuffix(text) if self._goes_on else ""
            self._ahead = []
        self._proposed = None

    def propose(self) -> Proposal:
        """Return the next piece of the thought, or else of the answer; see `Thinker.propose`."""
        if not self._ahead:
            self._think(self._answer)
        self._proposed = self._words.decode(np.array(self._ahead[:1]))
        return Proposal(self._proposed)

    def _rest(self) -> str:
        return self._words.decode(np.array(self._ahead, int))

    def _think(self, text: str) -> None:
        self._ahead = self._words.encode(text).tolist()


def serve(
    system: System, data: SpokenOrdersData, number: int, counter: OrderCounter | None = None
) -> Served:
    """Let a system hear a held-out order and call its tool; see `serve_by`.

    Args:
        system: A system that was trained on the data, in evaluation mode.
        data: The data.
        number: Number of the order.
        counter: How the counter behaves.
    """
    return serve_by(thinker_of(system, data), data, number, counter)


def serve_by(
    thinker: Thinker, data: SpokenOrdersData, number: int, counter: OrderCounter | None = None
) -> Served:
    """Let a thinker hear a held-out order and call its tool; for the arguments see `serve`."""
    request = timed_request(data, number)
    return serve_parts(thinker, data, request, _parts(request, data, number), counter)


def serve_parts(
    thinker: Thinker,
    data: SpokenOrdersData,
    request: ToolRequest,
    parts: Iterable[Part],
    counter: OrderCounter | None = None,
) -> Served:
    """Let a thinker hear an order in chunks, and call its tool.

    Args:
        thinker: The thinker.
        data: The data whose clock it has.
        request: The order, with the time at which its speech ends.
        parts: The chunks.
        counter: How the counter behaves.
    """
    config = clock_of(data)
    clock = SimulatedClock(config.tokens_per_s)
    own = counter or OrderCounter()
    watch = _Watch()
    world = OrderWorld(Faults(failures=own.failures))
    calls = Calls(_taking(world.tools(), own.call_s, watch), lambda: TimedLane(watch))
    decoder = ClockedDecoder(thinker, config, clock, ClockedCalls(calls, clock))
    timeline = decoder.hear_all(parts)
    taken_back = {event.payload["call"] for event in calls.events if event.kind == CANCEL}
    made = tuple(  # when the results came, which the model may read later
        MadeCall(name, arguments, event.end_s)
        for event in calls.events
        if event.kind == CALL and event.payload["ok"]
        if event.payload["call"] not in taken_back
        for name, arguments in [json.loads(event.text)]
    )
    # A lane runs a tool when it is asked, which may be before its simulated time: what came of it
    # counts once its result has come.
    succeeded = [(call.name, call.arguments) for call in made]
    in_force = tuple(call for call in world.in_force if call in succeeded)
    return Served(request, ToolOutcome(made, in_force, request.stop_s or 0.0), timeline)


def timed_request(data: SpokenOrdersData, number: int) -> ToolRequest:
    """Return a held-out order with the times of its words."""
    request = data.request(number, held_out=True)
    word_s = 1 / data.pace(number, held_out=True).words_per_s
    calls = tuple(call._replace(known_s=call.known_words * word_s) for call in request.calls)
    return replace(request, calls=calls, stop_s=len(request.text.split()) * word_s)


class _Watch:
    """Seconds that calls have taken, as the lanes of a conversation read them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _taking(tools: Sequence[Tool], call_s: float, watch: _Watch) -> list[Tool]:
    """Return tools of which every call takes so many seconds on a watch."""

    def slow(tool: Tool) -> Tool:
        def call(*args: Any, **arguments: Any) -> Any:
            watch.now_s += call_s
            return tool.function(*args, **arguments)

        return replace(tool, function=call)

    return [slow(tool) for tool in tools]


def _parts(request: ToolRequest, data: SpokenOrdersData, number: int) -> Iterator[Part]:
    pace = data.pace(number, held_out=True)
    told: list[str] = []
    for chunk in order_chunks(request.text.split(), pace.words_per_s, data.chunk_s):
        told += chunk.words
        heard = told if data.retold and chunk.words else chunk.words
        yield Part(spaced(heard), chunk.start_s, chunk.end_s, " ".join(chunk.words))


def serve_by_maker(
    data: SpokenOrdersData, number: int, counter: OrderCounter | None = None
) -> Served:
    """Let the program that writes the thoughts of an order hear it: what is possible in time."""
    request = data.request(number, held_out=True)
    maker = OrderMaker(request, data, data.pace(number, held_out=True).words_per_s)
    return serve_by(maker, data, number, counter)


SCORES = {
    "right": "orders after which exactly the right one is in force",
    "early": "right orders whose call succeeded before the speech ended, and was kept",
    "stale": "corrected orders of which the old one is in force",
    "said": "answers that name the right order",
    "lead_s": "median seconds from the success of the call to the end of the speech",
}
"""What the scores of orders are, by name."""


def order_scores(served: Sequence[Served]) -> dict[str, Interval]:
    """Return the scores of orders by the names of `SCORES`, with 95 % intervals over orders.

    An order that is not right has no early call. The lead is negative if calls succeed after the
    speech, "nan" if half of the orders or more are not right, and has no interval. Without a
    corrected order none is "stale".

    Raises:
        UserError: There are no orders.
    """
    if not served:
        raise UserError("At least one order must be scored: got none.")
    each = [score_requests([one.request], [one.outcome]) for one in served]
    every = [1.0] * len(served)
    corrected = [float(bool(one.request.stale)) for one in served]
    said = [float(_says_what_is_right(one)) for one in served]
    lead_s = statistics.median(
        _lead_s(one) if score["success"] else -math.inf
        for one, score in zip(served, each, strict=True)
    )
    return {
        "right": _share([one["success"] for one in each], every),
        "early": _share([one["early"] * one["success"] for one in each], every),
        "stale": _share([one["stale"] for one in each], corrected),
        "said": _share(said, every),
        "lead_s": _alone(lead_s if math.isfinite(lead_s) else math.nan),
    }


def _share(counts: Sequence[float], of: Sequence[float]) -> Interval:
    return bootstrap_ratio(np.array(counts), np.array(of)) if any(of) else _alone(0.0)


def _alone(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def order_floors(data: SpokenOrdersData, numbers: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the scores of policies that learn nothing, and of perfect ones, early and late.

    Args:
        data: The data.
        numbers: Numbers of the orders.

    Returns:
        The scores of `score_requests` by policy; see `tool_policies`.
    """
    requests = [timed_request(data, number) for number in numbers]
    return {
        name: score_requests(requests, [act(request) for request in requests])
        for name, act in tool_policies(requests).items()
    }


def _says_what_is_right(served: Served) -> bool:
    """Return whether the answer is the one that the right call asks for."""
    answers = [event.text for event in served.timeline.where(kind="answer")]
    said = [in_order(call.arguments) for call in served.request.calls]
    return answers == [answer_to(own).strip() for own in said]


def _lead_s(served: Served) -> float:
    """Return the seconds from the success of the last right call to the end of the speech."""
    right = [(call.name, call.arguments) for call in served.request.calls]
    at_s = [call.at_s for call in served.outcome.made if (call.name, call.arguments) in right]
    return served.outcome.stop_s - max(at_s, default=math.inf)
