"""The tool calls of a conversation: made early, repeated when they fail, taken back when wrong.

A call goes through the states waiting -> running -> done, or failed, or cancelled. A tool that is
not safe (`Tool.is_safe`) waits until the user has finished, and is not made at all if the agent
interrupts the user before that, or if words of the turn could not be recognised
(`Calls.withhold`). A call that failed is made again with the same idempotency key, unless its tool
is not safe: then nobody knows what a second call would do. A call that is asked for `again` has all
its attempts before it. A call that the user no longer wants is cancelled. If it was made, its
effect is undone once, when its tool has ended or has taken its longest time; if the tool ends after
that, the effect is undone again. Settled calls of turns that are over are forgotten
(`Calls.forget_before`).

Whatever a tool does, the conversation goes on: it may raise, return what is no JSON, return too
much, or never return. Each of these is an event with a reason.

Events on the stream "agent" (those of `counterpoint.runtime.clocked`, and two more):

    kind      from, to                       payload
    call      the attempt, its result        call, early, ok, response or why, attempt, turn
    cancel    the cancellation               call, was (its state before), turn
    undone    the effect was taken back      call, ok, why, turn

``ok`` is null for a call that was cancelled before its result came, and for one that was "left"
(``why``) when the conversation was closed: its effect may come later. Text that is no call gives an
event "call" with ``ok`` false and what was ``written``.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from counterpoint.data.tools import Tool, argument_fault, canonical
from counterpoint.runtime.cascade.attempts import CallAttempt
from counterpoint.runtime.cascade.lanes import Lane, LaneFactory
from counterpoint.runtime.talk import AGENT
from counterpoint.streams.timeline import Event

CALL = "call"
CANCEL = "cancel"
UNDONE = "undone"
"""Kinds of its events."""

_MOST_BYTES_UNDONE = 100  # what undoes a call gives no result

CallState = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """A call and what became of it.

    Attributes:
        number: Number of the call in the conversation.
        tool: The tool.
        arguments: Its arguments.
        turn: Number of the user's turn that asks for it.
        state: What became of it so far.
        attempts: How often it was made since it was asked for, or asked for `again`.
        result: JSON text of the result.
        reason: Why it failed.
        began_s: Time of the newest attempt.
        is_early: Whether the user was still speaking then.
        is_given_up: Whether the answer must do without it: it could not wait for the result, or the
            call may not be made.
        retry_s: Time from which on it may be made again.
        tries: Its attempts, of which some may still run.
    """

    number: int
    tool: Tool
    arguments: Mapping[str, Any]
    turn: int
    state: CallState = "waiting"
    attempts: int = 0
    result: str = ""
    reason: str = ""
    began_s: float = 0.0
    is_early: bool = False
    is_given_up: bool = False
    retry_s: float = 0.0
    tries: list[CallAttempt] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Idempotency key: equal for all attempts."""
        return f"turn {self.turn}, call {self.number}"

    @property
    def is_wanted(self) -> bool:
        """Whether it was asked for and not taken back."""
        return self.state != "cancelled"

    def said(self) -> str:
        """Return what the user is told about the result; empty if the tool has no words for it.

        The words are code of the tool, which may fail on a result that it did not expect.
        """
        if self.state != "done" or self.tool.say is None:
            return ""
        words = None
        with suppress(Exception):
            words = self.tool.say(json.loads(self.result))
        return words if isinstance(words, str) else ""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(kw_only=True, slots=True)
class CallRules:
    """Limits of calls.

    Attributes:
        most_attempts: How often a call is made at most.
        retry_after_s: Seconds between a failure and the next attempt.
        most_bytes: Longest result, in bytes of JSON.
        most_hanging: Calls that may hang at once; further ones are refused.
    """

    most_attempts: int = 3
    retry_after_s: float = 0.5
    most_bytes: int = 65_536
    most_hanging: int = 8


class Calls:
    """All calls of a conversation.

    Args:
        tools: The tools that can be called.
        lanes: Makes the lane in which a call, or the undoing of one, runs.
        rules: Limits of the calls.
    """

    def __init__(
        self, tools: Sequence[Tool], lanes: LaneFactory, rules: CallRules | None = None
    ) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.rules = rules or CallRules()
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self._lanes = lanes
        self._number = 0
        self._first_turn = 0
        self._running: dict[int, tuple[Call, Lane]] = {}
        self._undoing: list[tuple[Call, Lane, CallAttempt]] = []
        self._hanging: list[CallAttempt] = []

    def of_turn(self, turn: int) -> tuple[Call, ...]:
        """Return the calls that a turn asked for, and those of the turns that it goes on with.

        These are the turns that `forget_before` has left: no answer to them was heard.
        """
        return tuple(call for call in self.calls if self._first_turn <= call.turn <= turn)

    def request(self, block: str, turn: int, now_s: float, *, again: bool = False) -> Call | None:
        """Ask for the call that a model wrote, if the same is not asked for already.

        Args:
            block: JSON text with `name` and `arguments`.
            turn: Number of the user's turn.
            now_s: Time of the conversation.
            again: Whether an equal call without a result is made anew, as often as a new one and
                with its key, if its tool is safe.

        Returns:
            The call, perhaps an equal one of before; ``None`` if what was written is none, which
            the newest event tells.
        """
        written = self._read(block, now_s)
        if written is None:
            return None
        tool, arguments = written
        made = [
            call
            for call in self._find(tool, arguments, turn)
            if call.state != "failed" or call.turn == turn or not tool.is_safe
        ]
        if not made:
            self._number += 1
            made = [Call(number=self._number, tool=tool, arguments=arguments, turn=turn)]
            self.calls += made
        elif again and tool.is_safe and made[0].state != "done":
            self._renew(made[0])
        return made[0]

    def cancel(self, block: str, turn: int, now_s: float) -> None:
        """Take back the call that a model names, and undo its effect if its tool can.

        The arguments are those of `request`.
        """
        written = self._read(block, now_s)
        if written is not None:
            for call in self._find(*written, turn):
                self.retract(call, now_s)

    def refuse(self, block: str, why: str, now_s: float) -> None:
        """Tell that what a model wrote is no call.

        Args:
            block: What was written.
            why: What is wrong with it, in one line.
            now_s: Time of the conversation.
        """
        payload = {"ok": False, "why": why, "written": block[:500]}
        self._event(CALL, now_s, now_s, "", payload)

    def retract(self, call: Call, now_s: float) -> None:
        """Cancel a call; a call with a lasting effect that was made already stays."""
        if call.state == "cancelled" or (call.state != "waiting" and not call.tool.is_safe):
            return
        if call.state == "failed" and call.tool.undo is None:
            return  # a failed call may have had an effect, but nothing can take it back
        was = call.state
        call.state = "cancelled"
        if call.number in self._running:
            self._running.pop(call.number)[1].stop()
            self._note(CALL, call, now_s, ok=None)
        self._note(CANCEL, call, now_s, was=was)
        for attempt in call.tries:
            attempt.abandon()
        if call.tool.undo is not None and any(attempt.has_begun for attempt in call.tries):
            lane = self._lanes()
            attempt = CallAttempt(partial(_undone, call), call.tool.limit_s, _MOST_BYTES_UNDONE)
            lane.start(_undo(call, attempt), now_s)
            self._undoing.append((call, lane, attempt))

    def give_up(self, call: Call, now_s: float) -> None:
        """Let an answer not wait for a call any longer; a lasting one that was made goes on."""
        call.is_given_up = True
        self.retract(call, now_s)

    def withhold(self, turn: int, now_s: float, *, is_told: bool = False) -> None:
        """Cancel the waiting calls of tools that are not safe: it is not sure that they are wanted.

        Args:
            turn: Number of the user's turn.
            now_s: Time of the conversation.
            is_told: Whether the answer is to tell that they were not made.
        """
        for call in self.of_turn(turn):
            if call.state == "waiting" and not call.tool.is_safe:
                call.is_given_up |= is_told
                self.retract(call, now_s)

    def forget_before(self, turn: int) -> None:
        """Forget the settled calls of earlier turns, with their results."""
        self._first_turn = turn
        self.calls = [call for call in self.calls if call.turn >= turn or not call.is_settled]

    def advance(
        self,
        now_s: float,
        *,
        is_over: bool,
        is_speaking: bool = False,
        makes_early: bool = True,
    ) -> None:
        """Make the calls that may be made now, and take the results that have come.

        Args:
            now_s: Time of the conversation.
            is_over: Whether the user has finished, so that unsafe tools may be called.
            is_speaking: Whether the user's voice is heard.
            makes_early: Whether safe tools are called before the user has finished.
        """
        for call, lane in list(self._running.values()):
            for step in lane.poll(now_s):
                if step.error is not None:
                    self._fail(call, str(step.error), step.at_s)
                elif not step.is_last:
                    self._succeed(call, step.value, step.at_s)
        for call, lane, _ in self._undoing:
            for step in lane.poll(now_s):
                if step.is_last:
                    why = "" if step.error is None else str(step.error)
                    self._note(UNDONE, call, step.at_s, ok=not why, why=why)
        self._undoing = [pair for pair in self._undoing if pair[1].busy]
        for call in self.calls:
            ready = call.state == "waiting" and now_s >= call.retry_s
            if ready and (is_over or (call.tool.is_safe and makes_early)):
                self._make(call, now_s, early=is_speaking)

    def leave(self, now_s: float, wait_s: float) -> list[Lane]:
        """Wait for no call any more, and return the lanes that are still open.

        A call that waits is cancelled, and one that runs is told as left. A tool that hangs cannot
        be ended: its thread stays until it returns. What is to be undone when a tool has ended is
        undone now, and once more if the tool ends after that.

        Args:
            now_s: Time of the conversation.
            wait_s: Longest time for all that is to be undone; what takes longer is told as failed,
                and goes on in its own thread.
        """
        until_s = time.monotonic() + wait_s
        for call in self.calls:
            if call.state == "waiting":
                self.retract(call, now_s)
        running = list(self._running.values())
        undoing = list(self._undoing)
        self._running.clear()
        self._undoing.clear()
        for call in [*(call for call, _ in running), *(call for call, *_ in undoing)]:
            for attempt in call.tries:
                attempt.leave()
        for call, _ in running:
            self._note(CALL, call, now_s, ok=None, why="left")
        for call, lane, attempt in undoing:
            attempt.shorten(until_s - time.monotonic())
            lane.poll(now_s)  # a lane without threads begins here what had not begun
            why = attempt.finish(until_s - time.monotonic())
            self._note(UNDONE, call, now_s, ok=not why, why=why)
        return [lane for _, lane in running] + [lane for _, lane, _ in undoing]

    def take_events(self) -> list[Event]:
        """Return the events since the last time."""
        events = self.events
        self.events = []
        return events

    def _make(self, call: Call, now_s: float, *, early: bool) -> None:
        self._hanging = [attempt for attempt in self._hanging if attempt.is_alive]
        call.attempts += 1
        call.began_s = now_s
        call.is_early = early
        if len(self._hanging) >= self.rules.most_hanging:
            self._fail(call, f"{len(self._hanging)} calls hang", now_s)
            return
        call.state = "running"
        tool = call.tool
        key = {} if tool.effect == "none" else {"key": call.key}
        action = partial(tool.function, **call.arguments, **key)
        late = None if tool.undo is None else partial(tool.undo, call.key)
        attempt = CallAttempt(action, tool.limit_s, self.rules.most_bytes, late)
        call.tries.append(attempt)
        self._hanging.append(attempt)
        lane = self._lanes()
        self._running[call.number] = (call, lane)
        lane.start(attempt.result(), now_s)

    def _renew(self, call: Call) -> None:
        """Let all attempts of a call be before it, beside one that runs."""
        call.attempts = 0
        call.retry_s = 0.0
        if call.state == "failed":
            call.state = "waiting"

    def _succeed(self, call: Call, result: str, at_s: float) -> None:
        self._running.pop(call.number, None)
        call.state = "done"
        call.result = result
        self._note(CALL, call, at_s, ok=True, response=result)

    def _fail(self, call: Call, reason: str, at_s: float) -> None:
        self._running.pop(call.number, None)
        again = call.tool.is_safe and call.attempts < self.rules.most_attempts
        call.state = "waiting" if again else "failed"
        call.reason = reason
        call.retry_s = at_s + self.rules.retry_after_s * call.attempts
        self._note(CALL, call, at_s, ok=False, why=reason, again=again)

    def _find(self, tool: Tool, arguments: Mapping[str, Any], turn: int) -> list[Call]:
        """Return the calls of a turn that are equal and were not cancelled."""
        wanted = canonical(tool.name, arguments)
        return [
            call
            for call in self.of_turn(turn)
            if call.state != "cancelled" and canonical(call.tool.name, call.arguments) == wanted
        ]

    def _read(self, block: str, now_s: float) -> tuple[Tool, dict[str, Any]] | None:
        """Return the tool and arguments that a model wrote; a fault becomes an event."""
        try:
            written = json.loads(block)
            name = written["name"]
            arguments = written.get("arguments", {})
            tool = self.tools.get(name)
            why = f"no tool {name!r}"
            if tool is not None:
                why = argument_fault(tool.parameters, arguments) or ""
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            tool = None
            why = f"malformed call: {type(error).__name__}"
        if tool is None or why:
            self.refuse(block, why, now_s)
            return None
        return tool, arguments

    def _note(self, kind: str, call: Call, at_s: float, **more: Any) -> None:
        payload: dict[str, Any] = {"call": call.number, "turn": call.turn}
        if kind == CALL:
            payload |= {"attempt": call.attempts, "early": call.is_early}
        text = canonical(call.tool.name, call.arguments)
        start_s = call.began_s if kind == CALL else at_s
        self._event(kind, start_s, at_s, text, payload | more)

    def _event(
        self, kind: str, start_s: float, end_s: float, text: str, payload: Mapping[str, Any]
    ) -> None:
        self.events.append(
            Event(
                start_s=start_s,
                end_s=max(start_s, end_s),
                stream=AGENT,
                kind=kind,
                text=text,
                payload=payload,
            )
        )


def _undo(call: Call, undoing: CallAttempt) -> Iterator[str]:
    """Undo a call when all its attempts have ended or have taken their longest time."""
    for attempt in call.tries:
        attempt.settle()
    yield from undoing.result()


def _undone(call: Call) -> None:
    """Undo a call; what the function returns is of no interest."""
    if call.tool.undo is not None:
        call.tool.undo(call.key)
