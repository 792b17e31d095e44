"""Attempts at spoken maths: a model, or a constant policy, listens against the clock."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from counterpoint.data.tasks.spoken_maths.hearing import (
    NOTHING,
    Chunk,
    Heard,
    chunks,
    heard_ticks,
    spoken_rounds,
)
from counterpoint.data.tasks.spoken_maths.numbers import spoken
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.evaluate.duplex.thinking import Attempt
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder, Part, Proposal, Thinker
from counterpoint.runtime.listening import clock_of as clock_of
from counterpoint.runtime.parallel import ParallelConfig, think_in_parallel
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.streams.rounds import ANSWER, THOUGHT, Marks
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.contract import System


def listen(
    system: System, data: SpokenMathsData, heard: Heard, threshold: float | None = None
) -> Attempt:
    """Let a system listen to a problem, and judge what it does; see `converse`."""
    return judged(converse(system, data, heard, threshold), heard)


def converse(
    system: System, data: SpokenMathsData, heard: Heard, threshold: float | None = None
) -> Timeline:
    """Let a system listen to a problem in the arrangement of its data.

    Args:
        system: A system that was trained on the data, in evaluation mode.
        data: The data.
        heard: The problem in time.
        threshold: Chance of an interruption from which it interrupts; see `ClockConfig.threshold`.
    """
    thinker = SystemThinker(system, data.words, data.marks)
    if data.arrangement == "parallel":
        said = heard_ticks(heard, data.tick_hz, data.marks)
        return think_in_parallel(thinker, said, _parallel_clock(data, threshold))
    content = _sounding(data, heard)
    return think_in_chunks(thinker, heard, clock_of(data, threshold), content, data.held_back)


def _parallel_clock(data: SpokenMathsData, threshold: float | None) -> ParallelConfig:
    """Return how a model of some data thinks while it hears."""
    return ParallelConfig(
        tick_hz=data.tick_hz,
        nothing=NOTHING,
        answer_tokens=data.answer_tokens,
        threshold=threshold,
        marks=data.marks,
    )


def _sounding(data: SpokenMathsData, heard: Heard) -> Callable[[Chunk], Any]:
    """Return what a model hears in a chunk: its words, or its frames as vectors."""
    if heard.frames is None:
        return _words
    is_numbers = heard.frames.dim() == 1
    frames = data.word_bank().frames[heard.frames] if is_numbers else heard.frames
    return partial(heard._replace(frames=frames).frames_of, overlap=data.overlap_frames)


def _words(chunk: Chunk) -> str:
    return "".join(f" {word}" for word in chunk.words)


def think_in_chunks(
    thinker: Thinker,
    heard: Heard,
    config: ClockConfig,
    content: Callable[[Chunk], Any] = _words,
    held_back: int = 0,
) -> Timeline:
    """Let a thinker listen to a problem chunk by chunk.

    Args:
        thinker: The thinker.
        heard: The problem in time.
        config: The clock.
        content: Returns a chunk as the thinker hears it; by default its words.
        held_back: Last words of a chunk that are heard in the next one.
    """
    return ClockedDecoder(thinker, config).hear_all(
        Part(content(chunk), chunk.start_s, chunk.end_s, " ".join(chunk.words))
        for chunk in chunks(heard, config.chunk_s, held_back)
    )


def made_by_program(heard: Heard, config: ClockConfig, held_back: int = 0) -> Attempt:
    """Return the attempt of the program that made the problem: what can be found in time at all.

    An error in the last chunk cannot be interrupted, for its thought comes after the speech; nor
    can one whose thought does not fit into the time until the next chunk.
    """
    rounds = spoken_rounds(
        heard, config.chunk_s, thinks=True, marks=config.marks, held_back=held_back
    )
    thinker = ProgramThinker(rounds, config.marks)
    return judged(think_in_chunks(thinker, heard, config, held_back=held_back), heard)


class ProgramThinker:
    """Thinks and answers what it is told, round by round; a `Thinker`."""

    def __init__(self, rounds: Sequence[Mapping[str, Sequence[str]]], marks: Marks) -> None:
        self._rounds = list(rounds)
        self._marks = marks
        self._next: list[str] = []

    def hear(self, content: Any) -> None:
        """Go on to the next round, or have nothing to think any more; see `Thinker.hear`."""
        one = self._rounds.pop(0) if self._rounds else {THOUGHT: [self._marks.close]}
        self._next = [*one[THOUGHT], *one.get(ANSWER, [self._marks.stop])]

    def read(self, text: str) -> None:
        """Go on if it is what comes next; see `Thinker.read`."""
        if self._next and text.strip() == self._next[0]:
            self._next.pop(0)

    def propose(self) -> Proposal:
        """Return the next word; see `Thinker.propose`."""
        return Proposal(f" {self._next[0]}")


def judged(timeline: Timeline, heard: Heard) -> Attempt:
    """Return the attempt: an interruption is valid if it names the step that was made wrong."""
    problem = heard.problem
    answer = " ".join(event.text for event in timeline.where(kind="answer")).split()
    number = spoken(problem.wrong_step)[0]
    named = problem.fault is not None and ("step", number) in zip(answer, answer[1:], strict=False)
    return Attempt(
        timeline=timeline,
        wrong_s=heard.wrong_s,
        named=named,
        corrected=named and answer == problem.correction,
    )


class ConstantThinker(ProgramThinker):
    """A policy that looks at nothing but the number of the chunk.

    Args:
        interrupts: Whether it interrupts after a chunk, counted from 0.
        step: Number of the step that it calls wrong.
        marks: Marks of the sequence.
    """

    def __init__(self, interrupts: Callable[[int], bool], step: int, marks: Marks) -> None:
        super().__init__([], marks)
        self._interrupts = interrupts
        self._answer = ["wait", "step", *spoken(step), marks.stop]
        self._num_chunks = 0

    def hear(self, content: Any) -> None:
        """Count the chunk; see `Thinker.hear`."""
        is_time = self._interrupts(self._num_chunks)
        self._num_chunks += 1
        self._next = [self._marks.interrupt if is_time else self._marks.close, *self._answer]


def floors(
    problems: Sequence[Heard], config: ClockConfig, most_steps: int, seed: int = 0
) -> Mapping[str, list[Attempt]]:
    """Return the attempts of constant policies: never, at the k-th chunk, and at random.

    The policies at the k-th chunk call the step wrong that is wrong most often; a random one
    interrupts after each chunk with the chance of 0.2 and names any step.

    Args:
        problems: The problems, as they are heard.
        config: Length of a chunk, and the marks.
        most_steps: Largest number of a step that the random policy names, counted from 1.
        seed: Seed of the random policy.
    """
    counts = [one.problem.wrong_step for one in problems if one.problem.wrong_step]
    usual = max(set(counts), key=counts.count) if counts else 1
    most_chunks = max(len(chunks(one, config.chunk_s)) for one in problems)

    def at_chunk(place: int) -> Callable[[int], ConstantThinker]:
        return lambda _: ConstantThinker(lambda chunk: chunk == place, usual, config.marks)

    policies = {"never": at_chunk(-1)}
    policies |= {f"after chunk {place + 1}": at_chunk(place) for place in range(most_chunks - 1)}

    def by_chance(number: int) -> ConstantThinker:
        rng = Random(f"{seed} {number}")
        step = rng.randint(1, most_steps)
        return ConstantThinker(lambda _: rng.random() < 0.2, step, config.marks)

    policies["random"] = by_chance
    return {
        name: [
            judged(think_in_chunks(policy(number), heard, config), heard)
            for number, heard in enumerate(problems)
        ]
        for name, policy in policies.items()
    }
