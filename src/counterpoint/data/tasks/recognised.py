"""Recognised words in the few words that a small model knows.

Recognisers write numbers as figures, signs in place of words, and join words with hyphens; and they
mishear. A word that is like none of those that are known is left out. Short words may have to be
the same: "not" is a letter away from "no", and "hot" from "shot".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

_ALIKE = 0.75  # share of letters in common from which on a word is taken for another
_AROUND = " .,;:?!$\"'"
_MOST_FIGURES = 9  # nobody says a longer number
_COMMA = re.compile(r"(?<=\d),(?=\d)")  # of "1,000"
_HYPHEN = re.compile(r"(?<!\d)-|-(?!\d)")  # "10-3" has a minus, "16-ounce" has none
_PART = re.compile(r"\d+|[^\d\s]+")  # "8oz" has two


def in_known_words(
    text: str,
    known: Sequence[str],
    numbers: Callable[[int], Sequence[str]],
    others: Mapping[str, str],
    shortest: int = 5,
) -> list[str]:
    """Return a recognised word in known words.

    Args:
        text: The word, with its punctuation.
        known: The words.
        numbers: Returns the words of a number that is written in figures; none if it has none.
        others: Signs and short forms, and the words for them.
        shortest: Number of letters from which on a word may be taken for one that is like it.
    """
    found: list[str] = []
    bare = _COMMA.sub("", text.lower().strip(_AROUND))
    for part in _PART.findall(_HYPHEN.sub(" ", bare)) or ([bare] if bare in others else []):
        word = others.get(part, part)
        if part.isdecimal():
            found += numbers(int(part)) if len(part) <= _MOST_FIGURES else []
        elif word in known or len(part) < shortest:
            found += [word] if word in known else []
        else:
            found += get_close_matches(word, known, 1, _ALIKE)
    return found
