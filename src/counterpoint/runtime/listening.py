"""A model that thinks while it listens hears a recording, and its thoughts stand on one clock.

What the model hears comes from the data on which it was trained, so that features and chunks are
those of training. Sound may come in pieces of any length. The speech ends with the recording.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeGuard, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.checked import CheckedThinker
from counterpoint.runtime.clocked import AGENT, ClockConfig, ClockedDecoder, Part, Thinker
from counterpoint.runtime.clocks import SimulatedClock
from counterpoint.runtime.thinker import SystemThinker, Vocabulary
from counterpoint.speech.ears import ChunkEar, WordEar
from counterpoint.streams.rounds import Marks
from counterpoint.streams.spec import Layout
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.contract import System


@runtime_checkable
class ClockedData(Protocol):
    """Data from which models learn to think against a clock; it says how they do that."""

    @property
    def chunk_s(self) -> float:
        """Seconds of a chunk."""

    @property
    def marks(self) -> Marks:
        """Marks of the sequence."""

    @property
    def words(self) -> Vocabulary:
        """Ids of what is written."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens that a model writes in a second."""

    @property
    def answer_tokens(self) -> int:
        """Largest number of tokens of an answer."""


@runtime_checkable
class ThoughtData(ClockedData, Protocol):
    """The same, and how a model of theirs hears a recording."""

    def ear(self, layout: Layout, by_words: WordEar) -> ChunkEar:
        """Return what a model with a layout hears of a recording, as in training.

        Args:
            layout: Streams of the model.
            by_words: Returns the ear of a model that hears words.

        Raises:
            UserError: The model cannot hear one.
        """


@runtime_checkable
class CallingData(ThoughtData, Protocol):
    """The same of models that call tools."""

    def tools(self) -> Sequence[Tool]:
        """Return the tools that a model may call."""


@runtime_checkable
class CheckingData(ThoughtData, Protocol):
    """The same of models that may listen again when the speech is over."""

    @property
    def again(self) -> float:
        """Share of training in which all was heard at once, after what was called."""


def thinker_of(system: System, data: ClockedData) -> Thinker:
    """Return a new session of a model; it listens again if the model learned that.

    Args:
        system: A system that was trained on the data, in evaluation mode.
        data: The data.
    """
    listening = SystemThinker(system, data.words, data.marks)
    if not _is_checking(data):
        return listening
    again = SystemThinker(system, data.words, data.marks)
    return CheckedThinker(listening, again, data.marks)


def _is_checking(data: ClockedData) -> TypeGuard[CheckingData]:
    """Return whether a model of some data listens again; see `counterpoint.runtime.checked`."""
    return isinstance(data, CheckingData) and data.again > 0


def clock_of(data: ClockedData, threshold: float | None = None) -> ClockConfig:
    """Return how a model of some data thinks against the clock.

    Args:
        data: The data.
        threshold: See `ClockConfig.threshold`.
    """
    config = ClockConfig(
        chunk_s=data.chunk_s,
        tokens_per_s=data.tokens_per_s,
        answer_tokens=data.answer_tokens,
        threshold=threshold,
        marks=data.marks,
    )
    if not _is_checking(data):
        return config
    # What listens again thinks about the whole turn at once.
    last_tokens = max(int(config.patience_s * config.tokens_per_s), config.budget)
    return replace(config, last_tokens=last_tokens)


def listen_to(
    system: System,
    data: ThoughtData,
    ear: ChunkEar,
    pieces: Iterable[Float[Tensor, " _N"]],
    threshold: float | None = None,
) -> Timeline:
    """Let a model hear a recording; no more pieces are asked for after it has interrupted.

    Time is simulated: tokens take what the data say, recognition takes none, and a call of a tool
    takes what it takes.

    Args:
        system: A system that was trained on the data, in evaluation mode.
        data: The data, with tools if they are `CallingData`.
        ear: What the model hears, from `ThoughtData.ear`.
        pieces: The recording in pieces of any length, at the rate of the ear.
        threshold: See `ClockConfig.threshold`.

    Returns:
        What was heard, thought, called and answered; see `counterpoint.runtime.clocked`.

    Raises:
        UserError: Samples are not valid.
    """
    thinker = thinker_of(system, data)
    config = clock_of(data, threshold)
    clock = SimulatedClock(config.tokens_per_s)
    tools = None
    if isinstance(data, CallingData):
        tools = ClockedCalls(Calls(data.tools(), TimedLane), clock)
    return ClockedDecoder(thinker, config, clock, tools).hear_all(_parts(ear, pieces))


def with_answer_words(timeline: Timeline) -> Timeline:
    """Return a timeline in which an answer is also what the agent says, as one event "word"."""
    answers = timeline.where(stream=AGENT, kind="answer")
    said = [replace(one, kind="word", payload={}) for one in answers if one.text]
    return replace(timeline, events=(*timeline.events, *said))


def _parts(ear: ChunkEar, pieces: Iterable[Float[Tensor, " _N"]]) -> Iterator[Part]:
    for piece in pieces:
        for chunk in ear.push(piece):
            yield Part(chunk.content, chunk.start_s, chunk.end_s, chunk.text)
    last = ear.finish()
    yield Part(last.content, last.start_s, last.end_s, last.text)
