"""Word errors of transcripts, with numbers written as words."""

import re
from collections.abc import Sequence

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def plain_words(text: str) -> list[str]:
    """Return the words of a text in small letters, without punctuation; digits become words."""
    spelled = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit.group())]} ", text.lower())
    return re.sub(r"[^a-z' ]+", " ", spelled).split()


def count_word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Return the least number of words to insert, leave out or replace."""
    costs = list(range(len(heard) + 1))
    for row, word in enumerate(said, 1):
        before, costs = costs, [row]
        for column, other in enumerate(heard, 1):
            changed = before[column - 1] + (word != other)
            costs.append(min(changed, before[column] + 1, costs[-1] + 1))
    return costs[-1]
