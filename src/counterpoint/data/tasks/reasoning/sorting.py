"""Numbers to be sorted, by insertion."""

import random
from functools import partial

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, require

_RISING = "rising"
_FALLING = "falling"


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return one number more than insertions, all different, and the order."""
    numbers = values.sample(range(10, 100), operations + 1)
    return f"{' '.join(map(str, numbers))} {shape.choice((_RISING, _FALLING))}"


def _solve(statement: str) -> Solver:
    """Insert one number a step; the result is the list with it."""
    *numbers, order = statement.split(" ")
    done = numbers[:1]
    for number in numbers[1:]:
        given = f"{' '.join(done)}+{number}="
        right = _inserted(done, number, order)
        written = yield SolverStep(given, " ".join(right), partial(_wrong, right))
        done = written.split(" ")
        require(all(one.isdecimal() and one.isascii() for one in done))
    return " ".join(done)


def _inserted(done: list[str], number: str, order: str) -> list[str]:
    """Return the list with a number before the first one that must come after it."""
    for place, other in enumerate(done):
        if (int(number) < int(other)) == (order == _RISING):
            return [*done[:place], number, *done[place:]]
    return [*done, number]


def _wrong(right: list[str], rng: random.Random) -> str:
    """Return the list with two neighbours exchanged."""
    place = rng.randrange(len(right) - 1)
    changed = [*right]
    changed[place : place + 2] = reversed(right[place : place + 2])
    return " ".join(changed)


def _first_known(statement: str, rng: random.Random) -> str:
    """Know which number comes first, and order the others by chance."""
    *numbers, order = statement.split(" ")
    first = min(numbers, key=int) if order == _RISING else max(numbers, key=int)
    others = [one for one in numbers if one != first]
    rng.shuffle(others)
    return " ".join([first, *others])


SORTING = Family(
    name="sorting",
    wordings=(
        "{}",
        "{}=?",
        "Sort {}.",
        "Order these: {}.",
        "Put in order: {}.",
        "Which order is it: {}?",
        "Insert one after another: {}.",
        "Arrange the numbers {}.",
    ),
    statement=_statement,
    solve=_solve,
    guess={"first number": _first_known},
)
