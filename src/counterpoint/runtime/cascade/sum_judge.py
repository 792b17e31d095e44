"""A judge without a model: it computes the sums that a speaker says, and knows which are wrong.

It understands "seven times eight is fifty four" and the like, with numbers up to thousands in words
or figures. Its score is how sure the recogniser is of the least certain word of a wrong sum: a
misheard number is mostly a doubtful one, so the score can be calibrated like that of any model.

It would rather miss a wrong sum than interrupt a speaker who is right: what can be read in two
ways, such as "two plus three times four", is wrong only if it is so in both.

Source: none; the scenario is that of SHANKS (arXiv:2510.06917), where a language model judges.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

from counterpoint.runtime.cascade.spoken_numbers import Lexeme, lexemes, read_number
from counterpoint.runtime.cascade.thinking import Scene

_SIGNS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "plus": operator.add,
        "minus": operator.sub,
        "times": operator.mul,
        "over": operator.truediv,
    }
)
_FIRST = ("times", "over")
"""Signs that are computed first where a sum is read as it is written."""
_PAUSES = ("other", "and", ",")
_PAUSE_WORDS = 3
"""Number of other words after which a sign no longer belongs to the number that follows."""


class _Part(NamedTuple):
    """A number, a sign, a word of equality or another word, and the lexeme after it."""

    kind: str
    value: float
    decimals: int
    sure: float
    end: int


class SumJudge:
    """See `Judge`: the score is 0 unless a sum is wrong.

    A result is judged only where the turn or the sentence ends, or before a word such as "so" that
    no number goes on with: "fifty" may become "fifty four", "two" be "two and a half", and the mark
    after the last word of a turn that goes on may go again.
    """

    def __call__(self, scene: Scene) -> float:
        """Return how sure it is that a sum of the turn is wrong."""
        found = list(lexemes(scene.words))
        parts = list(_parts(found))
        settled = len(found) if scene.is_over else len(list(lexemes(scene.words[:-1])))
        places = [place for place, part in enumerate(parts) if part.kind == "is"]
        return max((_wrongness(parts, place, settled) for place in places), default=0.0)


def _parts(found: Sequence[Lexeme]) -> Iterator[_Part]:
    """Yield numbers, signs and other words; a sign before a number alone belongs to it."""
    at = 0
    last = ""
    while at < len(found):
        kind = found[at].kind
        begin = at
        is_negative = kind == "minus" and last != "number" and at + 1 < len(found)
        if is_negative and found[at + 1].is_number:
            at += 1
        if found[at].is_number:
            value, decimals, at = read_number(found, at)
            value = -value if found[begin].kind == "minus" else value
            sure = min(one.sure for one in found[begin:at])
            last = "number"
            yield _Part(last, value, decimals, sure, at)
            continue
        at += 1
        if found[begin].kind == "by" and last in _FIRST:
            continue  # the second word of "divided by" and "multiplied by"
        last = kind
        yield _Part(last, 0.0, 0, found[begin].sure, at)


def _wrongness(parts: Sequence[_Part], place: int, settled: int) -> float:
    """Return how sure it is that what stands before and after a word of equality differ."""
    left = _before(parts, place)
    right = _after(parts, place)
    if len(left) < 3 or not right or not _is_complete(parts, right, settled):
        return 0.0
    sums = _readings(left)
    results = [*_readings(right), right[0].value]
    near = 1e-6
    if right[0].decimals:
        near = 0.5001 / 10 ** right[0].decimals  # it is rounded
    elif any(part.kind == "over" for part in left):
        near = 0.9999  # there is a remainder
    if not sums or any(abs(one - other) <= near for one in sums for other in results):
        return 0.0
    return min(part.sure for part in (*left, parts[place], *right))


def _is_complete(parts: Sequence[_Part], right: Sequence[_Part], settled: int) -> bool:
    """Return whether what stands after a result shows that it does not go on."""
    if right[-1].end > settled:
        return False
    after = [part for part in parts if part.end > right[-1].end]
    if after and after[0].kind == ",":
        after = after[1:]
    if after and after[0].kind == "and":
        return len(after) > 1 and after[1].kind == "next"
    if not after:
        return parts[-1].end == settled  # the turn is over
    return after[0].kind == "next" or (after[0].kind == "end" and after[0].end <= settled)


def _before(parts: Sequence[_Part], place: int) -> list[_Part]:
    """Return the sum before a word of equality; empty if it may have begun earlier."""
    begin = place - 1 if place and parts[place - 1].kind == "," else place
    end = begin
    while begin and parts[begin - 1].kind in ("number", *_SIGNS):
        begin -= 1
    earlier = begin
    while earlier and begin - earlier < _PAUSE_WORDS and parts[earlier - 1].kind in _PAUSES:
        earlier -= 1
    unfinished = earlier > 0 and parts[earlier - 1].kind in (*_SIGNS, "of")
    piece = list(parts[begin:end])
    return piece if _alternates(piece) and not unfinished else []


def _after(parts: Sequence[_Part], place: int) -> list[_Part]:
    """Return the number or the sum after a word of equality; empty if it is unfinished."""
    end = place + 1
    while end < len(parts) and parts[end].kind in ("number", *_SIGNS):
        end += 1
    piece = list(parts[place + 1 : end])
    return piece if _alternates(piece) else []


def _alternates(piece: Sequence[_Part]) -> bool:
    """Return whether signs stand between numbers, and nothing else."""
    kinds = [part.kind == "number" for part in piece]
    return bool(kinds) and kinds[0] and kinds[-1] and all(a != b for a, b in pairwise(kinds))


def _readings(piece: Sequence[_Part]) -> list[float]:
    """Return the values of a sum as it is said and as it is written; none if it has no value."""
    numbers = [part.value for part in piece[::2]]
    signs = [part.kind for part in piece[1::2]]
    try:
        return [_computed(numbers, signs, first) for first in ((), _FIRST)]
    except ZeroDivisionError:
        return []


def _computed(numbers: Sequence[float], signs: Sequence[str], first: Sequence[str]) -> float:
    """Return the value of a sum from left to right, after some of its signs."""
    kept = [numbers[0]]
    later = []
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign in first:
            kept[-1] = _SIGNS[sign](kept[-1], number)
        else:
            kept.append(number)
            later.append(sign)
    value = kept[0]
    for sign, number in zip(later, kept[1:], strict=True):
        value = _SIGNS[sign](value, number)
    return value
