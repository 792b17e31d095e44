"""Sums, differences and products of numbers with many digits, from the last digit to the first."""

import random

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, another, require

_OPERATORS = "+-*"


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return two numbers with so many digits; a product has one digit on its right."""
    operator = shape.choice(_OPERATORS)
    first = _number(operations, values)
    second = _number(1 if operator == "*" else operations, values)
    if operator == "-" and first < second:
        return f"{second}-{first}"
    return f"{first}{operator}{second}"


def _number(num_digits: int, values: random.Random) -> int:
    return values.randrange(10 ** (num_digits - 1), 10**num_digits)


def _solve(statement: str) -> Solver:
    """Work on one digit a step; the result of a step has the carry in its tens."""
    operator = next(one for one in _OPERATORS if one in statement)
    first, second = statement.split(operator)
    digits = ""
    carry = 0
    for place in range(1, len(first) + 1):
        above = int(first[-place])
        below = int(second[-1] if operator == "*" else second[-place])
        given = f"{above}{operator}{below}{'-' if operator == '-' else '+'}{carry}="
        right = str(_step(operator, above, below, carry))
        possible = [str(one) for one in (range(-10, 10) if operator == "-" else range(90))]
        # A wrong result is near the right one, as a slip is.
        near = [str(int(right) + by) for by in (-2, -1, 1, 2)]
        written = yield SolverStep(
            given, right, another(right, [one for one in near if one in possible])
        )
        require(written in possible)
        value = int(written)
        carry = int(value < 0) if operator == "-" else value // 10
        digits = f"{value % 10}{digits}"
    return str(int(digits if operator == "-" else f"{carry}{digits}"))


def _step(operator: str, above: int, below: int, carry: int) -> int:
    if operator == "-":
        return above - below - carry
    return (above * below if operator == "*" else above + below) + carry


def _last_digits(statement: str, rng: random.Random) -> str:
    """Know the last digits of both numbers and guess the digits before."""
    operator = next(one for one in _OPERATORS if one in statement)
    first, second = statement.split(operator)
    last = _step(operator, int(first[-1]), int(second[-1]), 0) % 10
    return f"{_number(len(first) - 1, rng)}{last}" if len(first) > 1 else str(last)


ARITHMETIC = Family(
    name="arithmetic",
    wordings=(
        "{}",
        "{}=?",
        "What is {}?",
        "Compute {}.",
        "How much is {}?",
        "Find the value of {}.",
        "Work out {} digit by digit.",
        "Tell me what {} makes.",
    ),
    statement=_statement,
    solve=_solve,
    guess={"last digits": _last_digits},
)
