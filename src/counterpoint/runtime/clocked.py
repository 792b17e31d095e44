"""Thinking against the clock: a model thinks about chunk i of the speech while chunk i + 1 is said.

`ClockedDecoder` drives anything that writes tokens (`Thinker`): a session of a system, a program, a
model behind an endpoint. After every chunk the model may write as many tokens as fit into the time
until the next one; then its thought is closed by force, and nothing is carried over. A thought that
ends with the mark of an interruption makes the model answer at once, and the rest of the speech is
not read.

Calls of tools in a thought are made at once; their responses take time, but no tokens. The thought
goes on when the response of its own call has come, and responses of other calls are read as they
come meanwhile. What has not come when the next chunk is complete is read in a later round. A model
that has learned `CANCEL` takes its newest call back with it, and what the call did is undone if its
tool can; otherwise the event says why the call stands. After the end of the speech all responses
together, also those of calls that were made before, are awaited for `ClockConfig.patience_s` and no
longer: the model thinks once more about each that comes after its last thought, and then it
answers. An answer waits for nothing else, and one that interrupts the user waits for nothing.

Every decision is an event of a `Timeline`:

    stream    kind          from, to                        payload
    user      chunk         start and end of the chunk      chunk, last
    thought   thought       first to last token             chunk, tokens, closed, chances
    agent     call          call written, response arrived  chunk, call, early, ok, response or why
    agent     cancel        the decision                    chunk, call, why if it stands
    agent     interruption  the decision                    chunk, by
    agent     answer        first to last token             chunk, tokens, closed

``text`` holds what was heard, thought, called or answered. ``closed`` says who closed a thought or
an answer: the "model", an "interruption", the "budget" of tokens, or the "clock". ``chances`` are
those of an interruption before each token of the thought, null if the model does not tell. A call
is ``early`` if the user was still speaking, and ``ok`` is null if no response arrived before the
answer, which then ends the event. A response is ``repeated`` if an equal call stood, so that no
other was made. A call without a response that can be used says ``why``: it came too late for the
answer, its tool failed or refused what was written, there are no tools, it was taken back first, or
the thought was closed before the call was complete.

Source: SHANKS (arXiv:2510.06917), section 2.1 and appendix A. Beyond it: tools take time, a
threshold decides about interruptions, responses that come late are read in the next round, and the
model thinks about those that come after its last thought.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from counterpoint.errors import UserError
from counterpoint.runtime.clocks import Clock, SimulatedClock, Tools
from counterpoint.streams.rounds import CANCEL, THOUGHT, Marks
from counterpoint.streams.timeline import Event, Timeline

USER = "user"
AGENT = "agent"

Closed = Literal["model", "interruption", "budget", "clock"]

_CLOSE_ENOUGH_S = 1e-9


class Proposal(NamedTuple):
    """The next token of a model.

    Attributes:
        text: The token.
        interrupt: Chance of `Marks.interrupt` at this place; ``None`` if the model does not tell.
        otherwise: The token that the model would write if it must not interrupt.
    """

    text: str
    interrupt: float | None = None
    otherwise: str = ""


@runtime_checkable
class Thinker(Protocol):
    """Anything that writes tokens after what it has read."""

    def hear(self, content: Any) -> None:
        """Read a chunk of what is heard: text, ids or vectors, as the model needs them."""

    def read(self, text: str) -> None:
        """Read a text: marks, responses, and the tokens that the model wrote itself."""

    def propose(self) -> Proposal:
        """Return the token that the model would write next, without reading it."""


def made_calls(timeline: Timeline) -> tuple[Event, ...]:
    """Return the calls of a timeline, but those that repeat one that stood."""
    calls = timeline.where(kind="call").events
    return tuple(call for call in calls if not call.payload.get("repeated"))


def check_threshold(threshold: float | None) -> None:
    """Refuse what is no threshold of an interruption; see `ClockConfig.threshold`.

    Raises:
        UserError: It is negative or no number.
    """
    if threshold is not None and not threshold >= 0:
        raise UserError(
            "`threshold` must be a chance from 0 to 1, or above 1 for no interruption: got "
            f"{threshold}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockConfig:
    """How a model thinks against the clock.

    Attributes:
        chunk_s: Seconds of a chunk (t_chunk), and thus the time for a thought.
        tokens_per_s: Tokens that the model writes in a second (n_tps).
        answer_tokens: Largest number of tokens of an answer.
        threshold: Chance of an interruption from which the user is interrupted, whatever token the
            model chooses; ``None`` leaves the choice to the model. Above 1 it never interrupts. The
            chances before the first interruption do not depend on it, so one run without any gives
            the decisions under every threshold.
        patience_s: Seconds after the end of the speech for which responses of tools are awaited,
            whenever their calls were made and however many there are.
        last_tokens: Largest number of tokens of the thought after the speech; ``None`` for that of
            the thought about one chunk.
        marks: Texts that structure the sequence.
    """

    chunk_s: float = 4.0
    tokens_per_s: float = 80.0
    answer_tokens: int = 200
    threshold: float | None = None
    patience_s: float = 10.0
    last_tokens: int | None = None
    marks: Marks = field(default_factory=Marks)

    def __post_init__(self) -> None:
        for name in ("chunk_s", "tokens_per_s", "answer_tokens", "last_tokens"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"`{name}` must be positive and finite: got {number}.")
        if self.budget < 1:
            raise UserError(
                "`chunk_s` times `tokens_per_s` must be at least 1, the shortest thought: got "
                f"{self.chunk_s} and {self.tokens_per_s}. Take longer chunks."
            )
        if not 0 <= self.patience_s < math.inf:
            raise UserError(f"`patience_s` must be 0 or more seconds: got {self.patience_s}.")
        check_threshold(self.threshold)

    @property
    def budget(self) -> int:
        """Largest number of tokens of the thought about one chunk."""
        return int(self.chunk_s * self.tokens_per_s + 1e-6)


class Part(NamedTuple):
    """A chunk of what is heard.

    Attributes:
        content: The chunk, as the thinker hears it.
        start_s: Time at which it begins.
        end_s: Time at which it is complete.
        text: Its words, for the timeline.
    """

    content: Any
    start_s: float
    end_s: float
    text: str = ""


class ClockedDecoder:
    """Feeds a `Thinker` chunk by chunk, and records what it thinks and does.

    Args:
        thinker: The model, at the start of a conversation.
        config: Times and marks.
        clock: The time; by default simulated with ``config.tokens_per_s``.
        tools: Tools that the model may call; ``None`` if there are none.
    """

    def __init__(
        self,
        thinker: Thinker,
        config: ClockConfig | None = None,
        clock: Clock | None = None,
        tools: Tools | None = None,
    ) -> None:
        self.thinker = thinker
        self.config = config or ClockConfig()
        self.clock = clock or SimulatedClock(self.config.tokens_per_s)
        self.tools = tools
        self.finished = False
        self.num_chunks = 0
        self._events: list[Event] = []
        self._calls: dict[int, Event] = {}  # whose responses have not been read
        self._wanted: list[Event] = []  # calls that were made and not taken back
        self._num_calls = 0

    @property
    def timeline(self) -> Timeline:
        """What happened so far; calls without a response end where they were made."""
        return Timeline(events=(*self._events, *self._calls.values()))

    def hear(
        self,
        content: Any,
        start_s: float,
        end_s: float,
        *,
        last: bool = False,
        text: str = "",
        deadline_s: float | None = None,
    ) -> bool:
        """Read a chunk and think about it; answer after the last one or an interruption.

        Args:
            content: The chunk, as the thinker hears it.
            start_s: Time at which the chunk begins.
            end_s: Time at which it is complete.
            last: Whether the speech ends with this chunk.
            text: Words of the chunk, for the timeline.
            deadline_s: Time at which the thought is closed by force; by default one chunk later. A
                call that has begun is written first, if the budget of tokens allows it.

        Returns:
            Whether the next chunk is wanted.

        Raises:
            UserError: The conversation has ended.
        """
        if self.finished:
            raise UserError("A decoder that has answered reads no more chunks: make a new one.")
        marks = self.config.marks
        number = self.num_chunks
        self.num_chunks += 1
        self.clock.reach(end_s)
        self._add(start_s, end_s, USER, "chunk", text, chunk=number, last=last)
        self._read_responses()
        self.thinker.hear(content)
        self.thinker.read(marks.last if last else marks.part)
        until_s = end_s + self.config.chunk_s if deadline_s is None else deadline_s
        if last:
            until_s = end_s + self.config.patience_s
            if self.tools is not None:
                self.tools.end_speech(self.clock.now())
        is_cut = self._think(number, until_s, last=last)
        interrupts = is_cut and not last
        if last and not is_cut:
            self._think_of_late_responses(number, until_s)
        if interrupts:
            now_s = self.clock.now()
            self._add(now_s, now_s, AGENT, "interruption", "", chunk=number, by=AGENT)
        if last or interrupts:
            self._leave_calls()
            self._answer(number)
            self.finished = True
        return not self.finished

    def hear_all(self, parts: Iterable[Part]) -> Timeline:
        """Read chunks and think about them until the last one, or until the user is interrupted.

        A chunk is asked for before the model thinks about the one before it, whose thought must end
        when the new chunk is complete; none is asked for after an interruption.

        Args:
            parts: The chunks.

        Returns:
            What happened.
        """
        coming = iter(parts)
        part = next(coming, None)
        while part is not None:
            following = next(coming, None)
            wanted = self.hear(
                part.content,
                part.start_s,
                part.end_s,
                last=following is None,
                text=part.text,
                deadline_s=None if following is None else following.end_s,
            )
            part = following if wanted else None
        return self.timeline

    def _think(self, number: int, until_s: float, *, last: bool) -> bool:
        """Write a thought; return whether it ends with the mark of an interruption.

        Args:
            number: Number of the chunk.
            until_s: Until when it may wait for responses; unless the chunk is the last, the thought
                is closed then, or when the call that is being written is complete.
            last: Whether the speech has ended.
        """
        marks = self.config.marks
        clock = self.clock
        start_s = clock.now()
        text = ""
        num_tokens = 0
        chances: list[float | None] = []
        closed: Closed | None = None
        budget = (last and self.config.last_tokens) or self.config.budget
        while closed is None:
            if num_tokens >= budget:
                closed = "budget"
            elif not (last or self._acts_now(text)) and clock.now() > until_s - _CLOSE_ENOUGH_S:
                closed = "clock"
            else:
                proposal = self.thinker.propose()
                chances.append(proposal.interrupt)
                token = self._next(proposal)
                text += token
                num_tokens += 1
                if text.endswith(marks.interrupt):
                    closed = "interruption"
                elif text.endswith(marks.close):
                    closed = "model"
                elif token and marks.call and text.endswith(marks.call_end):
                    self._call(text, number, until_s, last=last)
                elif token and text.endswith(CANCEL) and not self._calls_now(text):
                    self._cancel(number)
        if closed != "model":
            self.thinker.read(marks.close)
        text = text.removesuffix(marks.close).removesuffix(marks.interrupt).strip()
        payload = {"chunk": number, "tokens": num_tokens, "closed": closed, "chances": chances}
        self._add(start_s, clock.now(), THOUGHT, "thought", text, **payload)
        self._refuse_unfinished(text, number, last=last)
        return closed == "interruption"

    def _acts_now(self, thought: str) -> bool:
        """Return whether a thought so far ends within a call, or before one that replaces another.

        A half of it would be lost, or an order be taken back and none made.
        """
        return self._calls_now(thought) or thought.endswith(CANCEL)

    def _calls_now(self, thought: str) -> bool:
        """Return whether a thought so far ends within a call."""
        marks = self.config.marks
        return bool(marks.call) and thought.rfind(marks.call) > thought.rfind(marks.call_end)

    def _next(self, proposal: Proposal) -> str:
        """Read the next token of a thought, and return it."""
        interrupt = self.config.marks.interrupt
        threshold = self.config.threshold
        text = proposal.text
        if threshold is not None and proposal.interrupt is not None:
            if proposal.interrupt >= threshold:
                text = interrupt
            elif text.strip() == interrupt:
                text = proposal.otherwise
        self.thinker.read(text)
        self.clock.write_token()
        return text

    def _answer(self, number: int) -> None:
        """Answer until the mark of the end."""
        marks = self.config.marks
        start_s = self.clock.now()
        text = ""
        num_tokens = 0
        while num_tokens < self.config.answer_tokens and not text.endswith(marks.stop):
            token = self.thinker.propose().text
            self.thinker.read(token)
            self.clock.write_token()
            text += token
            num_tokens += 1
        closed: Closed = "model" if text.endswith(marks.stop) else "budget"
        payload = {"chunk": number, "tokens": num_tokens, "closed": closed}
        text = text.removesuffix(marks.stop).strip()
        self._add(start_s, self.clock.now(), AGENT, "answer", text, **payload)

    # Tools

    def _call(self, thought: str, number: int, until_s: float, *, last: bool) -> None:
        """Make the call that ends a thought so far, and read its response if it comes in time."""
        marks = self.config.marks
        text = thought.removesuffix(marks.call_end).rpartition(marks.call)[2]
        event = self._called(text, number, last=last)
        if self.tools is None:  # the model was told of none, and may have no ids for a response
            self._settle(event, "there are no tools", ok=False)
            return
        call = event.payload["call"]
        self._calls[call] = event
        self._wanted.append(event)
        self.tools.start(call, event.text, event.start_s)
        while call in self._calls and self._wait_for_response(until_s):
            pass  # it was the response of another call

    def _cancel(self, number: int) -> None:
        """Take the newest call back, also one that failed or was refused, that was not before."""
        now_s = self.clock.now()
        if self.tools is None or not self._wanted:
            self._add(now_s, now_s, AGENT, "cancel", "", chunk=number, why="no call stands")
            return
        event = self._wanted[-1]
        call = event.payload["call"]
        why = self.tools.cancel(call, now_s)
        reason = {"why": why} if why else {}
        self._add(now_s, now_s, AGENT, "cancel", event.text, chunk=number, call=call, **reason)
        if why:
            return
        self._wanted.pop()
        if call in self._calls:
            self._settle(self._calls.pop(call), "it was taken back first", ok=None)

    def _think_of_late_responses(self, number: int, until_s: float) -> None:
        """Think about the responses that come after the last thought, until none is awaited.

        Once the patience is over, there is one more thought at most: about what came by then.
        A thought that interrupts is the last.
        """
        goes_on = True
        while goes_on and self._calls and self._wait_for_response(until_s):
            is_patient = self.clock.now() < until_s
            goes_on = not self._think(number, until_s, last=True) and is_patient

    def _wait_for_response(self, until_s: float) -> bool:
        """Read the next responses as soon as they come; return whether any came in time."""
        if self.tools is None:
            return False
        self.clock.reach(self.tools.wait(until_s))
        return self._read_responses()

    def _leave_calls(self) -> None:
        """Tell of calls whose responses come too late for the answer."""
        for event in self._calls.values():
            self._settle(event, "no response came before the answer", ok=None)
        self._calls.clear()

    def _refuse_unfinished(self, thought: str, number: int, *, last: bool) -> None:
        """Tell of a call whose end the model did not write before its thought was closed."""
        marks = self.config.marks
        rest = thought.rpartition(marks.call_end)[2] if marks.call else ""
        if marks.call and marks.call in rest:
            event = self._called(rest.partition(marks.call)[2], number, last=last)
            self._settle(event, "the thought was closed before the call was complete", ok=False)

    def _called(self, text: str, number: int, *, last: bool) -> Event:
        """Return the event of a new call, of which nothing has come yet."""
        now_s = self.clock.now()
        call = self._num_calls
        self._num_calls += 1
        return Event(
            start_s=now_s,
            end_s=now_s,
            stream=AGENT,
            kind="call",
            text=text.strip(),
            payload={"chunk": number, "call": call, "early": not last, "ok": None},
        )

    def _settle(self, event: Event, text: str, *, ok: bool | None) -> None:
        """Record what came of a call."""
        payload = {**event.payload, "ok": ok, "response" if ok else "why": text}
        self._events.append(replace(event, end_s=self.clock.now(), payload=payload))

    def _read_responses(self) -> bool:
        """Read the responses of tools that have arrived; return whether there were any."""
        marks = self.config.marks
        arrived = () if self.tools is None else self.tools.arrived(self.clock.now())
        for response in arrived:
            event = self._calls.pop(response.call)
            if response.is_repeated:
                event = replace(event, payload={**event.payload, "repeated": True})
            self._settle(event, response.text, ok=response.ok)
            self.thinker.read(f"{marks.response}{response.text}{marks.response_end}")
        return bool(arrived)

    def _add(
        self, start_s: float, end_s: float, stream: str, kind: str, text: str, **payload: Any
    ) -> None:
        self._events.append(
            Event(
                start_s=start_s,
                end_s=end_s,
                stream=stream,
                kind=kind,
                text=text,
                payload=payload,
            )
        )
