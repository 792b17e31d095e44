"""How the words of spoken maths become ids: each its own, or tokens of a language model."""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Int

from counterpoint.data.tasks.recognised import in_known_words
from counterpoint.data.tasks.spoken_maths.hearing import NOTHING
from counterpoint.data.tasks.spoken_maths.numbers import MOST, spoken
from counterpoint.data.tasks.spoken_maths.problems import vocabulary
from counterpoint.data.text.published import tokenizer_of
from counterpoint.data.text.tokenizer import Tokenizer
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.streams.rounds import Marks


def _own(marks: Marks) -> tuple[str, ...]:
    """Return the marks that spoken maths needs."""
    return (marks.part, marks.last, marks.close, marks.interrupt, marks.stop)


def in_problem_words(text: str) -> list[str]:
    """Return a recognised word in the words of problems; what is unlike them is left out."""
    return in_known_words(text, vocabulary(), _number, _SIGNS, shortest=1)


def _number(number: int) -> list[str]:
    return spoken(number) if number <= MOST else []


_SIGNS = {"+": "plus", "-": "minus", "=": "is", "\N{MULTIPLICATION SIGN}": "times", "x": "times"}


class Words:
    """The words of spoken maths as ids, one each; id 0 fills rows up."""

    one_each = True

    def __init__(self, marks: Marks | None = None) -> None:
        self.words = ("<pad>", NOTHING, *_own(marks or Marks()), *vocabulary())
        self._ids = {word: number for number, word in enumerate(self.words)}
        self.identity = f"words:{json_digest(self.words)}"

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of words between blanks.

        Raises:
            UserError: A word is unknown.
        """
        return self.ids(text.split())

    def ids(self, words: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return the ids of words; see `encode`."""
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise UserError(f"A text must consist of words of spoken maths: got {unknown[0]!r}.")
        return np.array([self._ids[word] for word in words], np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the words of ids, with a blank before each."""
        return "".join(f" {self.words[number]}" for number in ids.tolist())


class TokenWords:
    """The words of spoken maths in tokens of a language model, whose next ids are the marks.

    A word has a blank before it unless it is a digit, so that nearly every word is one token.

    Args:
        tokenizer: Tokeniser of the model.
        marks: Marks of the sequence.
    """

    one_each = False

    def __init__(self, tokenizer: Tokenizer, marks: Marks | None = None) -> None:
        self._tokenizer = tokenizer
        self._own = _own(marks or Marks())
        self._mark = re.compile("({})".format("|".join(re.escape(mark) for mark in self._own)))

    @property
    def identity(self) -> str:
        """Name of the tokeniser; see `Tokenizer.identity`."""
        return self._tokenizer.identity

    def __len__(self) -> int:
        return self._tokenizer.vocab_size + len(self._own)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text as it is spelled, with a blank before its words."""
        pieces = [self._piece(piece) for piece in self._mark.split(text) if piece]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _piece(self, piece: str) -> Int[np.ndarray, " n"]:
        if piece in self._own:
            return np.array([self._tokenizer.vocab_size + self._own.index(piece)])
        return self._tokenizer.encode(piece)

    def ids(self, words: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return the ids of words."""
        spelled = (word if word in self._own or word.isdigit() else f" {word}" for word in words)
        return self.encode("".join(spelled))

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the text of ids, in which nothing stands before a mark.

        A model may have room for more ids than there are marks; the others have no text.
        """
        first = self._tokenizer.vocab_size
        marks = np.flatnonzero(ids >= first)
        texts = []
        begin = 0
        for place in (*marks.tolist(), len(ids)):
            texts.append(self._tokenizer.decode(ids[begin:place]))
            begin = place + 1
        own = dict(enumerate(self._own, first))
        named = [own.get(number, "") for number in ids[marks].tolist()]
        return texts[0] + "".join(map("".join, zip(named, texts[1:], strict=True)))


@cache
def opened_words(tokenizer: str, marks: Marks) -> Words | TokenWords:
    """Return how words become ids; a tokeniser is read once.

    Args:
        tokenizer: See `counterpoint.data.text.published.tokenizer_of`; empty for one id a word.
        marks: Marks of the sequence.

    Raises:
        UserError: The tokeniser cannot be used.
    """
    return TokenWords(tokenizer_of(tokenizer), marks) if tokenizer else Words(marks)
