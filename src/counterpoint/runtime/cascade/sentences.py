"""Cutting a text that comes piece by piece into what is spoken at once."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_END = re.compile(r"[.!?]+[\"')]*\s|\n+")
_PAUSE = re.compile(
    r"[,;:]\s+(?=[\"'(\[]*\w)|\s(?=(?:about|and|are|as|at|because|but|by|for|from|if|in|into|is|like|on|or|so|that|"
    r"to|was|were|when|where|which|while|who|with)\s)"
)
_LONGEST = 400  # characters that are spoken at once
_CLOSING = "\"')]"
_ENDS = (".", "!", "?", "…")
_GOES_ON = (",", ";", ":")


class Sentence(NamedTuple):
    """What is spoken at once: a sentence, or a clause of it.

    Attributes:
        text: The text as it was written.
        goes_on: Whether the sentence goes on after it.
    """

    text: str
    goes_on: bool = False

    @property
    def spoken(self) -> str:
        """The text with a mark at its end, from which a voice knows how its melody ends."""
        bare = self.text.rstrip(_CLOSING)
        if self.goes_on:
            return self.text if bare.endswith((*_GOES_ON, *_ENDS)) else f"{self.text},"
        if bare.endswith(_ENDS):
            return self.text
        return self.text.rstrip("".join(_GOES_ON)) + "."


class SentenceReader:
    """Finds what can be spoken on its own: sentences, and for a quick start a first clause.

    The first clause ends with a comma or the like, or before a word at which speakers pause. A
    sentence without an end is cut after 400 characters.

    Args:
        first_words: Words that the first clause has at least.
    """

    def __init__(self, first_words: int = 3) -> None:
        self._first_words = first_words
        self._rest = ""
        self._is_first = True

    def read(self, piece: str) -> list[Sentence]:
        """Return what a further piece of the text completes."""
        text = self._rest + piece
        found: list[Sentence] = []
        start = 0
        while (end := self._end_of_next(text, start)) is not None:
            said = text[start : end.at].strip()
            start = end.at
            if _has_words(said):
                self._is_first = False
                found.append(Sentence(said, end.goes_on))
        self._rest = text[start:]
        return found

    def end(self) -> list[Sentence]:
        """Return the rest: the text has ended."""
        rest, self._rest = self._rest.strip(), ""
        return [Sentence(rest)] if _has_words(rest) else []

    def _end_of_next(self, text: str, start: int) -> "_End | None":
        """Return the end of what begins at a place, if it is known. It looks no further ahead."""
        limit = start + _LONGEST
        ends = []
        if found := _END.search(text, start, limit):
            ends.append(_End(found.end(), goes_on=False))
        if self._is_first:
            ends += self._pauses(text, start, limit)
        if ends:
            return min(ends)  # so that it does not matter in which pieces a text comes
        if len(text) <= limit:
            return None
        blank = text.rfind(" ", start, limit)
        return _End(blank + 1 if blank > start else limit, goes_on=True)

    def _pauses(self, text: str, start: int, limit: int) -> "Iterator[_End]":
        """Yield the places at which a first clause may end."""
        for pause in _PAUSE.finditer(text, start, limit):
            if len(text[start : pause.end()].split()) >= self._first_words:
                yield _End(pause.end(), goes_on=True)


class _End(NamedTuple):
    """Where something ends, and whether its sentence goes on there."""

    at: int
    goes_on: bool


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))
