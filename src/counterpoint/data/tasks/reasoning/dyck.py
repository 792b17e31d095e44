"""Brackets to be closed, with the trace of the stack."""

import random
from functools import partial

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, require

_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_MOST_OPEN = 4


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return so many brackets of which one to four stay open."""
    open_at_end = shape.choice(
        [n for n in range(1, _MOST_OPEN + 1) if n <= operations and (operations - n) % 2 == 0]
    )
    stack = ""
    text = ""
    for left in range(operations - 1, -1, -1):
        may_open = abs(len(stack) + 1 - open_at_end) <= left
        may_close = bool(stack) and abs(len(stack) - 1 - open_at_end) <= left
        if may_open and not (may_close and shape.random() < 0.5):
            stack += values.choice([*_CLOSING])
            text += stack[-1]
        else:
            text += _CLOSING[stack[-1]]
            stack = stack[:-1]
    return text


def _solve(statement: str) -> Solver:
    """Read one bracket a step; the result is the stack after it."""
    stack = ""
    for symbol in statement:
        right = stack + symbol if symbol in _CLOSING else stack[:-1]
        stack = yield SolverStep(f"{stack}{symbol}:", right, partial(_wrong, right))
        require(set(stack) <= set(_CLOSING))
    return "".join(_CLOSING[one] for one in reversed(stack))


def _wrong(right: str, rng: random.Random) -> str:
    """Return the stack with its top changed, lost, or added."""
    others = [one for one in _CLOSING if one != right[-1:]]
    return rng.choice(
        [right + rng.choice(others), *([right[:-1], right[:-1] + rng.choice(others)] * bool(right))]
    )


def _last_open(statement: str, rng: random.Random) -> str:
    """Close the last opening bracket only."""
    return next(_CLOSING[one] for one in reversed(statement) if one in _CLOSING)


DYCK = Family(
    name="dyck",
    wordings=(
        "{}",
        "{}?",
        "Close {}",
        "Complete the brackets {}",
        "Which brackets close {} ?",
        "What is open in {} ?",
        "Keep the stack and close {}",
        "End the sequence {}",
    ),
    statement=_statement,
    solve=_solve,
    guess={"last open bracket": _last_open},
)
