"""Spoken problems in time: when each word ends, and what is thought after each chunk or tick.

Times of words come from a synthesiser, or from a stated speaking rate: a word takes as long as its
letters and two more, in proportion, and a sentence is followed by a pause.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from itertools import accumulate
from random import Random
from typing import NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor

from counterpoint.data.tasks.spoken_maths.problems import Clause, Problem, vocabulary
from counterpoint.data.tasks.spoken_maths.thoughts import WRONG
from counterpoint.errors import UserError
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Speaker, Voice, join_utterances
from counterpoint.streams.rounds import ANSWER, HEARD, MARK, THOUGHT, Marks
from counterpoint.streams.seconds import border_s, exact, num_begun, num_complete

NOTHING = "_"
"""Word that is thought in a tick in which nothing is thought."""

_PAUSE_S = 0.3
_USUAL_LETTERS = 6.4  # of a word of the problems, with two more for its ends
_PACE_SPREAD = 0.15
_LEFT_OUT = 0.25  # share of the misheard words that are not heard at all
_ALIKE = 3  # words that one may be misheard for


class Chunk(NamedTuple):
    """A chunk of the speech: its times, its words, and the clauses that end in it."""

    start_s: float
    end_s: float
    words: tuple[str, ...]
    clauses: tuple[Clause, ...]


class Heard(NamedTuple):
    """A problem with the times of its words.

    Attributes:
        problem: The problem.
        words: Its words, in order.
        end_s: End of the speech in seconds.
        frames: What sounds, if it is more than words: numbers of frames in a bank, or vectors.
        frame_hz: Frames a second.
    """

    problem: Problem
    words: tuple[SpokenWord, ...]
    end_s: float
    frames: Shaped[Tensor, "T ..."] | None = None
    frame_hz: float = 1.0

    def frames_of(self, chunk: Chunk, overlap: int = 0) -> Shaped[Tensor, "n ..."]:
        """Return the frames that sound in a chunk.

        Args:
            chunk: The chunk.
            overlap: Number of frames before it that are heard again.

        Raises:
            UserError: The problem has no frames.
        """
        if self.frames is None:
            raise UserError("A problem that sounds must have frames: this one has words only.")
        return self.frames[self.span(chunk, overlap)]

    def span(self, chunk: Chunk, overlap: int = 0) -> slice:
        """Return the numbers of the frames of a chunk; for the arguments see `frames_of`.

        A frame belongs to the chunk in which it ends; the last one of the speech may be cut short.
        """
        frame_s = 1 / exact(self.frame_hz)
        first = max(num_complete(chunk.start_s, frame_s) - overlap, 0)
        is_last = chunk.end_s == self.end_s
        return slice(first, (num_begun if is_last else num_complete)(chunk.end_s, frame_s))

    @property
    def num_frames(self) -> int:
        """Number of frames until the end of the speech."""
        return num_begun(self.end_s, 1 / exact(self.frame_hz))

    @property
    def last_frames(self) -> list[int]:
        """Number of the frame in which each word ends."""
        frame_s = 1 / exact(self.frame_hz)
        return [num_begun(word.end_s, frame_s) - 1 for word in self.words]

    @property
    def wrong_s(self) -> float | None:
        """Time at which the first wrong word has been said; ``None`` if there is none."""
        at = self.problem.wrong_word
        return None if at < 0 else self.words[at].end_s

    @property
    def completed(self) -> list[tuple[float, Clause]]:
        """The clauses with the time at which each is complete."""
        times = []
        number = 0
        for clause in self.problem.clauses:
            number += len(clause.words)
            times.append((self.words[number - 1].end_s, clause))
        return times


def as_text(problems: Sequence[Problem]) -> str:
    """Return problems as a text, each with a capital letter and a full stop."""
    return " ".join(f"{' '.join(problem.words).capitalize()}." for problem in problems)


def at_rate(
    problem: Problem,
    words_per_s: float,
    seed: int,
    number: int,
    pace_spread: float = _PACE_SPREAD,
) -> Heard:
    """Return a problem at a speaking rate.

    Args:
        problem: The problem.
        words_per_s: Words a second, without the pauses of 0.3 s between sentences.
        seed: Seed of the problem.
        number: Number of the problem.
        pace_spread: Share of the rate by which it differs at most between problems.
    """
    rate = words_per_s * Random(f"pace {seed} {number}").uniform(1 - pace_spread, 1 + pace_spread)
    words = []
    now_s = 0.0
    for clause in problem.clauses:
        for word in clause.words:
            start_s = now_s
            now_s += (len(word) + 2) / _USUAL_LETTERS / rate
            words.append(SpokenWord(word, start_s, now_s))
        now_s += _PAUSE_S
    return Heard(problem, tuple(words), words[-1].end_s)


def misheard(heard: Heard, share: float, seed: int, number: int) -> Heard:
    """Return a problem as a recogniser might hear it; times and what is true stay as they are.

    A word that is misheard is left out (its text is empty), or becomes one that is spelled like it.

    Args:
        heard: The problem in time.
        share: Share of the words that are misheard.
        seed: Seed of the problem.
        number: Number of the problem.
    """
    rng = Random(f"misheard {seed} {number}")
    words = []
    for word in heard.words:
        text = word.text
        if rng.random() < share:
            text = "" if rng.random() < _LEFT_OUT else rng.choice(_alike(text))
        words.append(word._replace(text=text))
    return heard._replace(words=tuple(words))


@cache
def _alike(word: str) -> list[str]:
    """Return the words of spoken maths that are spelled most like one, which is not among them."""
    known = [one for one in vocabulary() if one.isalpha() and one != word]
    return get_close_matches(word, known, _ALIKE, 0.0)


def spoken_by(
    problem: Problem, speaker: Speaker, voice: Voice, sample_rate: int
) -> tuple[Float[Tensor, " N"], Heard]:
    """Return the audio of a problem, spoken sentence by sentence, and its words in time."""
    spoken = [speaker.speak(" ".join(one.words), voice, sample_rate) for one in problem.clauses]
    whole = join_utterances(spoken, round(_PAUSE_S * sample_rate), sample_rate)
    return whole.audio, Heard(problem, whole.words, len(whole.audio) / sample_rate)


def chunk_ends(end_s: float, chunk_s: float) -> list[float]:
    """Return when the chunks of a speech of ``end_s`` seconds end; the last may be shorter."""
    length_s = exact(chunk_s)
    number = max(num_begun(end_s, length_s), 1)
    return [*(border_s(place + 1, length_s) for place in range(number - 1)), end_s]


def chunks(heard: Heard, chunk_s: float, held_back: int = 0) -> list[Chunk]:
    """Cut the speech into chunks; the last may be shorter.

    A word, and a clause, belong to the chunk in which they end, also if it ends just then.

    Args:
        heard: The problem in time.
        chunk_s: Seconds of a chunk.
        held_back: Last words of a chunk that belong to the next one, as those of a recogniser that
            is not sure of them yet.
    """
    ends = chunk_ends(heard.end_s, chunk_s)
    number = len(ends)
    clause_ends = list(accumulate(len(clause.words) for clause in heard.problem.clauses))
    cut = []
    start_s = 0.0
    first = 0
    for place, end_s in enumerate(ends):
        said = sum(word.end_s <= end_s for word in heard.words)
        stop = len(heard.words) if place == number - 1 else max(said - held_back, first)
        clauses = tuple(
            clause
            for clause, last in zip(heard.problem.clauses, clause_ends, strict=True)
            if first < last <= stop
        )
        words = tuple(word.text for word in heard.words[first:stop] if word.text)
        cut.append(Chunk(start_s, end_s, words, clauses))
        start_s = end_s
        first = stop
    return cut


def spoken_rounds(
    heard: Heard, chunk_s: float, *, thinks: bool, marks: Marks, held_back: int = 0
) -> list[dict[str, list[str]]]:
    """Return the rounds of a problem as words: what is heard, thought and answered.

    They end with the first wrong step, or with the agreement after a right solution.

    Args:
        heard: The problem in time.
        chunk_s: Seconds of a chunk.
        thinks: Whether thoughts are written out; otherwise they only decide about interruptions.
        marks: Marks of the sequence.
        held_back: See `chunks`.
    """
    rounds: list[dict[str, list[str]]] = []
    cut = chunks(heard, chunk_s, held_back)
    for place, chunk in enumerate(cut):
        is_last = place == len(cut) - 1
        thought, is_wrong = _thought(chunk.clauses)
        ends = [WRONG, marks.close] if is_wrong and not is_last else [marks.close]
        one = {
            HEARD: list(chunk.words),
            MARK: [marks.last if is_last else marks.part],
            THOUGHT: [*(thought if thinks else []), *ends],
        }
        rounds.append(one)
        if is_wrong or is_last:
            problem = heard.problem
            said = problem.correction if is_wrong else problem.agreement
            one[ANSWER] = [*said, marks.stop]
            break
    return rounds


def heard_ticks(heard: Heard, tick_hz: float, marks: Marks) -> list[str | None]:
    """Return what is heard in each tick of a whole problem, and the mark of its end.

    A word is heard in the tick in which it ends or in the next free one.

    Args:
        heard: The words of the problem, with their times.
        tick_hz: Ticks a second.
        marks: Its ``last`` is the mark of the end.
    """
    return [*_said(heard, tick_hz)[0], marks.last]


def _said(heard: Heard, tick_hz: float) -> tuple[list[str | None], list[int]]:
    """Return the word of each tick, ``None`` where there is none, and the tick of each word."""
    said: list[str | None] = []
    ends = []
    tick_s = 1 / exact(tick_hz)
    for word in heard.words:
        tick = max(num_begun(word.end_s, tick_s) - 1, len(said))
        said += [None] * (tick - len(said))
        said.append(word.text or None)
        ends.append(tick)
    return said, ends


def spoken_ticks(heard: Heard, tick_hz: float, marks: Marks) -> tuple[list[str | None], list[str]]:
    """Return a problem on a clock on which hearing and thinking go on at the same time.

    Each tick holds at most one word that is heard, in the tick in which it ends or the next free
    one, and one word that is thought: the next one about the clauses that are complete, or
    `NOTHING`. What is heard in a tick can be thought about in the next.

    Args:
        heard: The words of the problem, with their times.
        tick_hz: Ticks a second.
        marks: The marks of the ends of the speech and of the answer.

    Returns:
        The words that are heard, ``None`` where none is, and the words that are thought. They end
        with the answer; the mark of the end of the speech is heard, unless the answer ends first.
    """
    said, ends = _said(heard, tick_hz)
    said.append(marks.last)
    thought: list[str] = []
    number = 0
    for clause in heard.problem.clauses:
        number += len(clause.words)
        if clause.thought:
            thought += [NOTHING] * (ends[number - 1] + 1 - len(thought))
            thought += clause.thought
        if clause.thought[-1:] == (WRONG,):
            answer = [*heard.problem.correction, marks.stop]
            break
    else:
        thought += [NOTHING] * (len(said) - len(thought))
        answer = [*heard.problem.agreement, marks.stop]
    thought += answer
    length = max(len(said), len(thought))
    return [*said, *[None] * (length - len(said))][: len(thought)], thought


def _thought(clauses: Sequence[Clause]) -> tuple[list[str], bool]:
    """Return the thought about some clauses, and whether one of them is a wrong step."""
    words: list[str] = []
    for clause in clauses:
        if clause.thought[-1:] == (WRONG,):
            return [*words, *clause.thought[:-1]], True
        words += clause.thought
    return words, False
