"""A judge without a model: it computes the sums that a speaker says, and knows which are wrong.

It understands "seven times eight is fifty four" and the like, with numbers up to thousands in words
or figures. Its score is how sure the recogniser is of the least certain word of a wrong sum: a
misheard number is mostly a doubtful one, so the score can be calibrated like that of any model.

Source: none; the scenario is that of SHANKS (arXiv:2510.06917), where a language model judges.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.speech.partials import ScoredWord

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES: Mapping[str, int] = MappingProxyType(
    {word: value for value, word in enumerate(_SMALL.split())}
    | {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
)
_SIGNS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "plus": operator.add,
        "minus": operator.sub,
        "times": operator.mul,
        "by": operator.truediv,  # the word before it, "divided", carries nothing
    }
)
_EQUALS = ("is", "equals", "are", "makes")
_WRITTEN = {"+": " plus ", "=": " is ", "\N{MULTIPLICATION SIGN}": " times ", "/": " by "}


class _Part(NamedTuple):
    """A number, a sign or a word of equality, and how sure the recogniser is of it."""

    kind: str
    value: float
    sure: float


class SumJudge:
    """See `Judge`: the score is 0 unless a sum is wrong.

    The last word of a turn that goes on is not judged: "fifty" may become "fifty four".
    """

    def __call__(self, scene: Scene) -> float:
        """Return how sure it is that a sum of the turn is wrong."""
        words = scene.words if scene.is_over else scene.words[:-1]
        parts = list(_parts(words))
        places = range(len(parts) - 4)
        return max((_wrongness(parts[place : place + 5]) for place in places), default=0.0)


def _wrongness(piece: Sequence[_Part]) -> float:
    """Return how sure it is that five parts are a wrong sum."""
    first, sign, second, equals, result = piece
    kinds = (first.kind, second.kind, equals.kind, result.kind)
    if sign.kind not in _SIGNS or kinds != ("number", "number", "is", "number"):
        return 0.0
    if sign.kind == "by" and not second.value:
        return 0.0
    right = _SIGNS[sign.kind](first.value, second.value)
    return min(part.sure for part in piece) if abs(right - result.value) > 1e-6 else 0.0


def _parts(words: Sequence[ScoredWord]) -> Iterator[_Part]:
    """Yield the numbers and signs among words; other words divide them."""
    number: _Part | None = None
    for word in words:
        for text in _split(word.text):
            value = _value(text)
            if value is None:
                if number is not None:
                    yield number
                number = None
                if text in _SIGNS or text in _EQUALS:
                    kind = "is" if text in _EQUALS else text
                    yield _Part(kind, 0.0, word.probability)
                elif text not in ("divided", "and", ""):
                    yield _Part("word", 0.0, word.probability)
            elif number is None:
                number = _Part("number", value, word.probability)
            else:
                number = _joined(number, text, value, word.probability)
    if number is not None:
        yield number


def _split(text: str) -> list[str]:
    for written, spoken in _WRITTEN.items():
        text = text.replace(written, spoken)
    return [plain(piece) for piece in text.replace("-", " ").split()]


def _value(text: str) -> float | None:
    if text.isdecimal():
        return float(text)
    if text in ("hundred", "thousand"):
        return {"hundred": 100.0, "thousand": 1000.0}[text]
    return None if text not in _VALUES else float(_VALUES[text])


def _joined(number: _Part, text: str, value: float, sure: float) -> _Part:
    """Return a number with its next word, as in "five hundred" and "fifty four"."""
    joined = number.value * value if text in ("hundred", "thousand") else number.value + value
    return _Part("number", joined, min(number.sure, sure))
