"""T8 and T9: passages of real books, against changed passages and below various titles.

Books are a folder of .txt and .md files (`# Title`, then headings such as "Author: NAME"), or the
King James Bible that comes with this library; `counterpoint.data.tasks.shelf` says which of them
are scored. Both tasks are learned from the text of the other books, as any text is.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.items import AnyPolicy, Nats, ReadItem, ReadText, draw, is_tuning
from counterpoint.data.tasks.scoring import Parts, parts_of, sums_of
from counterpoint.data.tasks.shelf import (
    Book,
    book_files,
    learned_text,
    pair_nats,
    scored_books,
    tuned_books,
)
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.text.documents import Section
from counterpoint.errors import UserError

SWAPPED = "paragraphs swapped"
FOREIGN = "paragraph of another book"
SHUFFLED = "sentences shuffled"
KINDS = (SWAPPED, FOREIGN, SHUFFLED)
ROW_UNIT = 192
"""Rows of text are multiples of this number of ticks, and so of the blocks of all systems."""

_SENTENCE_END = re.compile(r"(?<=[.!?;:])(\s+)")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")  # within a sentence, so no first word


@dataclass(frozen=True, slots=True)
class BookPassage:
    """Some paragraphs of a chapter.

    Attributes:
        book: The book.
        paragraphs: The paragraphs, in order.
    """

    book: Book
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Texts and changed versions of them; the task is to tell which are the originals.

    Attributes:
        kind: Kind of the change, one of `KINDS`.
        document: Title of the book.
        right: The original texts.
        wrong: The changed texts, with the same number of symbols in total.
    """

    kind: str
    document: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def readings(self) -> tuple[ReadText, ...]:
        """The original texts, then the changed ones; see `ReadItem.readings`."""
        return tuple(ReadText("", text) for text in (*self.right, *self.wrong))

    def reply(self, nats: Nats) -> dict[str, list[float]]:
        """Return the losses of both sides, as the scorer of exported items reads them."""
        count = len(self.right)
        # Sums are exact before they are rounded: equal costs in another order are a tie.
        return {"losses": [math.fsum(np.concatenate(own)) for own in (nats[:count], nats[count:])]}


@dataclass(frozen=True, slots=True)
class ContextText:
    """A text that may stand below several contexts.

    Attributes:
        document: Title of the book.
        contexts: Texts that are read before it, by name ("own", "other", "absent").
        text: Text that is scored.
        names: First and last symbol (exclusive) of the names that occurred before the window.
    """

    document: str
    contexts: dict[str, str]
    text: str
    names: tuple[tuple[int, int], ...]

    @property
    def readings(self) -> tuple[ReadText, ...]:
        """The text below each context, in their order; see `ReadItem.readings`."""
        return tuple(ReadText(context, self.text) for context in self.contexts.values())

    def reply(self, nats: Nats) -> dict[str, dict[str, float]]:
        """Return the costs by context, as the scorer of exported items reads them."""
        is_name = np.zeros(len(self.text.encode()), bool)
        for first, stop in self.names:
            is_name[len(self.text[:first].encode()) : len(self.text[:stop].encode())] = True
        by_context = list(zip(self.contexts, nats, strict=True))
        return {
            "nats": {name: float(one.sum()) for name, one in by_context},
            "name_nats": {name: float(one[is_name].sum()) for name, one in by_context},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Passages:
    """Base of the tasks with passages of books; both are learned from the text of other books.

    A seed for scoring gives the passages in an order of its own, each once before any comes again.
    Seeds that choose settings have the passages of books that are set apart; see `is_tuning`.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Number of symbols of a passage.
    """

    primary: ClassVar[str]
    row_share: ClassVar[float]
    folder: str = ""
    passage_symbols: int

    @property
    def files(self) -> Mapping[str, Path]:
        """Files that are read, by name; see `counterpoint.data.tasks.named.ReadsFiles`."""
        return book_files(self.folder)

    @property
    def most_symbols(self) -> int:
        """Number of symbols of a row of text, which holds most passages.

        A passage whose paragraph was exchanged for a longer one may be longer than a row.
        """
        return math.ceil(self.row_share * self.passage_symbols / ROW_UNIT) * ROW_UNIT

    def learned(self) -> DataConfig:
        """Return the text to learn from; see `counterpoint.data.tasks.named.LearnsText`."""
        return learned_text(self.folder, self.most_symbols)

    def score(self, items: Sequence[Any], given: Sequence[Nats]) -> dict[str, float]:
        """Return the scores of costs, as the scorer of exported items has them.

        A score for which no item has anything is left out.
        """
        sums = sums_of(self.parts(*pair) for pair in zip(items, given, strict=True))
        return {name: above / below for name, (above, below) in sums.items() if below}

    def counts(self, item: Any, given: Nats) -> tuple[float, float]:
        """Return the numerator and denominator of an item; see `AnyTask.counts`."""
        return self.parts(item, given)[self.primary]

    @staticmethod
    def parts(item: "TextChoice | ContextText", given: Nats) -> Parts:
        """Return the numerator and denominator of every score of an item."""
        return parts_of(asdict(item), item.reply(given))

    def policies(self) -> Mapping[str, AnyPolicy]:
        """Return policies by name; see `AnyTask.policies`."""

        def byte_before(item: ReadItem, rng: random.Random) -> Nats:
            return [pair_costs(self.folder, one.text) for one in item.readings]

        return {"the byte before": byte_before}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffleChoice(Passages):
    """T8: choices between original and changed passages; chance is a half.

    The kinds of change are used in turn. Two paragraphs of a passage are exchanged; two passages of
    different authors exchange a paragraph; or the sentences of one paragraph are shuffled. Only the
    last change can be noticed from one paragraph alone. The first paragraph of a passage is never
    changed.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Smallest number of symbols of a passage; the largest is twice as much.
        kinds: Kinds of change, some of `KINDS`. Sentences in another order can often be told by
            their capitals alone.
    """

    name: ClassVar[str] = "shuffle"
    primary: ClassVar[str] = "all"
    row_share: ClassVar[float] = 2.0
    passage_symbols: int = 1500
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise UserError(f"`kinds` must be some of {', '.join(KINDS)}: got {self.kinds}.")

    def item(self, seed: int, number: int) -> TextChoice:
        """Return the choice with a number: a pure function of seed, number and books."""
        passages = self._passages(seed)
        place = number // len(self.kinds)
        rng = draw(seed, place)
        everything = [one for own in passages.values() for one in own]
        first = everything[_order(seed, len(everything))[place % len(everything)]]
        kind = self.kinds[number % len(self.kinds)]
        own = first.paragraphs
        texts = [own]
        if kind == SWAPPED:
            one, other = rng.sample(range(1, len(own)), 2)
            changed = [_with(_with(own, one, own[other]), other, own[one])]
        elif kind == SHUFFLED:
            place = rng.choice([i for i in range(1, len(own)) if _can_shuffle(own[i])])
            changed = [_with(own, place, _shuffled(own[place], rng))]
        else:
            author = first.book.author
            others = [title for title in passages if passages[title][0].book.author != author]
            second = rng.choice(passages[rng.choice(others)])
            one = rng.randrange(1, len(own))
            other = rng.randrange(1, len(second.paragraphs))
            texts = [own, second.paragraphs]
            changed = [
                _with(own, one, second.paragraphs[other]),
                _with(second.paragraphs, other, own[one]),
            ]
        return TextChoice(kind, first.book.title, _joined(texts), _joined(changed))

    def num_scored(self, seed: int) -> int:
        """Return the number of choices of a seed; see `FiniteTask.num_scored`."""
        return len(self.kinds) * sum(map(len, self._passages(seed).values()))

    def policies(self) -> Mapping[str, AnyPolicy]:
        """Return policies by name; see `AnyTask.policies`."""

        def oracle(item: TextChoice, rng: random.Random) -> Nats:
            costs = (0.0,) * len(item.right) + (1.0,) * len(item.wrong)
            pairs = zip(item.readings, costs, strict=True)
            return [np.full(len(one.text.encode()), cost) for one, cost in pairs]

        return {"oracle": oracle, **Passages.policies(self)}

    def _passages(self, seed: int) -> Mapping[str, Sequence[BookPassage]]:
        return _passages(self.folder, self.passage_symbols, is_tuning(seed))


@dataclass(frozen=True, kw_only=True, slots=True)
class BookLines(Passages):
    """T9: the beginning of a chapter below its own title and author, another book's, or none.

    The primary score, "saved", is the share of 8 bits a byte that a model saves below the chapter's
    own lines.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Number of symbols of a chapter that are scored.
        window: Names count as recalled if they occurred before, but not in this number of last
            symbols.
    """

    name: ClassVar[str] = "book_lm"
    primary: ClassVar[str] = "saved"
    row_share: ClassVar[float] = 1.1  # the lines above it come first
    passage_symbols: int = 2000
    window: int = 256

    def item(self, seed: int, number: int) -> ContextText:
        """Return the text with a number: a pure function of seed, number and books."""
        rng = draw(seed, number)
        books = self._books(seed)
        everything = [(book, chapter) for book in books for chapter in book.chapters]
        book, chapter = everything[_order(seed, len(everything))[number % len(everything)]]
        other = rng.choice([one for one in books if one.author != book.author])
        text = "\n\n".join(chapter.paragraphs)[: self.passage_symbols]
        return ContextText(
            book.title,
            {
                "own": _lines(book, chapter),
                "other": _lines(other, rng.choice(other.chapters)),
                "absent": "",
            },
            text,
            recalled_names(text, self.window),
        )

    def num_scored(self, seed: int) -> int:
        """Return the number of chapters of a seed; see `FiniteTask.num_scored`."""
        return sum(len(book.chapters) for book in self._books(seed))

    def _books(self, seed: int) -> Sequence[Book]:
        return tuned_books(self.folder) if is_tuning(seed) else scored_books(self.folder)


def pair_costs(folder: str, text: str) -> Float[np.ndarray, " _n"]:
    """Return the cost of every byte of a text if only the byte before it is seen, in nats."""
    read = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    return pair_nats(folder)[np.concatenate(([256], read[:-1])), read]


def recalled_names(text: str, window: int) -> tuple[tuple[int, int], ...]:
    """Return places of names that occurred before, but not in the last ``window`` symbols."""
    last: dict[str, int] = {}
    found = []
    for match in _NAME.finditer(text):
        before = last.get(match[0])
        if before is not None and match.start() - before > window:
            found.append(match.span())
        last[match[0]] = match.start()
    return tuple(found)


def _lines(book: Book, chapter: Section) -> str:
    """Return the lines above a chapter, as `Document.text` has them."""
    author = "" if book.author == book.title else f"Author: {book.author}"
    return "".join(f"{line}\n\n" for line in (book.title, author, chapter.heading) if line)


@lru_cache(maxsize=16)
def _order(seed: int, count: int) -> list[int]:
    """Return the places of passages in the order of a seed."""
    return draw(seed, -1).sample(range(count), count)


@lru_cache(maxsize=8)
def _passages(folder: str, symbols: int, tuning: bool) -> dict[str, tuple[BookPassage, ...]]:
    """Return the passages of all books that have some, by title; each allows every change."""
    found = {}
    for book in tuned_books(folder) if tuning else scored_books(folder):
        own = [
            BookPassage(book, paragraphs)
            for chapter in book.chapters
            for paragraphs in _pieces(chapter.paragraphs, symbols)
            if _can_change(paragraphs)
        ]
        if own:
            found[book.title] = tuple(own)
    if len({passages[0].book.author for passages in found.values()}) < 2:
        raise UserError(
            "Books of at least two authors must have passages of four paragraphs: got "
            f"{', '.join(found) or 'none'} in {folder or 'the Bible'!r}. Take other books."
        )
    return found


def _pieces(paragraphs: Sequence[str], symbols: int) -> list[tuple[str, ...]]:
    """Cut a chapter into passages of so many symbols; shorter and much longer ones are dropped."""
    pieces = []
    piece: list[str] = []
    for paragraph in paragraphs:
        piece.append(paragraph)
        length = sum(map(len, piece))
        if length >= symbols:
            if length <= 2 * symbols:
                pieces.append(tuple(piece))
            piece = []
    return pieces


def _can_change(paragraphs: Sequence[str]) -> bool:
    """Return whether a passage allows every kind of change."""
    are_different = len(set(paragraphs)) == len(paragraphs)
    return are_different and len(paragraphs) >= 4 and any(map(_can_shuffle, paragraphs[1:]))


def _can_shuffle(paragraph: str) -> bool:
    """Return whether it has three sentences or more; parts that end with ; or : count as well."""
    return len(set(_SENTENCE_END.split(paragraph)[::2])) >= 3


def _shuffled(paragraph: str, rng: random.Random) -> str:
    """Return the same sentences in another order, with the blanks between them unchanged."""
    parts = _SENTENCE_END.split(paragraph)
    sentences = parts[::2]
    while parts[::2] == sentences:
        parts[::2] = rng.sample(sentences, len(sentences))
    return "".join(parts)


def _with(paragraphs: Sequence[str], place: int, text: str) -> tuple[str, ...]:
    return (*paragraphs[:place], text, *paragraphs[place + 1 :])


def _joined(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the texts of lists of paragraphs, with blank lines between paragraphs."""
    return tuple("\n\n".join(paragraphs) for paragraphs in texts)
