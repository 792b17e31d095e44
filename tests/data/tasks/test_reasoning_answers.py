"""The answers of every family against programs that share nothing with its solver."""

import itertools
import re
from collections.abc import Callable

import pytest

from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.families import FAMILIES


def arithmetic(statement: str) -> str:
    return str(eval(statement))


def equations(statement: str) -> str:
    """Try all values of all unknowns."""
    shown, rest = statement.split(" mod ")
    prime, asked = rest.split(", ")
    sides = [one.split("=") for one in shown.split(", ")]
    letters = sorted(set(re.findall("[a-z]", shown)))
    found = []
    for values in itertools.product(range(int(prime)), repeat=len(letters)):
        known = dict(zip(letters, values, strict=True))
        totals = [
            eval(re.sub(r"(\d)([a-z])", r"\1*\2", left), {}, dict(known)) for left, _ in sides
        ]
        if all((a - int(b)) % int(prime) == 0 for a, (_, b) in zip(totals, sides, strict=True)):
            found.append(str(known[asked]))
    assert len(found) == 1
    return found[0]


def listops(statement: str) -> str:
    """Translate into calls of Python."""
    calls = {
        "MX": lambda *n: max(n),
        "MN": lambda *n: min(n),
        "MD": lambda *n: sorted(n)[(len(n) - 1) // 2],
        "SM": lambda *n: sum(n) % 10,
    }
    text = re.sub(r"\[(\w\w) ", r"\1(", statement).replace("]", ")").replace(" ", ",")
    return str(eval(text, {}, calls))


def dyck(statement: str) -> str:
    """Close what is left when all closed pairs are removed."""
    while statement != (less := re.sub(r"\(\)|\[\]|\{\}|<>", "", statement)):
        statement = less
    assert not set(statement) & set(")]}>")
    return statement[::-1].translate(str.maketrans("([{<", ")]}>"))


def graphs(statement: str) -> str:
    """Spread from node to node until nothing changes."""
    shown, asked = statement.split(", ")
    start, target = asked.split(" to ")
    reached = {start}
    for _ in shown.split():
        reached |= {edge[1] for edge in shown.split() if edge[0] in reached}
    return "yes" if target in reached else "no"


def rewriting(statement: str) -> str:
    shown, text, times = statement.split(", ")
    for _ in range(int(times.split()[0])):
        for rule in shown.split():
            left, right = rule.split(">")
            place = text.find(left)
            if place >= 0:
                text = text[:place] + right + text[place + len(left) :]
                break
    return text


def sorting(statement: str) -> str:
    *numbers, order = statement.split()
    return " ".join(map(str, sorted(map(int, numbers), reverse=order == "falling")))


def word_problems(statement: str) -> str:
    """Turn every sentence into an assignment, and run those that can be run."""
    told = dict(re.findall(r"The (\w+) has (.*?)\.", statement))
    known: dict[str, int] = {}
    while len(known) < len(told):
        for name, text in told.items():
            text = re.sub(r"(\d+) more than", r"\1 +", text).replace("plus", "+")
            text = text.replace("times", "*").replace("the ", "")
            for other, value in known.items():
                text = re.sub(rf"\b{other}\b", str(value), text)
            if not re.search("[a-z]", text):
                known[name] = eval(text) % 23
    asked = re.search(r"How many has the (\w+), mod 23$", statement)
    assert asked
    return str(known[asked[1]])


SOLVERS: dict[str, Callable[[str], str]] = {
    "arithmetic": arithmetic,
    "equations": equations,
    "listops": listops,
    "dyck": dyck,
    "graphs": graphs,
    "rewriting": rewriting,
    "sorting": sorting,
    "word_problems": word_problems,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_another_program(name: str) -> None:
    most = 3 if name == "equations" else 9  # all values of all unknowns are tried
    task = Reasoning(families=(name,), operations=(1, most), most_symbols=2000)
    for number in range(60):
        item = task.item(5, number)
        statement = FAMILIES[name].statement_of(item.prompt[:-1])
        assert item.answers[0].text == SOLVERS[name](statement)
