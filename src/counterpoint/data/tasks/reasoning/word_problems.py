"""Word problems over a graph of quantities, some of which are not needed, modulo 23.

Source: iGSM of Ye et al., Physics of language models, part 2.1 (arXiv:2407.20311), in a smaller
form: one kind of quantity, four kinds of sentences.
"""

import random
import re

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, another, require

_MODULUS = 23
_NAMES = (
    *("bag", "bin", "bowl", "box", "can", "case", "chest", "crate", "cup", "dish"),
    *("jar", "jug", "keg", "kettle", "mug", "pail", "pan", "plate", "pot", "rack"),
    *("sack", "shelf", "tank", "tin", "tray", "tub", "urn", "van", "vase", "vat"),
)
_POSSIBLE = tuple(map(str, range(_MODULUS)))
_SENTENCE = re.compile(
    r"The (\w+) has (?:(\d+)"
    r"|(\d+) more than the (\w+)"
    r"|(\d+) times the (\w+)"
    r"|the (\w+) plus the (\w+))\."
)


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return a problem with so many operations after the first number, and two idle quantities.

    Every value is equally often the answer: a number is added, or multiplied by an invertible one.
    """
    num_needed = operations + 1
    names = values.sample(_NAMES, num_needed + 2)
    sentences = [f"The {names[0]} has {values.randrange(_MODULUS)}."]
    for place in range(1, len(names)):
        # A needed quantity reads the one before it, an idle one reads any of the needed ones.
        source = place - 1 if place < num_needed else shape.randrange(num_needed)
        kind = shape.choice("+*&") if place > 1 else shape.choice("+*")
        if kind == "+":
            said = f"{values.randint(1, 9)} more than the {names[source]}"
        elif kind == "*":
            said = f"{values.randint(2, 5)} times the {names[source]}"
        else:
            other = shape.choice([one for one in range(min(place, num_needed)) if one != source])
            said = f"the {names[source]} plus the {names[other]}"
        sentences.append(f"The {names[place]} has {said}.")
    values.shuffle(sentences)
    return f"{' '.join(sentences)} How many has the {names[operations]}, mod {_MODULUS}"


def _solve(statement: str) -> Solver:
    """Find one needed quantity a step, each after those that it needs."""
    told = {groups[0]: groups[1:] for groups in _SENTENCE.findall(statement)}
    asked = statement.rpartition(" has the ")[2].partition(",")[0]
    known: dict[str, int] = {}
    for name in _needed(told, asked):
        number, more, base, times, factored, first, second = told[name]
        if number:
            given = f"{name}="
            value = int(number)
        elif more:
            given = f"{name}={more}+{known[base]}="
            value = int(more) + known[base]
        elif times:
            given = f"{name}={times}*{known[factored]}="
            value = int(times) * known[factored]
        else:
            given = f"{name}={known[first]}+{known[second]}="
            value = known[first] + known[second]
        right = str(value % _MODULUS)
        written = yield SolverStep(given, right, another(right, _POSSIBLE))
        require(written in _POSSIBLE)
        known[name] = int(written)
    return str(known[asked])


def _needed(told: dict[str, tuple[str, ...]], asked: str) -> list[str]:
    """Return the needed quantities, each after those that it reads."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for other in told[name]:
                if other.isalpha():
                    visit(other)
            order.append(name)

    visit(asked)
    return order


def _own_sentence(statement: str, rng: random.Random) -> str:
    """Know the sentence about the quantity asked for, and guess the quantities in it."""
    told = {groups[0]: groups[1:] for groups in _SENTENCE.findall(statement)}
    asked = statement.rpartition(" has the ")[2].partition(",")[0]
    number, more, _, times, _, _, _ = told[asked]
    guessed = rng.randrange(_MODULUS)
    value = int(number) if number else int(times or 1) * guessed + int(more or 0)
    return str(value % _MODULUS)


WORD_PROBLEMS = Family(
    name="word_problems",
    wordings=(
        "{}",
        "{}?",
        "Problem: {}?",
        "Read and compute. {}?",
        "Some sentences do not matter. {}?",
        "{}? Think in steps.",
        "Answer with a number. {}?",
        "Here are some things. {}?",
    ),
    statement=_statement,
    solve=_solve,
    guess={"own sentence": _own_sentence},
)
