"""T8 and T9: passages of real books, against changed passages and below various titles.

Books are a folder of .txt and .md files (`# Title`, then headings such as "Author: NAME"), or the
King James Bible that comes with this library. No author is both learned from and scored: the scored
books are those below ``valid`` in the folder or, if there is no such folder, the books of some
authors, chosen by a hash of their names; `held_out_titles` names them for training.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from counterpoint.data.tasks.items import draw
from counterpoint.data.text.corpus import KJV_HELD_OUT
from counterpoint.data.text.documents import Document, Section, kjv, read_folder
from counterpoint.errors import UserError

HELD_OUT_SHARE = 0.15
"""Share of the authors whose books are scored if a folder has no ``valid``."""

LEAST_SYMBOLS = 400
"""Chapters with fewer symbols are left out."""

SWAPPED = "paragraphs swapped"
FOREIGN = "paragraph of another book"
SHUFFLED = "sentences shuffled"
KINDS = (SWAPPED, FOREIGN, SHUFFLED)
_AUTHOR = re.compile(r"Author:\s*(.+)")
_SENTENCE_END = re.compile(r"(?<=[.!?;:])(\s+)")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")  # within a sentence, so no first word


@dataclass(frozen=True, slots=True)
class Book:
    """A book; its author is its title if no author is given.

    Attributes:
        title: Title.
        author: Author.
        chapters: Chapters, each with its paragraphs.
    """

    title: str
    author: str
    chapters: tuple[Section, ...]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffleChoice:
    """T8: choices between original and changed passages; chance is a half.

    The kinds of change are used in turn. Two paragraphs of a passage are exchanged; two passages of
    different authors exchange a paragraph; or the sentences of one paragraph are shuffled. Only the
    last change can be noticed from one paragraph alone. The first paragraph of a passage is never
    changed.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Smallest number of symbols of a passage.
    """

    name: ClassVar[str] = "shuffle"
    folder: str = ""
    passage_symbols: int = 1500

    def choice(self, seed: int, number: int) -> TextChoice:
        """Return the choice with a number: a pure function of seed, number and books."""
        passages = _passages(self.folder, self.passage_symbols)
        rng = draw(seed, number // len(KINDS))
        books = sorted(passages)
        first = rng.choice(passages[rng.choice(books)])
        kind = KINDS[number % len(KINDS)]
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
            others = [title for title in books if passages[title][0].book.author != author]
            second = rng.choice(passages[rng.choice(others)])
            one = rng.randrange(1, len(own))
            other = rng.randrange(1, len(second.paragraphs))
            texts = [own, second.paragraphs]
            changed = [
                _with(own, one, second.paragraphs[other]),
                _with(second.paragraphs, other, own[one]),
            ]
        return TextChoice(kind, first.book.title, _joined(texts), _joined(changed))


@dataclass(frozen=True, kw_only=True, slots=True)
class BookLines:
    """T9: the beginning of a chapter below its own title and author, another book's, or none.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Number of symbols of a chapter that are scored.
        window: Names count as recalled if they occurred before, but not in this number of last
            symbols.
    """

    name: ClassVar[str] = "book_lm"
    folder: str = ""
    passage_symbols: int = 2000
    window: int = 256

    def text(self, seed: int, number: int) -> ContextText:
        """Return the text with a number: a pure function of seed, number and books."""
        rng = draw(seed, number)
        books = scored_books(self.folder)
        book = rng.choice(books)
        chapter = rng.choice(book.chapters)
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


def held_out_titles(folder: str, share: float = HELD_OUT_SHARE) -> tuple[str, ...]:
    """Return the titles of the books of some authors, for `DataConfig.held_out`.

    Args:
        folder: Folder of books.
        share: Share of the authors; see `scored_books`.
    """
    books = [_book(document) for document in read_folder(folder)]
    return tuple(book.title for book in books if _is_held_out(book.author, share))


@lru_cache(maxsize=4)
def scored_books(folder: str = "") -> tuple[Book, ...]:
    """Return the books that no model was trained on, without their very short chapters.

    Raises:
        UserError: The books have fewer than two authors.
    """
    if not folder:
        books = [_book(one) for one in kjv() if one.title in KJV_HELD_OUT]
    elif (Path(folder) / "valid").is_dir():
        books = [_book(one) for one in read_folder(Path(folder) / "valid")]
    else:
        books = [_book(one) for one in read_folder(folder)]
        books = [book for book in books if _is_held_out(book.author, HELD_OUT_SHARE)]
    books = [book for book in books if book.chapters]
    if len({book.author for book in books}) < 2:
        raise UserError(
            "Books of at least two authors must be held out to be scored: got "
            f"{', '.join(book.title for book in books) or 'none'} in {folder or 'the Bible'!r}. "
            "Put some below a folder `valid` in it."
        )
    return tuple(books)


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


def _book(document: Document) -> Book:
    told = (_AUTHOR.fullmatch(section.heading.strip()) for section in document.sections)
    author = next((match[1] for match in told if match), document.title)
    chapters = tuple(
        section
        for section in document.sections
        if sum(map(len, section.paragraphs)) >= LEAST_SYMBOLS
    )
    return Book(document.title, author, chapters)


def _is_held_out(author: str, share: float) -> bool:
    digest = hashlib.sha256(author.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _lines(book: Book, chapter: Section) -> str:
    """Return the lines above a chapter, as `Document.text` has them."""
    author = "" if book.author == book.title else f"Author: {book.author}"
    return "".join(f"{line}\n\n" for line in (book.title, author, chapter.heading) if line)


@lru_cache(maxsize=4)
def _passages(folder: str, symbols: int) -> dict[str, tuple[BookPassage, ...]]:
    """Return the passages of all books that have some, by title; each allows every change."""
    found = {}
    for book in scored_books(folder):
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
