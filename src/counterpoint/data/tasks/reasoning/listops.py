"""ListOps: nested lists of digits with an operator each.

Source: Nangia and Bowman, ListOps (2018), with the sum modulo 10 at the root.
"""

import random
import re

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, another, require

_INNERMOST = re.compile(r"\[(\w\w) ([\d ]+)\]")
_OPERATORS = ("MX", "MN", "MD", "SM")
_DIGITS = tuple("0123456789")


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return a list with so many operators.

    The root is a sum modulo 10 with a digit of its own, so every digit is the answer equally often.
    """
    below: list[list[int]] = [[] for _ in range(operations)]
    for node in range(1, operations):
        below[shape.choice([one for one in range(node) if len(below[one]) < 3])].append(node)
    operators = ["SM", *(shape.choice(_OPERATORS) for _ in range(operations - 1))]

    def written(node: int) -> str:
        least = 1 if below[node] else 2
        members: list[int | None] = [*below[node], *[None] * shape.randint(least, 2)]
        shape.shuffle(members)
        texts = [values.choice(_DIGITS) if one is None else written(one) for one in members]
        return f"[{operators[node]} {' '.join(texts)}]"

    return written(0)


def _solve(statement: str) -> Solver:
    """Replace one innermost list a step, from the left."""
    left = statement
    while found := _INNERMOST.search(left):
        right = str(_value(found[1], [int(one) for one in found[2].split()]))
        written = yield SolverStep(f"{found[0]}=", right, another(right, _DIGITS))
        require(written in _DIGITS)
        left = left[: found.start()] + written + left[found.end() :]
    return left


def _value(operator: str, numbers: list[int]) -> int:
    if operator == "MX":
        return max(numbers)
    if operator == "MN":
        return min(numbers)
    if operator == "MD":  # the lower one of two
        return sorted(numbers)[(len(numbers) - 1) // 2]
    return sum(numbers) % 10


def _outer_list(statement: str, rng: random.Random) -> str:
    """Know the digits of the outer list, and guess the lists in it."""
    depth = 0
    total = 0
    for symbol in statement:
        depth += (symbol == "[") - (symbol == "]")
        if symbol == "]" and depth == 1:
            total += rng.randrange(10)
        elif symbol.isdigit() and depth == 1:
            total += int(symbol)
    return str(total % 10)


LISTOPS = Family(
    name="listops",
    wordings=(
        "{}",
        "{}=?",
        "What is {}?",
        "Evaluate {}.",
        "Reduce {} to a digit.",
        "Find the digit of {}.",
        "Begin inside and evaluate {}.",
        "Which digit does {} give?",
    ),
    statement=_statement,
    solve=_solve,
    guess={"outer list": _outer_list},
)
