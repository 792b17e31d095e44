"""Linear equations modulo a prime, each with one new unknown."""

import random
import re

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, another, require

_PRIMES = (5, 7, 11)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EQUATION = re.compile(r"(\d+)([a-z])\+(?:(\d+)|([a-z])(?:\+([a-z]))?)=(\d+)")


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return so many equations; each needs the unknown of the one before it."""
    prime = shape.choice(_PRIMES)
    letters = values.sample(_LETTERS, operations)
    equations = []
    for place, letter in enumerate(letters):
        known = letters[place - 1 : place] or [str(values.randrange(1, prime))]
        if place > 1 and shape.random() < 0.5:
            known.append(letters[shape.randrange(place - 1)])
        factor = values.randrange(1, prime)
        equations.append(f"{factor}{letter}+{'+'.join(known)}={values.randrange(prime)}")
    return f"{', '.join(equations)} mod {prime}, {letters[-1]}"


def _solve(statement: str) -> Solver:
    """Solve one equation a step, with the values of the earlier unknowns put in."""
    prime = int(statement.split(" mod ")[1].split(",")[0])
    possible = [str(one) for one in range(prime)]
    known: dict[str, int] = {}
    value = 0
    for factor, letter, number, first, second, total in _EQUATION.findall(statement):
        added = int(number) if number else (known[first] + known.get(second, 0)) % prime
        right = str((int(total) - added) * pow(int(factor), -1, prime) % prime)
        given = f"{factor}{letter}+{added}={total},{letter}="
        written = yield SolverStep(given, right, another(right, possible))
        require(written in possible)
        value = int(written)
        known[letter] = value
    return str(value)


def _last_equation(statement: str, rng: random.Random) -> str:
    """Know the last equation but not the unknowns before it."""
    prime = int(statement.split(" mod ")[1].split(",")[0])
    factor, _, number, _, _, total = _EQUATION.findall(statement)[-1]
    added = int(number) if number else rng.randrange(prime)
    return str((int(total) - added) * pow(int(factor), -1, prime) % prime)


EQUATIONS = Family(
    name="equations",
    wordings=(
        "{}",
        "{}=?",
        "Solve {}.",
        "Given {}, what is it?",
        "Find the last unknown of {}.",
        "Which number is it: {}?",
        "Solve one equation after another: {}.",
        "Put the known values in: {}.",
    ),
    statement=_statement,
    solve=_solve,
    guess={"last equation": _last_equation},
)
