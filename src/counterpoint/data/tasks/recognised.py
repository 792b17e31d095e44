"""Recognised words in the few words that a small model knows.

Recognisers write numbers as figures, signs in place of words, and join words with hyphens; and they
mishear. A word that is like none of those that are known is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

_ALIKE = 0.75  # share of letters in common from which on a word is taken for another
_AROUND = " .,;:?!$\"'"


def in_known_words(
    text: str,
    known: Sequence[str],
    numbers: Callable[[int], Sequence[str]],
    others: Mapping[str, str],
) -> list[str]:
    """Return a recognised word in known words.

    Args:
        text: The word, with its punctuation.
        known: The words.
        numbers: Returns the words of a number that is written in figures; none if it has none.
        others: Signs and short forms, and the words for them.
    """
    found: list[str] = []
    bare = text.lower().strip(_AROUND)
    for part in bare.replace("-", " ").split() or ([bare] if bare in others else []):
        if part.isdecimal():
            found += numbers(int(part))
        else:
            found += get_close_matches(others.get(part, part), known, 1, _ALIKE)
    return found
