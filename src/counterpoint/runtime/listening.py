"""A model that thinks while it listens hears a recording, and its thoughts stand on one clock.

What the model hears comes from the data on which it was trained, so that features and chunks are
those of training. Sound may come in pieces of any length. The speech ends with the recording.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from counterpoint.runtime.clocked import AGENT, ClockConfig, ClockedDecoder, Part
from counterpoint.runtime.thinker import SystemThinker, Vocabulary
from counterpoint.speech.mels import ChunkedMels
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
    """The same of models that can hear a recording."""

    def ear(self, layout: Layout) -> ChunkedMels:
        """Return what a model with a layout hears of a recording, as in training.

        Raises:
            UserError: The model cannot hear one.
        """


def clock_of(data: ClockedData, threshold: float | None = None) -> ClockConfig:
    """Return how a model of some data thinks against the clock.

    Args:
        data: The data.
        threshold: See `ClockConfig.threshold`.
    """
    return ClockConfig(
        chunk_s=data.chunk_s,
        tokens_per_s=data.tokens_per_s,
        answer_tokens=data.answer_tokens,
        threshold=threshold,
        marks=data.marks,
    )


def listen_to(
    system: System,
    data: ThoughtData,
    pieces: Iterable[Float[Tensor, " _N"]],
    threshold: float | None = None,
) -> Timeline:
    """Let a model hear a recording; no more pieces are asked for after it has interrupted.

    Args:
        system: A system that was trained on the data, in evaluation mode.
        data: The data.
        pieces: The recording in pieces of any length, at the rate of `ThoughtData.ear`.
        threshold: See `ClockConfig.threshold`.

    Returns:
        What was heard, thought and answered; see `counterpoint.runtime.clocked`.

    Raises:
        UserError: The model cannot hear a recording, or samples are not valid.
    """
    ear = data.ear(system.layout)
    thinker = SystemThinker(system, data.words, data.marks)
    decoder = ClockedDecoder(thinker, clock_of(data, threshold))
    return decoder.hear_all(_parts(ear, pieces))


def with_answer_words(timeline: Timeline) -> Timeline:
    """Return a timeline in which an answer is also what the agent says, as one event "word"."""
    answers = timeline.where(stream=AGENT, kind="answer")
    said = [replace(one, kind="word", payload={}) for one in answers if one.text]
    return replace(timeline, events=(*timeline.events, *said))


def _parts(ear: ChunkedMels, pieces: Iterable[Float[Tensor, " _N"]]) -> Iterator[Part]:
    for piece in pieces:
        for chunk in ear.push(piece):
            yield Part(chunk.frames, chunk.start_s, chunk.end_s)
    last = ear.finish()
    yield Part(last.frames, last.start_s, last.end_s)
