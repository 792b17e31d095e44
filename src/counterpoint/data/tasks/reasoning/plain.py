"""Text without reasoning, in the symbols and words of the reasoning corpora.

A model that has learned it knows the format, so that what it gains from reasoning data is not the
format. It has no step and no answer to a question that takes a step: words in a fixed order of
likely neighbours, lists of facts, closed brackets, and equations without their steps.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from counterpoint.data.tasks.items import ExactMatch, Item, ItemPolicy, Replies, Writer, draw
from counterpoint.data.tasks.reasoning.families import FAMILIES
from counterpoint.errors import UserError

_OPENING = "([{<"
_CLOSING = ")]}>"
_EQUATION = re.compile(r"(\d+)([+*-])(\d+)=$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainText(ExactMatch):
    """Text of the base corpus; a `ScoredTask` whose answers are the results of its equations.

    The equations show what a model knows of arithmetic without steps.

    Attributes:
        num_symbols: Number of symbols after which no sentence is added.
        most_digits: Largest number of digits of a number in an equation.
    """

    name: ClassVar[str] = "plain"
    primary: ClassVar[str] = "equation"
    num_symbols: int = 200
    most_digits: int = 3

    def __post_init__(self) -> None:
        if self.num_symbols < 1 or self.most_digits < 1:
            raise UserError(
                "`num_symbols` and `most_digits` must be >= 1: got "
                f"{self.num_symbols} and {self.most_digits}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.num_symbols + 120 + 4 * self.most_digits

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        writer = Writer()
        kinds = (_sentence, _facts, _brackets, self._equation)
        while len(writer.text) < self.num_symbols:
            rng.choice(kinds)(writer, rng)
        return writer.item()

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {"oracle": _oracle, "last digit": _last_digit}

    def _equation(self, writer: Writer, rng: random.Random) -> None:
        """Write an equation with its result, and no step."""
        first, second = (rng.randrange(10 ** rng.randint(1, self.most_digits)) for _ in range(2))
        operator = rng.choice("+-*")
        if first < second:
            first, second = second, first
        writer.write(f"{first}{operator}{second}=")
        writer.answer(self.primary, str(_value(first, operator, second)))
        writer.write("\n")


def _sentence(writer: Writer, rng: random.Random) -> None:
    """Write words, each one of four likely neighbours of the word before it."""
    words = _words()
    place = int(len(words) ** rng.random()) - 1  # the first words are more frequent, as in Zipf
    said = []
    for _ in range(rng.randint(3, 10)):
        said.append(words[place])
        place = (7 * place + 1 + rng.randrange(4)) % len(words)
    writer.write(" ".join(said) + rng.choice(".?,:") + "\n")


def _facts(writer: Writer, rng: random.Random) -> None:
    """Write a list of names and numbers under a number of its own."""
    names = rng.sample(_words(), rng.randint(2, 5))
    listed = "".join(f"{name} {rng.randrange(100)};" for name in names)
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4))
    writer.write(f"#{rng.randrange(100)}:{letters};{listed}\n")


def _brackets(writer: Writer, rng: random.Random) -> None:
    """Write brackets that are all closed."""
    stack: list[str] = []
    text = ""
    left = rng.randint(2, 10)
    while left or stack:
        if left and (not stack or rng.random() < 0.5):
            kind = rng.randrange(4)
            stack.append(_CLOSING[kind])
            text += _OPENING[kind]
            left -= 1
        else:
            text += stack.pop()
    writer.write(text + "\n")


@lru_cache(maxsize=1)
def _words() -> list[str]:
    """Return all words of the questions of all families, in a fixed order without a meaning."""
    rng = random.Random(0)
    texts = [
        family.question(family.statement(operations, rng, rng), template)
        for family in FAMILIES.values()
        for template in range(len(family.wordings))
        for operations in (2, 6)
    ]
    found = sorted({word for text in texts for word in re.findall(r"[A-Za-z]{2,}", text)})
    random.Random(1).shuffle(found)
    return found


def _value(first: int, operator: str, second: int) -> int:
    if operator == "*":
        return first * second
    return first + second if operator == "+" else first - second


def _equations(item: Item) -> list[tuple[int, str, int]]:
    found = []
    for answer in item.answers:
        match = _EQUATION.search(item.text[: answer.start])
        if match is None:
            raise AssertionError("an answer stands after its equation")
        found.append((int(match[1]), match[2], int(match[3])))
    return found


def _oracle(item: Item, rng: random.Random) -> Replies:
    """Compute what is on the left of every equation."""
    return {number: str(_value(*one)) for number, one in enumerate(_equations(item))}


def _last_digit(item: Item, rng: random.Random) -> Replies:
    """Know the last digits of both numbers only."""
    return {
        number: str(_value(first % 10, operator, second % 10) % 10)
        for number, (first, operator, second) in enumerate(_equations(item))
    }
