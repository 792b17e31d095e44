"""What is left of a model's ear for errors when it hears a recogniser in place of exact words?

Held-out problems of spoken maths are spoken by a voice (Piper), and after every two seconds the
sound so far is recognised (Whisper tiny.en): the cascade of SHANKS. Every model listens to these
words; one that thinks in two streams hears them one a tick from the end of each pass on, or at the
pace of the speaker, two seconds late. As controls it hears the exact words when they are said, and
the exact words after each pass with the last one in the next, as the recogniser's. Rules use how
sure the recogniser is: an unsure last word waits for the next pass, or unsure words are left out.
Words that were recognised are brought into the words of the problems (`in_problem_words`), which is
a part of what is measured. The judge of sums that `counterpoint talk shanks` has by default hears
the recognised words too. What is recognised, and what came of every problem, is kept beside the
results, so that a run that was stopped goes on, and another model or rule costs no recognition.

    python benchmarks/shanks_by_ear.py runs/shanks_small --problems 150 --out results.json

Needs `pip install 'counterpoint[offline]'`. Source: SHANKS (arXiv:2510.06917), section 4, where a
recogniser and a large language model listen; here the model is the small one of these problems.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ear_words import (
    Pass,
    SpokenProblem,
    Told,
    paced,
    spoken_problems,
    told_words,
)
from record import finish, resumed

from counterpoint.data.tasks.spoken_maths.hearing import Heard, as_text, spoken_ticks
from counterpoint.data.tasks.spoken_maths.numbers import NUMBER_WORDS
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import WRONG
from counterpoint.data.tasks.spoken_maths.words import in_problem_words
from counterpoint.evaluate.duplex.spoken_maths import clock_of, converse, judged, made_by_program
from counterpoint.evaluate.duplex.thinking import Attempt, score_interruptions
from counterpoint.evaluate.statistics import Interval
from counterpoint.evaluate.word_errors import count_word_errors
from counterpoint.runtime.cascade.sum_judge import SumJudge
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.runtime.heard_words import Waiting
from counterpoint.runtime.load import load
from counterpoint.speech.partials import PartialTranscriber, ScoredWord
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.streams.timeline import Event, Timeline
from counterpoint.systems.contract import System

QUESTION = "What is left of a model's ear for errors when it hears a recogniser?"
SURE = 0.5
"""Score of the judge of sums from which on it interrupts; the default of the cascade."""


class Hears(NamedTuple):
    """A way of hearing.

    Attributes:
        name: Its name.
        is_exact: Whether the exact words are heard.
        waiting: Which words of a pass wait; ``None`` if words are heard when they have been said.
        delay_s: Seconds after its end at which a word is told at the earliest.
    """

    name: str
    is_exact: bool = False
    waiting: Waiting | None = None
    delay_s: float = 0.0


EXACT = Hears("exact words", is_exact=True)
LATE = Hears("exact words after each pass, the last waits", is_exact=True, waiting=Waiting())
RULES = (
    Hears("the last waits", waiting=Waiting()),
    Hears("a last one below 0.8 waits", waiting=Waiting(last=0, unsure=0.8)),
    Hears("the last waits, below 0.5 left out", waiting=Waiting(left_out=0.5)),
)
LONGEST_WORD_S = 0.6
"""A last word that waits for the next pass has ended about so long before its own pass at most."""

DOUBTS = (0.3, 0.5, 0.7)
"""Interruptions are also counted without those after a number of which the ear was less sure."""


class Row(NamedTuple):
    """What came of a problem.

    Attributes:
        wrong_s: Time at which the first wrong word had been said; ``None`` if all was right.
        interrupted_s: Time of the interruption; ``None`` if there was none.
        named: Whether the answer names the wrong step.
        corrected: Whether it also says what is right.
        sure: Probability of the least certain number that was told before the interruption, or in
            all.
    """

    wrong_s: float | None
    interrupted_s: float | None
    named: bool
    corrected: bool
    sure: float


# ------------------------------------------------------------------------------------ hearing


def in_passes(problem: SpokenProblem) -> list[Pass]:
    """Return what a recogniser without errors would hear in the passes."""
    return [
        Pass(
            one.at_s,
            tuple(
                ScoredWord(word.text, word.end_s, word.end_s, 1.0)
                for word in problem.heard.words
                if word.end_s <= one.at_s
            ),
        )
        for one in problem.passes
    ]


def exact_told(problem: SpokenProblem, hears: Hears) -> list[Told]:
    """Return the exact words as they are told in one of the ways of hearing."""
    if hears.waiting is None:
        return [Told(word.text, word.end_s, 1.0, word.end_s) for word in problem.heard.words]
    told = told_words(in_passes(problem), hears.waiting)
    return paced(told, hears.delay_s) if hears.delay_s else told


def told_in(problem: SpokenProblem, hears: Hears) -> list[Told]:
    """Return the words that are told in one of the ways of hearing, in those of the problems."""
    if hears.is_exact or hears.waiting is None:
        return exact_told(problem, hears)
    told = told_words(problem.passes, hears.waiting)
    return [
        word._replace(text=text)
        for word in (paced(told, hears.delay_s) if hears.delay_s else told)
        for text in in_problem_words(word.text)
    ]


def arrived(heard: Heard, told: Sequence[Told]) -> Heard:
    """Return a problem with the words that are told, at the times at which they are."""
    words = tuple(SpokenWord(word.text, word.at_s, word.at_s) for word in told)
    return heard._replace(words=words)


def listened(system: System, data: SpokenMathsData, heard: Heard, told: Sequence[Told]) -> Row:
    """Let a model listen to a problem, of which it hears some words; after its end is too late."""
    timeline = converse(system, replace(data, held_back=0), arrived(heard, told))
    in_time = tuple(
        event
        for event in timeline.events
        if event.kind != "interruption" or event.start_s < heard.end_s
    )
    return row_of(judged(Timeline(events=in_time), heard), told)


def row_of(attempt: Attempt, told: Sequence[Told]) -> Row:
    """Return what came of a problem, and how sure the recogniser was."""
    at_s = attempt.interrupted_s
    sure = min(
        (
            word.probability
            for word in told
            if word.text in NUMBER_WORDS and (at_s is None or word.at_s <= at_s)
        ),
        default=1.0,
    )
    return Row(attempt.wrong_s, at_s, attempt.named, attempt.corrected, sure)


def can_be_found(data: SpokenMathsData, problems: Sequence[SpokenProblem], hears: Hears) -> float:
    """Return the share of errors that the maker of the problems finds, who knows the exact words.

    It is told them when the recogniser would tell them, if it heard all of them and was sure.
    """
    found = []
    for problem in problems:
        if problem.heard.wrong_s is not None:
            late = arrived(problem.heard, exact_told(problem, hears))
            if data.arrangement == "parallel":
                _, thought = spoken_ticks(late, data.tick_hz, data.marks)
                found.append((thought.index(WRONG) + 1) / data.tick_hz < late.end_s)
            else:
                found.append(made_by_program(late, clock_of(data)).interrupted_s is not None)
    return sum(found) / len(found)


def judged_by_sums(problem: SpokenProblem) -> Row:
    """Return what the judge of sums does after each pass; it says, and so names, nothing."""
    told = told_words(problem.passes, Waiting())
    timeline = Timeline()
    for one in problem.passes[:-1]:
        words = tuple(
            ScoredWord(word.text, word.at_s, word.at_s, word.probability)
            for word in told
            if word.at_s <= one.at_s
        )
        if SumJudge()(Scene(words=words)) >= SURE:
            timeline = interruption(one.at_s)
            break
    return row_of(Attempt(timeline=timeline, wrong_s=problem.heard.wrong_s), told)


def interruption(at_s: float) -> Timeline:
    """Return a conversation in which nothing but an interruption happens."""
    event = Event(start_s=at_s, end_s=at_s, stream="agent", kind="interruption")
    return Timeline(events=(event,))


# ------------------------------------------------------------------------------------ numbers


def numbers(rows: Sequence[Row], least_sure: float = 0.0) -> dict[str, Any]:
    """Return a score as JSON; shares as value, low and high.

    Args:
        rows: What came of the problems.
        least_sure: Interruptions after a number of which the recogniser was less sure are not made.
    """
    score = score_interruptions([attempt_of(row, least_sure) for row in rows])
    shares: Mapping[str, Interval] = {
        "false alarms": score.right,
        "wrong speakers interrupted": score.wrong,
        "found": score.found,
        "corrected": score.corrected,
    }
    found: dict[str, Any] = {
        name: [round(value, 4) for value in (one.value, one.low, one.high)]
        for name, one in shares.items()
    }
    latency = score.latency_s
    return found | {f"latency p{q}": score.latency(q / 100) if latency else None for q in (50, 95)}


def attempt_of(row: Row, least_sure: float) -> Attempt:
    """Return the attempt of a row, without an interruption of which the ear was not sure."""
    at_s = row.interrupted_s if row.sure >= least_sure else None
    return Attempt(
        timeline=Timeline() if at_s is None else interruption(at_s),
        wrong_s=row.wrong_s,
        named=row.named,
        corrected=row.corrected,
    )


def area_of_doubt(rows: Sequence[Row]) -> float | None:
    """Return how often the ear was surer of an interruption that is valid than of a false alarm."""
    made = [row for row in rows if row.interrupted_s is not None]
    valid = np.array([row.sure for row in made if row.named])
    false = np.array([row.sure for row in made if row.wrong_s is None])
    if not len(valid) or not len(false):
        return None
    pairs = valid[:, None] - false
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def main() -> None:
    """Let all models listen; print and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two passes")
    parser.add_argument("--beam", type=int, default=1, help="texts that the recogniser follows")
    parser.add_argument("--example", action="store_true", help="give it problems to learn from")
    parser.add_argument("--words", type=Path, default=None, help="file of what is recognised")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks_by_ear.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.words or options.out.with_suffix(".words.json")
    learned = [SpokenMathsData().heard(number).problem for number in range(3)]
    example = as_text(learned) if options.example else ""
    ear = PartialTranscriber(example, beam=options.beam)
    problems = spoken_problems(options.problems, kept, options.every, ear)
    said = [word for one in problems for word in one.heard.problem.words]
    known = [word.text for one in problems for word in told_in(one, RULES[0])]
    sums = [judged_by_sums(one) for one in problems]
    found: dict[str, Any] = {
        "problems": len(problems),
        "every_s": options.every,
        "beam": options.beam,
        "example": example,
        "word_errors": count_word_errors(said, known) / len(said),
        "judge of sums": numbers(sums) | {"rows": sums},
        "models": [],
    }
    for folder in options.folders:
        loaded = load(folder)
        if loaded.run is None or not isinstance(loaded.run.data, SpokenMathsData):
            raise SystemExit(f"{folder} must be a run on spoken maths.")
        for hears in ways(loaded.run.data, options.every):
            work = hearer(loaded.system, loaded.run.data, hears)
            name = f"{folder.name} {hears.name} {options.every:g}"
            items = {f"{name} {place}": one for place, one in enumerate(problems)}
            rows = [
                Row(*row) for row in resumed(work, items, options.out.with_suffix(".rows.json"))
            ]
            about = {
                "folder": folder.name,
                "seed": loaded.run.train.seed,
                "hears": hears.name,
                "can be found": can_be_found(loaded.run.data, problems, hears),
                "area of doubt": None if hears.is_exact else area_of_doubt(rows),
            }
            doubts = {f"sure of {least}": numbers(rows, least) for least in DOUBTS}
            own = about | numbers(rows)
            print(own, flush=True)
            found["models"].append(own | ({} if hears.is_exact else doubts) | {"rows": rows})
    finish(QUESTION, found, str(options.out))


def ways(data: SpokenMathsData, every_s: float) -> list[Hears]:
    """Return the ways in which a model hears; two streams also at the pace of the speaker."""
    if data.arrangement != "parallel":
        return [EXACT, LATE, *RULES]
    even_s = every_s + LONGEST_WORD_S
    return [
        EXACT,
        LATE,
        RULES[0],
        *(at_pace(one, delay_s) for delay_s in (every_s, even_s) for one in (LATE, RULES[0])),
        at_pace(RULES[1], even_s),
    ]


def at_pace(hears: Hears, delay_s: float) -> Hears:
    """Return a way of hearing in which words keep their distances, some seconds late."""
    name = f"{hears.name}; at the pace of the speaker, {delay_s:g} s late"
    return hears._replace(name=name, delay_s=delay_s)


def hearer(system: System, data: SpokenMathsData, hears: Hears) -> Callable[[SpokenProblem], Row]:
    """Return what lets a model listen to a problem in one of the ways of hearing."""
    return lambda one: listened(system, data, one.heard, told_in(one, hears))


if __name__ == "__main__":
    main()
