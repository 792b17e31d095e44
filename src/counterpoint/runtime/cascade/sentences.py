"""Cutting a text that comes piece by piece into what is spoken at once."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_END = re.compile(r"[.!?]+[\"')]*\s|\n+")
_PAUSE = re.compile(
    r"[,;:]\s|\s(?=(?:about|and|are|as|at|because|but|by|for|from|if|in|into|is|like|on|or|so|that|"
    r"to|was|were|when|where|which|while|who|with)\s)"
)
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

    The first clause ends with a comma or the like, or before a word at which speakers pause.

    Args:
        first_words: Words that the first clause has at least.
    """

    def __init__(self, first_words: int = 3) -> None:
        self._first_words = first_words
        self._rest = ""
        self._is_first = True

    def read(self, piece: str) -> Iterator[Sentence]:
        """Yield what a further piece of the text completes."""
        self._rest += piece
        while True:
            goes_on = False
            ends = [found.end() for found in _END.finditer(self._rest)]
            if self._is_first and not ends:
                goes_on = True
                clauses = (found.end() for found in _PAUSE.finditer(self._rest))
                ends = [end for end in clauses if self._num_words(end) >= self._first_words]
            if not ends:
                return
            said, self._rest = self._rest[: ends[0]].strip(), self._rest[ends[0] :]
            if _has_words(said):
                self._is_first = False
                yield Sentence(said, goes_on)

    def end(self) -> Iterator[Sentence]:
        """Yield the rest: the text has ended."""
        rest, self._rest = self._rest.strip(), ""
        if _has_words(rest):
            yield Sentence(rest)

    def _num_words(self, end: int) -> int:
        return len(self._rest[:end].split())


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))
