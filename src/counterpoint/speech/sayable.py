"""Texts that can be spoken: letters that a voice has, and pieces that an engine can handle.

Engines do not complain. They leave out what they do not know, or say its name ("Chinese letter",
"asterisk"), and interpret their own marks: Piper takes text in ``[[ ]]`` for phonemes.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

from counterpoint.errors import UserError

Alphabet = Literal["ascii", "latin"]
"""Letters of a voice: those of ASCII, or also Latin letters with accents."""

LONGEST_PIECE = 60
"""Number of words that an engine speaks at once; its time and memory grow faster than that."""

_LONGEST_WORD = 60
_MARKUP = re.compile(r"\[\[|\]\]|[*_`]|</?[A-Za-z][^>]*>")
_EDGES = re.compile(r"(?<!\w)[*_`]+|[*_`]+(?!\w)")
_PUNCTUATION = frozenset("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00a0")
_LATIN = frozenset("æÆœŒøØłŁ€£°½¼¾²³×±")  # in addition to letters with accents
_SENTENCE_ENDS = ".?!\u2026"
_CLAUSE_ENDS = ",;:\u2013\u2014"


def check_sayable(text: str, alphabet: Alphabet = "latin") -> None:
    """Refuse a text that a voice with these letters cannot speak as it is written.

    Raises:
        UserError: It has no letter or digit, markup, or letters that the voice does not know.
    """
    if not any(map(str.isalnum, text)):
        raise UserError(f"A text to say must have a letter or a digit: got {_short(text)!r}.")
    if markup := _MARKUP.search(text):
        raise UserError(
            f"A text to say must be words alone: got {_short(markup.group())!r} in "
            f"{_short(text)!r}, which engines take for phonemes or say aloud. Leave it out."
        )
    if found := next((letter for letter in text if not _is_known(letter, alphabet)), None):
        name = unicodedata.name(found, "no letter at all")
        raise UserError(
            f"A text to say must have letters that the voice has ({alphabet}): got "
            f"U+{ord(found):04X} ({name}) in {_short(text)!r}. Write it in words of these letters."
        )
    longest = max(text.split(), key=len)
    if len(longest) > _LONGEST_WORD:
        raise UserError(
            f"Words to say must have at most {_LONGEST_WORD} letters: got {len(longest)} in "
            f"{_short(longest)!r}. Put blanks between them."
        )


def as_sayable(text: str, alphabet: Alphabet = "latin") -> str:
    """Return what of a text a voice with these letters can speak.

    Language models write markup and other signs into their answers. They are left out, and words
    that are too long are cut. A text of which nothing is left gives an empty one.
    """
    bare = _MARKUP.sub(" ", _EDGES.sub("", text))
    known = "".join(letter if _is_known(letter, alphabet) else " " for letter in bare)
    pieces = [
        word[start : start + _LONGEST_WORD]
        for word in known.split()
        for start in range(0, len(word), _LONGEST_WORD)
    ]
    return " ".join(pieces) if any(map(str.isalnum, known)) else ""


def _is_known(letter: str, alphabet: Alphabet) -> bool:
    if letter.isascii():
        return letter.isprintable() or letter.isspace()
    if letter in _PUNCTUATION:
        return True
    if alphabet == "ascii":
        return False
    parts = unicodedata.normalize("NFD", letter)
    has_accents = parts[0].isascii() and all(map(unicodedata.combining, parts[1:]))
    return letter in _LATIN or has_accents or unicodedata.combining(letter) > 0


def sayable_pieces(words: Sequence[str], longest: int = LONGEST_PIECE) -> Iterator[list[str]]:
    """Yield words in pieces of at most ``longest``: whole sentences or clauses, if possible.

    Every piece has a letter or a digit if all words together have one.
    """
    words = list(words)
    while len(words) > longest:
        stop = _cut(words, longest)
        if not _sounds(words[:stop]) or not _sounds(words[stop:]):
            break
        yield words[:stop]
        words = words[stop:]
    yield words


def _cut(words: Sequence[str], longest: int) -> int:
    """Return where to cut: after the last sentence or clause of the second half."""
    for ends in (_SENTENCE_ENDS, _CLAUSE_ENDS):
        for stop in range(longest, longest // 2, -1):
            if words[stop - 1].rstrip("\"')\u2019\u201d")[-1:] in tuple(ends):
                return stop
    return longest


def _sounds(words: Sequence[str]) -> bool:
    return any(map(str.isalnum, "".join(words)))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
