"""Does a model that finds errors in spoken maths of its own kind find them in GSM8K?

Solutions of grade-school problems by language models are spoken at the pace of spoken maths, the
trained models of `counterpoint train shanks_small` listen and think, and interrupt or do not. The
models know 117 words and sums of two or three steps, so little is expected of them. Rows beside
them: constant policies, plain checkers of sums, the published solution as a key, and a small
language model that is asked after each sentence whether it is wrong.

    python benchmarks/shanks_gsm8k.py runs/shanks_small --solutions example_model_solutions.jsonl \
        --graded MR-GSM8K/eval_results/gpt4-grading/*.json --pairs 100 --asked 20

Where the error is: MR-GSM8K (arXiv:2312.17080) has the first wrong step of a solution by the label
of a person; the file of GSM8K itself says only whether a solution is right. Every wrong solution
with such a label is paired with a right one of the same problem. The error has been said when the
sentence of its step ends; an interruption before that is counted apart. A second set has the wrong
solutions of GSM8K's file with a sum that is wrong in itself, by the marks of the calculator.

`--asked` needs `pip install 'counterpoint[offline]'`. Source: SHANKS (arXiv:2510.06917), section 3,
where a model of seven billion parameters interrupts 85 % of the wrong solutions and 31 % of the
right ones; its solutions and labels are others.
"""

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from record import finish, resumed

from counterpoint.data.tasks.gsm8k import LabelledSolution, read_graded, read_solutions, value_of
from counterpoint.data.tasks.gsm8k_speech import said_problem
from counterpoint.data.tasks.spoken_maths.hearing import Heard, at_rate, chunks
from counterpoint.data.tasks.spoken_maths.problems import vocabulary
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_maths.words import in_problem_words
from counterpoint.evaluate.duplex.spoken_maths import clock_of, converse
from counterpoint.evaluate.duplex.thinking import rises
from counterpoint.evaluate.statistics import wilson
from counterpoint.packages import optional_module
from counterpoint.runtime.cascade.embedded import small_model
from counterpoint.runtime.load import load

QUESTION = "Does a model that finds errors in spoken maths of its own kind find them in GSM8K?"
CHANCES = (0.005, 0.02, 0.05, 0.1, 0.2)
"""Chances of an interruption after each chunk, of the random policies."""

DRAWS = 50
TOLERANCE = 0.01
_WRITTEN = re.compile(
    r"([0-9.,$+\-*/x\u00d7\u00f7() ]*[+\-*/x\u00d7\u00f7][0-9.,$() ]*)=\s*(\$?[0-9][0-9.,]*)"
)
_BEFORE = re.compile(r"^(?:[,) ]|\.(?![0-9]))+")
_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")


class Case(NamedTuple):
    """A solution as it is said.

    Attributes:
        solution: The solution.
        heard: What is said, in time, in all its words.
    """

    solution: LabelledSolution
    heard: Heard

    @property
    def known(self) -> Heard:
        """What is said, in the words that the models know; all others are left out."""
        words = tuple(
            word._replace(text=" ".join(in_problem_words(word.text))) for word in self.heard.words
        )
        return self.heard._replace(words=words)

    def words_by(self, at_s: float) -> int:
        """Return the number of words that have been said at a time."""
        return sum(word.end_s <= at_s for word in self.heard.words)


class Row(NamedTuple):
    """What came of a solution.

    Attributes:
        is_correct: Whether the solution is right.
        wrong_s: End of the sentence with the first error, in seconds; ``None`` if there is none.
        interrupted_s: Time of the interruption; ``None`` if there was none.
        late_words: Words said from the error to the interruption.
        named: Whether the answer names the number of the wrong step.
        highest: Highest chance of an interruption, had there been none; ``None`` if not known.
    """

    is_correct: bool
    wrong_s: float | None
    interrupted_s: float | None
    late_words: int = 0
    named: bool = False
    highest: float | None = None


def main() -> None:
    """Let all models listen; print and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--solutions", type=Path, required=True)
    parser.add_argument("--graded", type=Path, nargs="+", required=True)
    parser.add_argument("--pairs", type=int, default=100, help="wrong solutions with a right one")
    parser.add_argument("--sums", type=int, default=36, help="solutions with a wrong sum, at most")
    parser.add_argument("--asked", type=int, default=0, help="pairs for the language model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks_gsm8k.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = solution_sets(options.solutions, options.graded, options.pairs, options.sums)
    found: dict[str, Any] = {
        "sets": {name: about(cases) for name, cases in sets.items()},
        "rows": [],
    }
    for name, cases in sets.items():
        for arm, rows in policies(cases).items():
            found["rows"].append({"set": name, "arm": arm, **numbers(rows)})
    for folder in options.folders:
        for name, cases in sets.items():
            rows = listened(folder, cases, options.out)
            found["rows"].append({"set": name, "arm": folder.name, **numbers(rows)})
            print({"set": name, "arm": folder.name, **numbers(rows)}, flush=True)
    if options.asked:
        cases = sets["labelled"][: 2 * options.asked]
        rows, seconds = asked(cases, options.out)
        about_asked = {"set": "labelled", "arm": "SmolLM2-135M, asked", "cases": len(cases)}
        found["rows"].append({**about_asked, **numbers(rows), "core seconds a question": seconds})
    finish(QUESTION, found, str(options.out))


# ------------------------------------------------------------------------------------ solutions


def solution_sets(
    solutions: Path, graded: Sequence[Path], pairs: int, num_sums: int
) -> dict[str, list[Case]]:
    """Return the pairs of labelled wrong and right solutions, and those with a wrong sum."""
    all_of_them = list(read_solutions(solutions))
    right: dict[str, LabelledSolution] = {}
    for one in all_of_them:
        if one.is_correct and not one.wrong_sum:
            right.setdefault(one.question.strip(), one)
    labelled: list[LabelledSolution] = []
    for one in read_graded(graded):
        other = right.pop(one.question.strip(), None)  # each problem once
        if other is not None and not one.is_correct:
            labelled += [one, other]
    sums = [one for one in all_of_them if one.wrong_sum and not one.is_correct]
    cases = as_cases(labelled[: 2 * pairs])
    return {
        "labelled": cases,
        "labelled, within reach": [case for case in cases if within_reach(case.solution)],
        "wrong sum": as_cases(sums[:num_sums]),
    }


def as_cases(solutions: Sequence[LabelledSolution]) -> list[Case]:
    """Return solutions as they are said at the pace of spoken maths."""
    data = SpokenMathsData()
    return [
        Case(one, at_rate(said_problem(one), data.words_per_s, 0, number, data.pace_spread))
        for number, one in enumerate(solutions)
    ]


def about(cases: Sequence[Case]) -> dict[str, Any]:
    """Return how long the solutions are, and how much of them the models know."""
    known = set(vocabulary())
    words = [word.text for case in cases for word in case.heard.words]
    told = [word.text for case in cases for word in case.known.words]
    return {
        "wrong": sum(not case.solution.is_correct for case in cases),
        "right": sum(case.solution.is_correct for case in cases),
        "mean seconds": float(np.mean([case.heard.end_s for case in cases])),
        "words known": sum(word in known for word in words) / len(words),
        "words taken for one that is known": sum(
            own not in known and other != "" for own, other in zip(words, told, strict=True)
        )
        / len(words),
        "within reach": sum(within_reach(case.solution) for case in cases),
    }


def within_reach(solution: LabelledSolution) -> bool:
    """Return whether a solution has what the models were trained on.

    That is two or three steps before the answer, and whole numbers up to 99.
    """
    texts = (solution.question, *solution.steps)
    numbers_of = [number_of(one) for text in texts for one in _NUMBER.findall(text)]
    return len(solution.steps) in (3, 4) and all(n <= 99 and n == int(n) for n in numbers_of)


def number_of(text: str) -> float:
    """Return a number in figures, which may have commas."""
    return float(text.replace(",", ""))


# ------------------------------------------------------------------------------------ policies


def policies(cases: Sequence[Case]) -> dict[str, list[Row]]:
    """Return what policies without a model do after each chunk."""
    ends = {id(case): chunk_ends(case.heard) for case in cases}

    def each(at_s: Callable[[Case], float | None]) -> list[Row]:
        return [row_of(case, at_s(case)) for case in cases]

    found = {
        "never": each(lambda _: None),
        "after the last chunk but one": each(lambda case: ends[id(case)][-1]),
    }
    for chance in CHANCES:
        rng = Random(f"gsm8k {chance}")
        found[f"with the chance {chance:g} after each chunk"] = [
            row_of(case, next((at_s for at_s in ends[id(case)] if rng.random() < chance), None))
            for case in cases
            for _ in range(DRAWS)
        ]
    judges: dict[str, Callable[[LabelledSolution], list[int]]] = {
        "sums as they are written": wrong_written_sums,
        "marks of the calculator": lambda one: [one.wrong_sum],
        "results that the published solution has not": unpublished_results,
        "the label": lambda one: [] if one.is_correct else [one.wrong_step or one.wrong_sum],
    }
    for name, judge in judges.items():
        found[name] = [row_of(case, after_step(case, judge(case.solution))) for case in cases]
    return found


def chunk_ends(heard: Heard) -> list[float]:
    """Return the ends of all chunks but the last, after which the speech is over."""
    return [chunk.end_s for chunk in chunks(heard, SpokenMathsData().chunk_s)[:-1]]


def after_step(case: Case, wrong: Sequence[int]) -> float | None:
    """Return the end of the first chunk, but the last, in which one of some steps has ended."""
    for chunk in chunks(case.heard, SpokenMathsData().chunk_s)[:-1]:
        if any(clause.step and clause.step in wrong for clause in chunk.clauses):
            return chunk.end_s
    return None


def wrong_written_sums(solution: LabelledSolution) -> list[int]:
    """Return the numbers of the steps in which a sum in figures is wrong."""
    return [
        number
        for number, step in enumerate(solution.steps, 1)
        if any(is_wrong(left, right) for left, right in _WRITTEN.findall(step))
    ]


def is_wrong(left: str, right: str) -> bool:
    """Return whether two sides of a sum can be read and differ."""
    text = _BEFORE.sub("", left).rstrip("( ")
    for sign, plain in (("x", "*"), ("\u00d7", "*"), ("\u00f7", "/")):
        text = text.replace(sign, plain)
    ours = value_of(text)
    theirs = value_of(right.rstrip(".,"))
    return ours is not None and theirs is not None and abs(ours - theirs) > TOLERANCE


def unpublished_results(solution: LabelledSolution) -> list[int]:
    """Return the steps with a result that neither the published solution nor the problem has."""
    given = {number_of(one) for one in _NUMBER.findall(f"{solution.question} {solution.worked}")}
    found = []
    for number, step in enumerate(solution.steps[:-1], 1):
        results = re.findall(r"=\s*\$?([0-9][0-9,]*(?:\.[0-9]+)?)", step)
        if any(number_of(one) not in given for one in results):
            found.append(number)
    return found


def row_of(case: Case, at_s: float | None, *, named: bool = False) -> Row:
    """Return what came of a solution that was interrupted at a time, or was not."""
    wrong_s = case.heard.wrong_s
    late = 0
    if at_s is not None and wrong_s is not None:
        late = case.words_by(at_s) - case.words_by(wrong_s)
    return Row(case.solution.is_correct, wrong_s, at_s, late, named)


# ------------------------------------------------------------------------------------ models


def listened(folder: Path, cases: Sequence[Case], out: Path) -> list[Row]:
    """Let a model listen to all solutions; what came of them is kept, so that a run goes on."""
    loaded = load(folder)
    if loaded.run is None or not isinstance(loaded.run.data, SpokenMathsData):
        raise SystemExit(f"{folder} must be a run on spoken maths.")
    data = loaded.run.data
    token_hz = clock_of(data).tokens_per_s

    def one(case: Case) -> Row:
        known = case.known
        free = converse(loaded.system, data, known)
        at_s = next((event.start_s for event in free.where(kind="interruption")), None)
        never = free if at_s is None else converse(loaded.system, data, known, threshold=2.0)
        answer = " ".join(event.text for event in free.where(kind="answer")).split()
        said = ("step", _spelled(case.heard.problem.wrong_step))
        named = at_s is not None and said in zip(answer, answer[1:], strict=False)
        highest = max((chance for chance, _ in rises(never, token_hz)), default=0.0)
        return row_of(case, at_s, named=named)._replace(highest=highest)

    rows = resumed(one, by_text(cases), out.with_suffix(f".{folder.name}.rows.json"))
    return [Row(*row) for row in rows]


def by_text(cases: Sequence[Case]) -> dict[str, Case]:
    """Return cases by their texts."""
    return {"\n".join((case.solution.question, *case.solution.steps)): case for case in cases}


def _spelled(number: int) -> str:
    return " ".join(in_problem_words(str(number)))


EXAMPLES = (
    ("Tom has 5 apples and buys 3. How many has he?", "5 + 3 = 8 apples.", "no"),
    ("Ann has 9 coins and loses 4. How many has she?", "9 + 4 = 13 coins.", "yes"),
)
"""Problems, steps, and whether the step is wrong, which the language model sees first."""


class Checker:
    """A small language model (SmolLM2-135M-Instruct) that is asked whether a step is wrong."""

    def __init__(self) -> None:
        self._package: Any = optional_module("xllamacpp")
        settings = self._package.CommonParams()
        settings.model.path = str(small_model(print))
        settings.n_ctx = 2048
        settings.n_parallel = 1
        settings.cache_ram_mib = 0
        settings.cpuparams.n_threads = 1
        settings.cpuparams_batch.n_threads = 1
        settings.verbosity = -1
        self._server: Any = self._package.Server(settings)

    def __call__(self, solution: LabelledSolution, number: int) -> float:
        """Return the chance of yes among yes and no, as the first token of the answer."""
        request = {
            "messages": question_about(solution, number),
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 20,
            "cache_prompt": True,
        }
        (choice,) = self._server.handle_chat_completions(request)["choices"]
        chances = {"yes": 0.0, "no": 0.0}
        for token in choice["logprobs"]["content"][0]["top_logprobs"]:
            word = token["token"].strip().lower()
            if word in chances:
                chances[word] += math.exp(token["logprob"])
        return chances["yes"] / max(sum(chances.values()), 1e-9)


def asked(cases: Sequence[Case], out: Path) -> tuple[list[Row], float]:
    """Ask a language model after each sentence whether it is wrong; also seconds of a core each.

    A question takes no time on the clock of the conversation.
    """
    checker = Checker()

    def one(case: Case) -> list[Any]:
        began_s = time.process_time()  # of a core, whatever else runs on the machine
        chances = [checker(case.solution, number) for number in range(1, num_steps(case) + 1)]
        return [chances, time.process_time() - began_s]

    found = resumed(one, by_text(cases), out.with_suffix(".asked.rows.json"))
    rows = []
    for case, (chances, _) in zip(cases, found, strict=True):
        wrong = [number for number, chance in enumerate(chances, 1) if chance >= 0.5]
        rows.append(row_of(case, after_step(case, wrong))._replace(highest=max(chances)))
    return rows, sum(seconds for _, seconds in found) / sum(map(num_steps, cases))


def num_steps(case: Case) -> int:
    """Return the number of sentences of a solution."""
    return len(case.solution.steps)


def question_about(solution: LabelledSolution, number: int) -> list[dict[str, str]]:
    """Return the messages that ask whether a step is wrong."""
    told = "You check solutions of maths problems. Say yes if the last sentence is wrong, or no."
    messages = [{"role": "system", "content": told}]
    for problem, step, answer in EXAMPLES:
        messages += [
            {"role": "user", "content": f"{problem}\n{step}\nIs the last sentence wrong?"},
            {"role": "assistant", "content": answer},
        ]
    so_far = " ".join(solution.steps[:number])
    asks = f"{solution.question}\n{so_far}\nIs the last sentence wrong?"
    return [*messages, {"role": "user", "content": asks}]


# ------------------------------------------------------------------------------------ numbers


def numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the shares, with their intervals by Wilson's score, and the latencies."""
    right = [row for row in rows if row.is_correct]
    wrong = [row for row in rows if not row.is_correct]
    made = [row for row in wrong if row.interrupted_s is not None]
    late = [row for row in made if latency_s(row) >= 0]
    return {
        "false alarms": share(sum(row.interrupted_s is not None for row in right), len(right)),
        "wrong interrupted": share(len(made), len(wrong)),
        "after the error": share(len(late), len(wrong)),
        "named": share(sum(row.named for row in late), len(wrong)),
        "median latency s": median(map(latency_s, late)) if late else None,
        "median latency words": median(row.late_words for row in late) if late else None,
        "area": area([row.highest for row in right], [row.highest for row in wrong]),
    }


def latency_s(row: Row) -> float:
    """Return the seconds from the error to the interruption, both of which there must be."""
    return (row.interrupted_s or 0.0) - (row.wrong_s or 0.0)


def share(part: int, whole: int) -> list[float] | None:
    """Return a share with its interval; ``None`` of nothing."""
    if not whole:
        return None
    found = wilson(part, whole)
    return [round(one, 4) for one in (found.value, found.low, found.high)]


def area(right: Sequence[float | None], wrong: Sequence[float | None]) -> float | None:
    """Return how often a wrong solution has a higher chance than a right one; ties count half."""
    if not right or not wrong or None in (*right, *wrong):
        return None
    pairs = np.array(wrong, float)[:, None] - np.array(right, float)
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


if __name__ == "__main__":
    main()
