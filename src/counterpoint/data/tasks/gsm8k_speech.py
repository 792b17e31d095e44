"""Solutions of grade-school problems as they are said, in the form of spoken maths."""

import re
from collections.abc import Iterator

from counterpoint.data.tasks.gsm8k import LabelledSolution
from counterpoint.data.tasks.spoken_maths.numbers import spoken
from counterpoint.data.tasks.spoken_maths.problems import Clause, Problem

BRIDGE = ("here", "is", "my", "solution")
"""What is said between a problem and its solution."""

_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_PART = re.compile(
    r"\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+"  # a number
    r"|[^\W\d_]+(?:['\u2019][^\W\d_]+)*"  # a word
    r"|[-+*/=%\u00d7\u00f7]"  # a sign
)
_SIGNS = {
    "+": ["plus"],
    "-": ["minus"],
    "*": ["times"],
    "\N{MULTIPLICATION SIGN}": ["times"],
    "/": ["divided", "by"],
    "\N{DIVISION SIGN}": ["divided", "by"],
    "=": ["is"],
    "%": ["percent"],
}
_SCALES = ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred"))


def said_problem(solution: LabelledSolution) -> Problem:
    """Return a problem and its solution as they are said, with the place of the labelled error.

    A wrong solution has its error where the sentence of the labelled step ends: the label of a
    person if there is one, otherwise the first sum that is wrong in itself. Without any label the
    place is -1, as for right solutions. Steps and corrections are not known.
    """
    clauses = [Clause(tuple(said_words(one))) for one in _SENTENCE.split(solution.question)]
    clauses.append(Clause(BRIDGE))
    wrong = 0 if solution.is_correct else solution.wrong_step or solution.wrong_sum
    at = -1
    for number, step in enumerate(solution.steps, 1):
        clauses.append(Clause(tuple(said_words(step)), step=number))
        if number == wrong:
            at = sum(len(clause.words) for clause in clauses) - 1
    return Problem(
        clauses=tuple(clause for clause in clauses if clause.words),
        steps=(),
        things="",
        wrong_step=wrong,
        wrong_word=at,
    )


def said_words(text: str) -> list[str]:
    """Return the words of a text as they are said, in small letters; numbers and signs as words."""
    parts = [(found.group(), found.end()) for found in _PART.finditer(text)]
    words: list[str] = []
    for place, (part, end) in enumerate(parts):
        follows = text[end : end + 1]
        if part in _SIGNS:
            is_hyphen = part in "-/" and follows.isalpha()
            words += (["per"] if part == "/" else []) if is_hyphen else _SIGNS[part]
        elif part == "x" and place and parts[place - 1][0][-1:].isdigit():
            words.append("times")
        elif part[-1].isdigit():
            words += [*said_number(part.lstrip("$")), *(["dollars"] if part[0] == "$" else [])]
        else:
            words.append(part.lower().replace("\u2019", "'"))
    return words


def said_number(text: str) -> list[str]:
    """Return the words of a number in figures, which may have commas and a decimal point."""
    whole, _, decimals = text.replace(",", "").partition(".")
    words = list(_whole(int(whole or "0")))
    return [*words, "point", *(spoken(int(one))[0] for one in decimals)] if decimals else words


def _whole(number: int) -> Iterator[str]:
    for scale, name in _SCALES:
        if number >= scale:
            yield from _whole(number // scale)
            yield name
            number %= scale
            if not number:
                return
    yield from spoken(number)
