"""Labelled solutions of grade-school problems by models: spoken maths out of its domain.

Two kinds of files are read. ``example_model_solutions.jsonl`` of github.com/openai/
grade-school-math has solutions by four models, labelled right or wrong as a whole, by their
answers; nobody says where a wrong one goes wrong. The first step whose own sum is wrong is found
here from the marks of the calculator (``<<3+4=7>>``): 36 of its 3,275 wrong solutions have one.

Results in ``eval_results/gpt4-grading`` of github.com/dvlab-research/MR-GSM8K repeat the solutions
of MR-GSM8K (arXiv:2312.17080), each with the step that a person labelled as the first wrong one.
They are those wrong solutions of which a graded model named the right step, so easier ones.
"""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import UserError
from counterpoint.files import read_json_lines

_SUM = re.compile(r"<<([^=<>]+)=([^<>]+)>>")
_ANSWER = re.compile(r"^(?:A:|####) *")
_NUMBER = re.compile(r"^Step \d+: *")
_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_TOLERANCE = 0.01  # solutions round to cents


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSolution:
    """A solution of a problem.

    Attributes:
        question: The problem.
        model: Name of the model that solved it.
        steps: Sentences of the solution as they may be said, without marks; the last is the answer.
        is_correct: Whether the solution is right.
        wrong_sum: Number of the first step whose own sum is wrong, counted from 1; 0 if there is
            none, which does not mean that the steps are right.
        wrong_step: Number of the first wrong step by the label of a person, counted from 1; 0 if
            nobody labelled the steps.
        worked: The published solution of the problem, with marks; empty if the file has none.
    """

    question: str
    model: str
    steps: tuple[str, ...]
    is_correct: bool
    wrong_sum: int = 0
    wrong_step: int = 0
    worked: str = ""


def read_solutions(path: Path) -> Iterator[LabelledSolution]:
    """Yield all solutions of a file, problem by problem.

    Raises:
        UserError: A line is not what it must be.
    """
    for place, line in read_json_lines(path):
        try:
            question = str(line["question"])
            worked = str(line.get("ground_truth", ""))
            for model, own in line.items():
                if isinstance(own, dict):
                    yield _solution(question, model, own, worked)
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{place}: a line must have a question, and models with their solution and "
                "`is_correct`."
            ) from None


def read_graded(paths: Sequence[Path]) -> Iterator[LabelledSolution]:
    """Yield the solutions of MR-GSM8K in some results, each once, with the labels of a person.

    Only solutions of unchanged problems in sentences are yielded, not programs nor reversed ones.

    Raises:
        UserError: A file is not what it must be.
    """
    seen: set[str] = set()
    for path in paths:
        try:
            for own in json.loads(path.read_text()):
                if own["question_type"] == "original" and own["uuid"] not in seen:
                    seen.add(own["uuid"])
                    yield _graded(own)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} must be a list of graded solutions of MR-GSM8K, each with its question, "
                f"`model_output_steps` and labels: {error!r}."
            ) from None


def _solution(question: str, model: str, own: dict[str, Any], worked: str) -> LabelledSolution:
    lines = [one for one in str(own["solution"]).split("\n") if one.strip()]
    return LabelledSolution(
        question=question,
        model=model,
        steps=tuple(map(_said, lines)),
        is_correct=bool(own["is_correct"]),
        wrong_sum=_wrong_sum(lines),
        worked=worked,
    )


def _graded(own: dict[str, Any]) -> LabelledSolution:
    lines = [str(line) for line in own["model_output_steps"]]
    is_correct = own["model_output_solution_correctness"] == "correct"
    return LabelledSolution(
        question=str(own["question"]),
        model="",
        steps=tuple(map(_said, lines)),
        is_correct=is_correct,
        wrong_sum=_wrong_sum(lines),
        wrong_step=0 if is_correct else int(own["model_output_solution_first_error_step"]),
        worked=str(own["ground_truth_solution"]),
    )


def _said(line: str) -> str:
    """Return a step as it may be said."""
    bare = _NUMBER.sub("", _SUM.sub("", line).strip())
    return _ANSWER.sub("The answer is ", bare).strip()


def _wrong_sum(lines: Sequence[str]) -> int:
    """Return the number of the first line with a wrong sum, counted from 1; 0 if there is none."""
    return next((number for number, line in enumerate(lines, 1) if not _sums_hold(line)), 0)


def _sums_hold(line: str) -> bool:
    """Return whether every sum of a line is right, as far as it can be read."""
    for left, right in _SUM.findall(line):
        ours = value_of(left)
        theirs = value_of(right)
        if ours is not None and theirs is not None and abs(ours - theirs) > _TOLERANCE:
            return False
    return True


def value_of(text: str) -> float | None:
    """Return the value of numbers with + - * / and brackets; ``None`` if it is something else."""
    try:
        return _of(ast.parse(text.replace(",", "").replace("$", "").strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _of(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_of(node.left), _of(node.right))
    raise ValueError("no sum")
