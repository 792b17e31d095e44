"""Thinking while a user speaks: when to think, what a thinker sees, and what it may write.

A thinker writes text. Three marks in it have a meaning, as in SHANKS (arXiv:2510.06917):

- ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` asks for a call;
- ``<tool_cancel>{...}</tool_cancel>`` takes an equal call back, because the speaker changed it;
- ``[INTERRUPT]`` interrupts the speaker.

The first and the last are the paper's; taking back is ours. What a model reasons before it writes,
in ``<think>...</think>``, is told apart too: it is a part of a thought, and no part of an answer.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from counterpoint.data.tools import Tool, canonical
from counterpoint.runtime.cascade.calls import Call
from counterpoint.runtime.cascade.models import Complete, Message
from counterpoint.speech.partials import ScoredWord

INTERRUPT = "[INTERRUPT]"

_MARK = re.compile(
    r"<tool_(call|cancel)>(.*?)</tool_\1>|<think>(?P<inner>.*?)</think>"
    r"|(?P<open><tool_(?:call|cancel)>|<think>)|\[INTERRUPT\]",
    re.DOTALL,
)
_OPEN = re.compile(r"<tool_(call|cancel)>.*\Z|<think>.*\Z|<[a-z_/]*\Z|\[[A-Z]*\Z", re.DOTALL)
_CLIPPED = 1500  # most characters of a turn that a small model reads
_NOTE_WORDS = 40

_THINK = "You take notes of what a person who is still speaking wants, in one short sentence."
_NOTES = (
    ("I need a table for four on Friday and", "They want a table for four on Friday."),
    ("how far is it from here to the", "They ask how far something is."),
)
"""Examples for a small model: it does not take notes when it is only told to."""

_CALLING = (
    "Call a tool as soon as its arguments are known, with "
    '<tool_call>{"name": ..., "arguments": {...}}</tool_call>. If the person changes their mind, '
    "take a call back with <tool_cancel> and the same content. If they say something that is "
    "certainly wrong, write [INTERRUPT]. These are the tools: "
)
_CALL_TOKENS = 200
_TOOL_HISTORY = 6  # messages before the turn that may hold arguments

_ANSWER = "You are a voice assistant. You answer in one short sentence."
_ANSWERS = (
    ("What is the highest mountain?", "The highest mountain is Mount Everest."),
    ("Can you help me?", "Of course, what do you need?"),
)

FORGOTTEN = 12
"""Largest number of messages that are forgotten at a time.

A language model keeps what it has computed for the beginning of a prompt. If one old message were
left out in every turn, each prompt would begin differently, and all of it would be computed again.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a thinker knows when it begins to think.

    Attributes:
        words: Words of the turn so far.
        history: Earlier turns, of the agent only what the user has heard.
        thoughts: Earlier thoughts in this turn.
        calls: Calls that this turn has asked for, and the turns before it that had no answer.
        turn: Number of the turn.
        is_over: Whether the user seems to have finished.
        interrupts: Whether the agent takes the floor from the user.
    """

    words: tuple[ScoredWord, ...]
    history: tuple[Message, ...] = ()
    thoughts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    turn: int = 0
    is_over: bool = False
    interrupts: bool = False

    @property
    def text(self) -> str:
        """The words as one text."""
        return " ".join(word.text for word in self.words)


SceneWriter = Callable[[Scene], Iterator[str]]
"""Writes thoughts, or an answer, piece by piece."""

Judge = Callable[[Scene], float]
"""Returns how sure it is, 0 to 1, that the speaker must be interrupted."""


@runtime_checkable
class Trigger(Protocol):
    """Tells when to think while the speaker's voice is heard."""

    def __call__(self, new: Sequence[ScoredWord], since_s: float) -> bool:
        """Return whether to think now.

        Args:
            new: Words that came since the last thought.
            since_s: Seconds since the last thought, or since the turn began.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedChunks:
    """Thinks every few seconds of speech, as in the paper.

    Attributes:
        chunk_s: Seconds between two thoughts.
    """

    chunk_s: float = 4.0

    def __call__(self, new: Sequence[ScoredWord], since_s: float) -> bool:
        """See `Trigger`."""
        return since_s >= self.chunk_s


@dataclass(frozen=True, kw_only=True, slots=True)
class ClauseTrigger:
    """Thinks when a clause seems to be complete, and after some seconds in any case.

    A clause is complete where the recogniser writes punctuation after it. The last word does not
    count, because it may still change. (What was said before a pause is thought about in any case.)

    Attributes:
        least_words: Words that a clause has at least.
        most_s: Seconds after which new words are thought about without the end of a clause.
    """

    least_words: int = 2
    most_s: float = 4.0

    def __call__(self, new: Sequence[ScoredWord], since_s: float) -> bool:
        """See `Trigger`."""
        stable = new[:-1]
        if len(stable) < self.least_words:
            return False
        closed = any(word.text[-1:] in ",.;:?!" for word in stable)
        return closed or since_s >= self.most_s


class Marked(NamedTuple):
    """A piece of what a thinker wrote: its text, or the content of a mark.

    What it reasons in ``<think>`` is "inner", and a call that was cut off before its end "broken".
    """

    kind: Literal["text", "inner", "call", "cancel", "interrupt", "broken"]
    text: str


class MarkReader:
    """Finds the marks in a text that comes piece by piece."""

    def __init__(self) -> None:
        self._rest = ""

    def read(self, piece: str) -> Iterator[Marked]:
        """Yield what a further piece completes."""
        self._rest += piece
        place = 0
        for found in _MARK.finditer(self._rest):
            if found.group("open"):
                break  # what stands in a call is no mark of its own
            yield from _text(self._rest[place : found.start()])
            kind = found.group(1)
            inner = found.group("inner")
            if inner is not None:
                yield Marked("inner", inner)
            elif kind is None:
                yield Marked("interrupt", "")
            else:
                yield Marked("call" if kind == "call" else "cancel", found.group(2).strip())
            place = found.end()
        self._rest = self._rest[place:]
        begun = _OPEN.search(self._rest)
        stop = len(self._rest) if begun is None else begun.start()
        yield from _text(self._rest[:stop])
        self._rest = self._rest[stop:]

    def end(self) -> Iterator[Marked]:
        """Yield the rest."""
        rest, self._rest = self._rest, ""
        if re.match(r"<tool_(call|cancel)>", rest):
            yield Marked("broken", rest)
        elif rest.startswith("<think>"):
            yield Marked("inner", rest.removeprefix("<think>"))
        else:
            yield from _text(rest)


def _text(text: str) -> Iterator[Marked]:
    if text:
        yield Marked("text", text)


class NoteTaker:
    """Lets a language model note what the speaker wants, and call tools.

    With tools it also thinks when the speaker has finished, so that a call that needs the last
    words, or may only be made now, is made. Without them it does not: the answer would be later.

    Args:
        complete: The language model.
        tools: Tools that it is told of and may call.
        most_tokens: Largest number of tokens of a note, beside those of calls.
        is_early: Whether it thinks while the speaker speaks, and not only afterwards.
    """

    def __init__(
        self,
        complete: Complete,
        tools: Sequence[Tool] = (),
        most_tokens: int = _NOTE_WORDS,
        *,
        is_early: bool = True,
    ) -> None:
        self._complete = complete
        self._tools = tools
        self._most = most_tokens
        self._is_early = is_early

    def __call__(self, scene: Scene) -> Iterator[str]:
        """See `SceneWriter`."""
        if not scene.words or not (self._tools if scene.is_over else self._is_early):
            return iter(())
        messages = [_message("system", self._system())]
        for said, note in _NOTES:
            messages += [_message("user", said), _message("assistant", note)]
        if self._tools:
            messages += [_message(**one) for one in scene.history[-_TOOL_HISTORY:]]
        said = scene.text[-_CLIPPED:]
        for remark, is_told in (("Called already", _is_made), ("Failed", _has_failed)):
            told = [canonical(one.tool.name, one.arguments) for one in scene.calls if is_told(one)]
            if told:
                said += f"\n({remark}: {', '.join(told)})"
        if scene.is_over:
            said += "\n(The person has finished. Write only the calls that are still needed.)"
        messages.append(_message("user", said))
        return self._complete(messages, self._most + (_CALL_TOKENS if self._tools else 0))

    def _system(self) -> str:
        """Return what the model is told about its task."""
        if not self._tools:
            return _THINK
        described = json.dumps([tool.described() for tool in self._tools])
        return f"{_THINK}\n{_CALLING}{described}"


class Answerer:
    """Lets a language model answer.

    What stays the same from turn to turn comes first in the prompt, and what is known only now,
    such as notes and results, comes last: the model then reads no more than the new words.

    Args:
        complete: The model.
        system: What the model is told about its task.
        most_tokens: Longest answer.
        least_messages: Number of last messages of the history that it reads at least. They become
            up to three times as many, or `FORGOTTEN` - 1 more, before old ones are left out.
    """

    def __init__(
        self,
        complete: Complete,
        system: str = _ANSWER,
        most_tokens: int = 60,
        least_messages: int = 6,
    ) -> None:
        self._complete = complete
        self._system = system
        self._most = most_tokens
        self._least_messages = least_messages

    def __call__(self, scene: Scene) -> Iterator[str]:
        """See `SceneWriter`."""
        wanted = [call for call in scene.calls if call.is_given_up or call.state != "cancelled"]
        sayings = [call.said() if call.turn == scene.turn else "" for call in wanted]
        if sayings and not scene.interrupts and all(sayings):
            return iter([" ".join(sayings)])
        said = "\n".join((scene.text[-_CLIPPED:], *self._remarks(scene)))
        return self._complete(self._prompt(scene.history, said), self._most)

    def read(self, scene: Scene) -> Iterator[str]:
        """Let the model read what is known of the next prompt, and keep it; see `Engines.read`."""
        return self._complete(self._prompt(scene.history, scene.text[-_CLIPPED:]), 1)

    def _prompt(self, history: Sequence[Message], said: str) -> list[Message]:
        shown: list[Message] = [_message("system", self._system)]
        for question, answer in _ANSWERS:
            shown += [_message("user", question), _message("assistant", answer)]
        least = self._least_messages
        first = old_messages(len(history), least, min(2 * least, FORGOTTEN))
        kept = [_message(one["role"], one["content"][-_CLIPPED:]) for one in history[first:]]
        return [*shown, *kept, _message("user", said)]

    def _remarks(self, scene: Scene) -> list[str]:
        """Return what the model is told beside the words of the user."""
        remarks = []
        if scene.interrupts:
            remarks.append("The person made a mistake: say briefly what is wrong.")
        if scene.thoughts:
            remarks.append("Your notes: " + " ".join(scene.thoughts)[-_CLIPPED:])
        results = [f"{one.tool.name}: {one.result}" for one in scene.calls if one.state == "done"]
        failed = [
            one.tool.name
            for one in scene.calls
            if one.state == "failed" or (one.state == "cancelled" and one.is_given_up)
        ]
        running = [one.tool.name for one in scene.calls if one.state == "running"]
        if results:
            remarks.append("Results: " + " ".join(results)[-_CLIPPED:])
        if failed:
            remarks.append("Not possible now: " + ", ".join(failed))
        if running:
            remarks.append("Not finished yet: " + ", ".join(running))
        return [f"({remark})" for remark in remarks]


def old_messages(count: int, least: int, at_a_time: int = FORGOTTEN) -> int:
    """Return how many first messages of a history are left out.

    Args:
        count: Number of messages of the history.
        least: Number of messages that stay at least, if there are so many.
        at_a_time: Their number is a multiple of it.
    """
    return max(count - least, 0) // at_a_time * at_a_time


def exchange(question: str, answer: str) -> list[Message]:
    """Return what a history keeps of a question and its answer; what is empty is left out."""
    parts = (("user", question), ("assistant", answer))
    return [_message(role, text) for role, text in parts if text]


def _is_made(call: Call) -> bool:
    return call.is_wanted and call.state != "failed"


def _has_failed(call: Call) -> bool:
    return call.state == "failed"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def together(thinkers: Iterable[SceneWriter]) -> SceneWriter:
    """Return a thinker that lets several think, one after another."""
    every = tuple(thinkers)

    def think(scene: Scene) -> Iterator[str]:
        for thinker in every:
            yield from thinker(scene)

    return think
