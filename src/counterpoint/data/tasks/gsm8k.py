"""Labelled solutions of grade-school problems by four models: spoken maths out of its domain.

The file is ``example_model_solutions.jsonl`` of github.com/openai/grade-school-math. Solutions are
labelled right or wrong as a whole; the first step whose own sum is wrong is found here from the
marks of the calculator (``<<3+4=7>>``), and most wrong solutions have no such step.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import UserError
from counterpoint.files import read_json_lines

_SUM = re.compile(r"<<([^=<>]+)=([^<>]+)>>")
_ANSWER = re.compile(r"^A: *", re.MULTILINE)
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
    """

    question: str
    model: str
    steps: tuple[str, ...]
    is_correct: bool
    wrong_sum: int = 0


def read_solutions(path: Path) -> Iterator[LabelledSolution]:
    """Yield all solutions of a file, problem by problem.

    Raises:
        UserError: A line is not what it must be.
    """
    for place, line in read_json_lines(path):
        try:
            question = str(line["question"])
            for model, own in line.items():
                if isinstance(own, dict):
                    yield _solution(question, model, own)
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{place}: a line must have a question, and models with their solution and "
                "`is_correct`."
            ) from None


def _solution(question: str, model: str, own: dict[str, Any]) -> LabelledSolution:
    lines = [line for line in str(own["solution"]).split("\n") if line.strip()]
    wrong = [number for number, line in enumerate(lines, 1) if not _sums_hold(line)]
    said = tuple(_ANSWER.sub("The answer is ", _SUM.sub("", line)).strip() for line in lines)
    return LabelledSolution(
        question=question,
        model=model,
        steps=said,
        is_correct=bool(own["is_correct"]),
        wrong_sum=wrong[0] if wrong else 0,
    )


def _sums_hold(line: str) -> bool:
    """Return whether every sum of a line is right, as far as it can be read."""
    for left, right in _SUM.findall(line):
        ours = _value(left)
        theirs = _value(right)
        if ours is not None and theirs is not None and abs(ours - theirs) > _TOLERANCE:
            return False
    return True


def _value(text: str) -> float | None:
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
