"""What engines return is checked where they work: what is wrong with it is their failure alone.

Without that it would be noticed in the conversation itself, and end that.
"""

import math
from collections.abc import Iterable, Iterator

from counterpoint.speech.partials import ScoredWord


def plain(word: str) -> str:
    """Return the letters and digits of a word, in lower case."""
    return "".join(filter(str.isalnum, word.lower()))


def checked_texts(pieces: Iterable[object], what: str) -> Iterator[str]:
    """Yield pieces of text.

    Args:
        pieces: What an engine writes.
        what: Its name, for the error.

    Raises:
        TypeError: One of them is none.
    """
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"{what} must come in pieces of text: got {type(piece).__name__}")
        yield piece


def checked_words(found: Iterable[object]) -> tuple[ScoredWord, ...]:
    """Return recognised words; those without a letter or digit, such as marks, are none.

    Raises:
        TypeError: One of them is no `ScoredWord` of a text and finite numbers.
    """
    words = []
    for word in found:
        if not (isinstance(word, ScoredWord) and isinstance(word.text, str)):
            raise TypeError(f"a recogniser must return words with times: got {word!r:.80}")
        for number in word[1:]:
            checked_number(number, "times and chances of words")
        if plain(word.text):
            words.append(word)
    return tuple(words)


def checked_number(number: object, what: str) -> float:
    """Return a number.

    Args:
        number: What an engine returned.
        what: Its name, for the error.

    Raises:
        TypeError: It is no finite number.
    """
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(number, str) or not math.isfinite(value):
        raise TypeError(f"{what} must be finite numbers: got {number!r:.80}")
    return value
