"""T8 and T9: passages of real books, beside what was changed in them and what stands above them.

Books are a folder of .txt and .md files (`# Title`, then headings such as "Author: NAME"), or the
King James Bible that comes with this library. No author is on both sides: what is scored are the
books below ``valid`` in the folder, or else those of some authors, chosen by a hash of their names;
`held_out_titles` names them for training.
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
"""Share of the authors whose books are scored, where a folder has no ``valid``."""

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
    """A book; the author is its title where none is told."""

    title: str
    author: str
    chapters: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class BookPassage:
    """Some paragraphs of a chapter."""

    book: Book
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Texts, and the same with something changed: which are likelier?

    Attributes:
        kind: What was changed, one of `KINDS`.
        document: Title of the book.
        right: The texts as they were.
        wrong: The same texts changed: as many symbols in all.
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
        contexts: By name ("own", "other", "absent"): what is read before it.
        text: What is scored.
        names: First and last symbol, behind it, of the names that were told earlier than a window.
    """

    document: str
    contexts: dict[str, str]
    text: str
    names: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffleChoice:
    """T8: original against changed passages; chance is a half.

    Each passage comes with every kind of change, one after the other. Two paragraphs of it are
    exchanged; two passages of different authors exchange a paragraph; or the sentences of one
    paragraph are shuffled. Only the last can be told from the paragraph alone. The first paragraph
    of a passage stays as it is.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Least symbols of a passage.
    """

    name: ClassVar[str] = "shuffle"
    folder: str = ""
    passage_symbols: int = 1500

    def choice(self, seed: int, number: int) -> TextChoice:
        """The choice of that number: a pure function of it and of the books."""
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
    """T9: the beginning of a chapter below its own title, author and heading, another's, or none.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        passage_symbols: Symbols of a chapter that are scored.
        window: Names count as recalled where they were told before, but not in so many last
            symbols.
    """

    name: ClassVar[str] = "book_lm"
    folder: str = ""
    passage_symbols: int = 2000
    window: int = 256

    def text(self, seed: int, number: int) -> ContextText:
        """The text of that number: a pure function of it and of the books."""
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
    """Titles of the books of some authors, for `DataConfig.held_out`; see `scored_books`.

    Args:
        folder: Folder of books.
        share: Share of the authors.
    """
    books = [_book(document) for document in read_folder(folder)]
    return tuple(book.title for book in books if _is_held_out(book.author, share))


@lru_cache(maxsize=4)
def scored_books(folder: str = "") -> tuple[Book, ...]:
    """The books that no model was trained on, with chapters of some length.

    Raises:
        UserError: They are of fewer than two authors.
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
    """Places of names that stand earlier in a text, but not in the last ``window`` symbols."""
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
    """What stands above a chapter, as `Document.text` has it."""
    author = "" if book.author == book.title else f"Author: {book.author}"
    return "".join(f"{line}\n\n" for line in (book.title, author, chapter.heading) if line)


@lru_cache(maxsize=4)
def _passages(folder: str, symbols: int) -> dict[str, tuple[BookPassage, ...]]:
    """Passages of all books that have some, by title: each can be changed in every way."""
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
    """A chapter cut into passages of so many symbols; what is left, or far longer, is dropped."""
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
    """Whether a passage can be changed in every way."""
    are_different = len(set(paragraphs)) == len(paragraphs)
    return are_different and len(paragraphs) >= 4 and any(map(_can_shuffle, paragraphs[1:]))


def _can_shuffle(paragraph: str) -> bool:
    """Whether it has three sentences or more; parts that end with ; or : count as well."""
    return len(set(_SENTENCE_END.split(paragraph)[::2])) >= 3


def _shuffled(paragraph: str, rng: random.Random) -> str:
    """The same sentences in another order, with the blanks between them where they were."""
    parts = _SENTENCE_END.split(paragraph)
    sentences = parts[::2]
    while parts[::2] == sentences:
        parts[::2] = rng.sample(sentences, len(sentences))
    return "".join(parts)


def _with(paragraphs: Sequence[str], place: int, text: str) -> tuple[str, ...]:
    return (*paragraphs[:place], text, *paragraphs[place + 1 :])


def _joined(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Texts of paragraphs, with a blank line between any two."""
    return tuple("\n\n".join(paragraphs) for paragraphs in texts)
