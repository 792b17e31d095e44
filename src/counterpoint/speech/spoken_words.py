"""Words of an utterance in time: which sounds belong to which word, and how long it lasts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

_MISSING = -1
_BOUNDARY = -2


class SpokenWord(NamedTuple):
    """A word and its times in seconds since the first sample of the audio."""

    text: str
    start_s: float
    end_s: float


def owners(alone: Sequence[Sequence[str]], said: Sequence[str]) -> list[int]:
    """Return the word of each unit of an utterance, by the alignment with the fewest edits.

    Args:
        alone: Units of each word spoken alone.
        said: Units of the whole utterance.

    Returns:
        Index of a word for every unit; -1 for boundaries, which belong to no word.
    """
    units = [(unit, index) for index, word in enumerate(alone) for unit in (*word, " ")]
    first, second, costs = _compared(alone, said)
    found = [_MISSING] * len(said)
    row = len(units)
    column = len(said)
    while column:
        index = units[row - 1][1] if row else 0
        here = costs[row, column]
        change = _changes(first[row - 1 : row], int(second[column - 1])) if row else 0
        if row and here == costs[row - 1, column - 1] + change:
            row = row - 1
            column = column - 1
            found[column] = index
        elif row and here == costs[row - 1, column] + 1:
            row -= 1
        else:
            column -= 1
            is_end = row and first[row - 1] == _BOUNDARY
            found[column] = min(index + 1, len(alone) - 1) if is_end else index
    return [
        _MISSING if number == _BOUNDARY else index
        for number, index in zip(second.tolist(), found, strict=True)
    ]


def num_edits(alone: Sequence[Sequence[str]], said: Sequence[str]) -> int:
    """Return the fewest edits between words spoken alone and an utterance; see `owners`."""
    return int(_compared(alone, said)[2][-1, -1])


def _compared(
    alone: Sequence[Sequence[str]], said: Sequence[str]
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " N"], Int[np.ndarray, "M+1 N+1"]]:
    """Return the units of words and of an utterance as numbers, and the costs of `_edit_costs`."""
    first, second = _numbered([[unit for word in alone for unit in (*word, " ")], said])
    return first, second, _edit_costs(first, second)


def _numbered(texts: Sequence[Sequence[str]]) -> list[Int[np.ndarray, " N"]]:
    """Return units as numbers; all boundaries have the same number."""
    numbers = dict[str, int]()
    return [
        np.array(
            [
                _BOUNDARY if is_boundary(unit) else numbers.setdefault(unit, len(numbers))
                for unit in text
            ],
            dtype=np.int32,
        )
        for text in texts
    ]


def _edit_costs(
    first: Int[np.ndarray, " M"], second: Int[np.ndarray, " N"]
) -> Int[np.ndarray, "M+1 N+1"]:
    """Return the least costs of turning prefixes of one into prefixes of the other, row by row."""
    steps = np.arange(len(second) + 1, dtype=np.int32)
    costs = np.empty((len(first) + 1, len(second) + 1), np.int32)
    costs[0] = steps
    for row in range(1, len(costs)):
        before = costs[row - 1]
        line = costs[row]
        line[0] = row
        changed = before[:-1] + _changes(second, int(first[row - 1]))
        line[1:] = np.minimum(changed, before[1:] + 1)
        # Each left-out unit costs 1: the minimum over all starting points of the line, plus the
        # way.
        line[:] = np.minimum.accumulate(line - steps) + steps
    return costs


def _changes(units: Int[np.ndarray, " N"], other: int) -> Int[np.ndarray, " N"]:
    """Return the costs of replacing units by another one; boundaries are expensive."""
    if other == _BOUNDARY:
        return np.where(units == _BOUNDARY, 0, 3).astype(np.int32)
    return np.where(units == other, 0, np.where(units == _BOUNDARY, 3, 1)).astype(np.int32)


def is_boundary(unit: str) -> bool:
    """Return whether a unit is silence, a blank, punctuation or a mark of start or end."""
    return unit == "pau" or unit in "_^$ .,;:!?()\"'-\u2014\u2026"


def timed(
    words: Sequence[str],
    alone: Sequence[Sequence[str]],
    units: Sequence[str],
    times: Sequence[tuple[float, float]],
) -> list[SpokenWord]:
    """Return words, each from its first to its last unit.

    Args:
        words: Words of the utterance.
        alone: Units of each word spoken alone.
        units: Units of the utterance.
        times: Start and end of each of them in seconds.
    """
    spans: list[tuple[float, float] | None] = [None] * len(words)
    for owner, (start, end) in zip(owners(alone, units), times, strict=True):
        if owner != _MISSING:
            known = spans[owner]
            spans[owner] = (start if known is None else known[0], end)
    found = list[SpokenWord]()
    last = 0.0
    for word, span in zip(words, spans, strict=True):
        start, last = span or (last, last)
        found.append(SpokenWord(word, start, last))
    return shared(found)


def shared(words: Sequence[SpokenWord]) -> list[SpokenWord]:
    """Divide the time of a word among it and the words without time right after it, by letters.

    Engines may say "of the" as one word. A piece without letters and digits gets no time.
    """
    divided = list[SpokenWord]()
    first = 0
    for stop in range(1, len(words) + 1):
        if stop < len(words) and words[stop].start_s == words[stop].end_s:
            continue
        group = words[first:stop]
        first = stop
        if len(group) == 1:
            divided += group
            continue
        start = group[0].start_s
        length = group[0].end_s - group[0].start_s
        letters = [sum(map(str.isalnum, word.text)) for word in group]
        edges = [sum(letters[:i]) / max(sum(letters), 1) for i in range(len(group) + 1)]
        divided += [
            SpokenWord(word.text, start + length * edges[i], start + length * edges[i + 1])
            for i, word in enumerate(group)
        ]
    return divided


def without_silence(word: SpokenWord, audio: Float[Tensor, " N"], rate: int) -> SpokenWord:
    """Return the word without its end that is 40 dB below the utterance's peak."""
    first = round(word.start_s * rate)
    stop = round(word.end_s * rate)
    loud = (audio[first:stop].abs() > audio.abs().max() / 100).nonzero()
    if not len(loud):
        return word
    return word._replace(end_s=min((first + int(loud[-1]) + 1) / rate, word.end_s))
