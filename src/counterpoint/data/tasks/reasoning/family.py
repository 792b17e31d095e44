"""A family of questions: how it is stated, solved step by step, and how a solution is checked.

Every family has one solver, which writes solutions and checks them. It is a Python generator: it
yields a step, is sent the result *as it was written*, and goes on from there; it ends with the
answer. Sent the right results, it solves the question. Sent a wrong one, it goes on from the wrong
one, as somebody who errs does, so that every later step can still be judged by itself.

A solution is one line: steps, each ended by ";", then "#", the answer and a line break.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

STEP_END = ";"
ANSWER_MARK = "#"
SOLUTION_END = "\n"
"""Last symbol of a question, and of a solution."""

_MOST_STEPS = 1000


class SolverStep(NamedTuple):
    """A step of a solution.

    Attributes:
        given: What is written before the result.
        result: The right result.
        wrong: Returns another result of the same form.
    """

    given: str
    result: str
    wrong: Callable[[random.Random], str]


Solver = Generator[SolverStep, str, str]
"""Yields steps and is sent their results as written; a result without the right form raises
`ValueError`. It ends, whatever it is sent, and returns the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Questions that are solved by the same kind of steps.

    Attributes:
        name: Short name.
        wordings: Templates of the question; "{}" stands for the statement.
        statement: Returns a statement, given the number of operations, and the random numbers of
            its shape and of its values. The shape does not determine the answer.
        solve: Returns a solver of a statement; it knows nothing but the statement.
        guess: Returns an answer of somebody who knows a part of the statement only; the key says
            which part.
    """

    name: str
    wordings: tuple[str, ...]
    statement: Callable[[int, random.Random, random.Random], str]
    solve: Callable[[str], Solver]
    guess: Mapping[str, Callable[[str, random.Random], str]]

    def question(self, statement: str, template: int) -> str:
        """Return a statement in the words of a template."""
        return self.wordings[template].replace("{}", statement)

    def statement_of(self, question: str) -> str:
        """Return the statement of a question in any of the templates."""
        for wording in sorted(self.wordings, key=len, reverse=True):
            before, _, after = wording.partition("{}")
            if question.startswith(before) and question.endswith(after):
                return question[len(before) : len(question) - len(after)]
        raise AssertionError("one of the wordings is the plain statement")


class Solution(NamedTuple):
    """A solution as it is written.

    Attributes:
        lines: The steps that are written, without `STEP_END`.
        results: Their results.
        answer: The answer, which is wrong if a step is wrong and nothing after it mends it.
    """

    lines: list[str]
    results: list[str]
    answer: str


def write_solution(
    solver: Solver, rng: random.Random, errors: float = 0.0, skipped: float = 0.0
) -> Solution:
    """Write a solution.

    Args:
        solver: Solver of the statement.
        rng: Random numbers of its faults.
        errors: Share of the written steps with a wrong result.
        skipped: Share of the steps that are not written; their results are right.
    """
    lines = []
    results = []
    try:
        step = next(solver)
        while True:
            result = step.result
            if rng.random() >= skipped:
                if rng.random() < errors:
                    result = step.wrong(rng)
                lines.append(step.given + result)
                results.append(result)
            step = solver.send(result)
    except StopIteration as end:
        return Solution(lines, results, end.value)


class Verdict(NamedTuple):
    """How good a solution is.

    Attributes:
        is_right: Whether its answer is that of the question.
        is_ended: Whether it has an answer and ends after it.
        num_steps: Number of steps that it writes.
        num_valid: Number of these that follow from the question and the steps before them.
        num_needed: Number of steps of the full solution.
    """

    is_right: bool
    is_ended: bool
    num_steps: int
    num_valid: int
    num_needed: int

    @property
    def is_sound(self) -> bool:
        """Whether the answer is right and every written step is valid.

        An answer alone is not sound where steps are needed: it shows nothing of them.
        """
        return self.is_right and self.num_valid == self.num_steps >= min(self.num_needed, 1)

    @property
    def is_complete(self) -> bool:
        """Whether it is sound and has every step of the full solution."""
        return self.is_sound and self.num_valid == self.num_needed


def written_answer(solution: str) -> str | None:
    """Return the answer of a solution; ``None`` if it has none or does not end after it."""
    _, mark, rest = solution.partition(ANSWER_MARK)
    answer, end, more = rest.partition(SOLUTION_END)
    return answer if mark and end and not more else None


def check_solution(family: Family, statement: str, text: str) -> Verdict:
    """Judge a solution by its text and the statement alone.

    Steps may be missing; then they count as done rightly. A line that fits no step that is still to
    be done is invalid, and so are all lines after it. The order of the steps is a part of the
    method.
    """
    answer = written_answer(text)
    lines = text.partition(ANSWER_MARK)[0].split(STEP_END)
    if not lines[-1]:
        lines.pop()
    true = write_solution(family.solve(statement), random.Random(0))
    return Verdict(
        is_right=answer == true.answer,
        is_ended=answer is not None,
        num_steps=len(lines),
        num_valid=_count_valid(family.solve(statement), lines),
        num_needed=len(true.lines),
    )


def _count_valid(solver: Solver, lines: Sequence[str]) -> int:
    """Return the number of lines whose result is right, given the results written before it."""
    valid = 0
    try:
        step = next(solver)
        for line in lines:
            for _ in range(_MOST_STEPS):
                if line.startswith(step.given):
                    break
                step = solver.send(step.result)
            result = line.removeprefix(step.given)
            valid += result == step.result
            step = solver.send(result)
    except (StopIteration, ValueError):
        pass
    return valid


def another(right: str, choices: Sequence[str]) -> Callable[[random.Random], str]:
    """Return a function that chooses a result other than the right one."""
    return lambda rng: rng.choice([one for one in choices if one != right])


def require(holds: bool) -> None:
    """Refuse a written result that has not the form of the step.

    Raises:
        ValueError: It has another form.
    """
    if not holds:
        raise ValueError
