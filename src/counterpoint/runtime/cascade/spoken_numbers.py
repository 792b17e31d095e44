"""Numbers and signs among recognised words, in words or figures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from counterpoint.speech.partials import ScoredWord

_ONES = "zero one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SCALES = {"hundred": 100.0, "thousand": 1000.0}
_NUMBERS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {word: ("ones", float(value)) for value, word in enumerate(_ONES.split())}
    | {word: ("teens", float(value)) for value, word in enumerate(_TEENS.split(), 10)}
    | {word: ("tens", 10.0 * value) for value, word in enumerate(_TENS.split(), 2)}
    | {word: ("scale", value) for word, value in _SCALES.items()}
)
_AFTER = (
    "so then right okay ok which therefore because but now next we you he she they it that this "
    "thus hence correct yes when while after i"
)
"""Words that begin something else after a number, where others may go on with it: "one half"."""
_BEFORE = "of half double twice triple root"
"""Words that make another number of the one after them."""
_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("plus", "+"), "plus"),
        **dict.fromkeys(("minus", "negative", "-", "\N{MINUS SIGN}"), "minus"),
        **dict.fromkeys(("times", "multiplied", "x", "*", "\N{MULTIPLICATION SIGN}"), "times"),
        **dict.fromkeys(("divided", "/", "\N{DIVISION SIGN}"), "over"),
        **dict.fromkeys(("is", "equals", "are", "make", "makes", "="), "is"),
        **dict.fromkeys(_AFTER.split(), "next"),
        **dict.fromkeys(_BEFORE.split(), "of"),
        **dict.fromkeys(".;:?!", "end"),
        **{word: word for word in ("by", "and", "point", ",")},
    }
)
_LEXEME = re.compile(
    r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+"  # a figure
    r"|[^\W\d_]+(?:['\u2019][^\W\d_]+)*"  # a word
    r"|\S"  # a sign or a mark
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")


class Lexeme(NamedTuple):
    """A word, a figure or a mark.

    Attributes:
        kind: ``figure``, ``ones``, ``teens``, ``tens``, ``scale``, ``plus``, ``minus``, ``times``,
            ``over``, ``by``, ``is``, ``and``, ``point``, ``,``, ``end`` (of a sentence), ``next``
            (a word that no number goes on with), ``of`` (one that changes the number after it) or
            ``other``.
        value: Its number.
        decimals: Number of its digits after the point.
        sure: How sure the recogniser is of the word that it stands in.
    """

    kind: str
    value: float
    decimals: int
    sure: float

    @property
    def is_number(self) -> bool:
        """Whether a number may begin here."""
        return self.kind in ("figure", "ones", "teens", "tens", "scale")


class Number(NamedTuple):
    """A number that is read from lexemes.

    Attributes:
        value: The number.
        decimals: Number of its digits after the point.
        end: Number of the lexeme after it.
    """

    value: float
    decimals: int
    end: int


def lexemes(words: Sequence[ScoredWord]) -> Iterator[Lexeme]:
    """Yield the parts of words; the marks of a word stand by themselves."""
    for word in words:
        for text in _LEXEME.findall(_HYPHEN.sub(" ", word.text.lower())):
            if text[-1].isdecimal():
                decimals = len(text.partition(".")[2])
                value = float(text.replace(",", ""))
                yield Lexeme("figure", value, decimals, word.probability)
            else:
                kind, value = _NUMBERS.get(text, (_OTHERS.get(text, "other"), 0.0))
                yield Lexeme(kind, value, 0, word.probability)


def read_number(found: Sequence[Lexeme], at: int) -> Number:
    """Return the longest number that begins at a lexeme, as in "one hundred and five point two".

    Args:
        found: Lexemes.
        at: Number of one of them, with which a number begins.
    """
    first = found[at]
    thousands = 0.0
    rest = first.value
    last = first.kind
    if last == "scale" and first.value == _SCALES["thousand"]:
        thousands, rest = rest, 0.0
    at += 1
    while at < len(found):
        kind = found[at].kind
        value = found[at].value
        if kind == "and" and last == "scale" and _continues(found[at + 1 :], last):
            at += 1
            continue
        if kind == "scale" and value == _SCALES["thousand"] and rest and not thousands:
            thousands, rest = rest * value, 0.0
        elif kind == "scale" and value == _SCALES["hundred"] and last != kind and 0 < rest < 100:
            rest *= value
        elif _continues(found[at:], last):
            rest += value
        else:
            break
        last = kind
        at += 1
    return _with_decimals(found, Number(thousands + rest, first.decimals, at))


def _continues(found: Sequence[Lexeme], last: str) -> bool:
    """Return whether the next word belongs to a number whose last word is of some kind."""
    kind = found[0].kind if found else ""
    after_scale = last == "scale" and kind in ("ones", "teens", "tens")
    return after_scale or (last == "tens" and kind == "ones" and found[0].value > 0)


def _with_decimals(found: Sequence[Lexeme], number: Number) -> Number:
    """Return a number with the digits that follow the word "point"."""
    value, decimals, at = number
    if decimals or at >= len(found) or found[at].kind != "point":
        return number
    for after in found[at + 1 :]:
        if after.kind != "ones" and not (after.kind == "figure" and after.value < 10):
            break
        decimals += 1
        value += after.value / 10**decimals
    return Number(value, decimals, at + 1 + decimals) if decimals else number
