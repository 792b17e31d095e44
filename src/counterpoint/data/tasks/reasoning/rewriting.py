"""Strings that are rewritten by rules: the first rule that applies, at its leftmost place."""

import random
from functools import partial
from itertools import product

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, require

_LETTERS = "abc"
_PAIRS = tuple(map("".join, product(_LETTERS, repeat=2)))


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return rules under which a string can be rewritten so often, and the string."""
    while True:
        rules = [(left, _right(left, shape)) for left in shape.sample(_PAIRS, 3)]
        for _ in range(20):
            start = "".join(values.choices(_LETTERS, k=operations + 3))
            text: str | None = start
            for _ in range(operations):
                text = _rewritten(text, rules) if text else None
            if text and text != start:
                shown = " ".join(f"{left}>{right}" for left, right in rules)
                return f"{shown}, {start}, {operations} times"


def _right(left: str, shape: random.Random) -> str:
    """Return what a pair becomes: another pair or, in one of three rules, a single letter."""
    if shape.random() < 1 / 3:
        return shape.choice(_LETTERS)
    return shape.choice([one for one in _PAIRS if one != left])


def _rewritten(text: str, rules: list[tuple[str, str]]) -> str | None:
    for left, right in rules:
        if left in text:
            return text.replace(left, right, 1)
    return None


def _solve(statement: str) -> Solver:
    """Rewrite once a step; the result is the string after it."""
    shown, text, times = statement.split(", ")
    rules = [(left, right) for left, _, right in (one.partition(">") for one in shown.split(" "))]
    for _ in range(int(times.split(" ")[0])):
        right = _rewritten(text, rules) or text
        text = yield SolverStep(f"{text}>", right, partial(_wrong, right))
        require(bool(text) and set(text) <= set(_LETTERS))
    return text


def _wrong(right: str, rng: random.Random) -> str:
    """Return the string with one letter changed."""
    place = rng.randrange(len(right))
    letter = rng.choice([one for one in _LETTERS if one != right[place]])
    return right[:place] + letter + right[place + 1 :]


def _first_rule(statement: str, rng: random.Random) -> str:
    """Know the first rule only, and apply it as often as it applies."""
    shown, text, times = statement.split(", ")
    left, _, right = shown.split(" ")[0].partition(">")
    for _ in range(int(times.split(" ")[0])):
        text = text.replace(left, right, 1)
    return text


REWRITING = Family(
    name="rewriting",
    wordings=(
        "{}",
        "{}=?",
        "Rewrite {}.",
        "Apply the rules {}.",
        "What becomes of it: {}?",
        "With the first rule that applies: {}.",
        "Give the string after {}.",
        "Which string is left: {}?",
    ),
    statement=_statement,
    solve=_solve,
    guess={"first rule": _first_rule},
)
