"""The books of the tasks with passages: which are scored, and which are learned from.

No author is both learned from and scored. The scored books are those below ``valid`` in a folder
or, if there is no such folder, the books of some authors, chosen by a hash of their names. Of the
others, the books of some authors are set apart, so that settings are chosen on them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.items import TUNED_SHARE, is_scored, is_tuning, share_of
from counterpoint.data.text.corpus import KJV_HELD_OUT, DataConfig, Folder, Kjv
from counterpoint.data.text.documents import (
    KJV_FILE,
    Document,
    Section,
    folder_files,
    kjv,
    read_folder,
)
from counterpoint.errors import UserError

HELD_OUT_SHARE = 0.15
"""Share of the authors whose books are scored if a folder has no ``valid``."""

LEAST_SYMBOLS = 400
"""Chapters with fewer symbols are left out."""

_FEWEST_AUTHORS = 2
_NO_TEXT = re.compile(r"[^\s!-/:-~]+")  # digits and what is not ASCII
_AUTHOR = re.compile(r"Author:\s*(.+)")


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


def held_out_titles(folder: str, share: float = HELD_OUT_SHARE) -> tuple[str, ...]:
    """Return the titles of the books of some authors, for `DataConfig.held_out`.

    Args:
        folder: Folder of books.
        share: Share of the authors; see `scored_books`.
    """
    books = [_book(document) for document in read_folder(folder)]
    return tuple(book.title for book in books if share_of(book.author) < share)


def scored_books(folder: str = "") -> tuple[Book, ...]:
    """Return the books that no model was trained on, without their very short chapters.

    Raises:
        UserError: The books have fewer than two authors.
    """
    return _with_chapters(
        _scored(folder), folder, "held out to be scored", "Put some below a folder `valid` in it."
    )


def tuned_books(folder: str = "") -> tuple[Book, ...]:
    """Return the books on which settings are chosen, as `scored_books`; none of them is learned."""
    what = "set apart, so that settings are chosen on them"
    return _with_chapters(_tuned(folder), folder, what, "Add books of other authors.")


def learned_text(folder: str, row_ticks: int) -> DataConfig:
    """Return the text to learn from: all books that are neither scored nor set apart.

    Args:
        folder: Folder of books; "" is the King James Bible.
        row_ticks: Number of ticks of a row.

    Raises:
        UserError: No book is left.
    """
    learned = {document.title for document in _learned(folder)}
    if not learned:
        raise UserError(
            f"There must be books to learn from in {folder!r}: got only those that are scored. Put "
            "books of other authors beside the folder `valid`."
        )
    source = Folder(path=folder) if folder else Kjv()
    others = [one.title for one in _all(folder) if one.title not in learned]
    held_out = tuple(dict.fromkeys(others))
    return DataConfig(source=source, held_out=held_out, row_ticks=row_ticks, unit="section")


def running_text(folder: str, seed: int) -> str:
    """Return the text of all books of a seed's side as one line of words, in ASCII without digits.

    Args:
        folder: Folder of books; "" is the King James Bible.
        seed: Seed of items to learn from, to choose settings on, or to report; see `is_scored`.
    """
    return _running_text(folder, is_scored(seed), is_tuning(seed))


def book_files(folder: str) -> dict[str, Path]:
    """Return the files of the books by name."""
    if not folder:
        return {KJV_FILE.name: KJV_FILE}
    return {path.relative_to(folder).as_posix(): path for path in folder_files(folder)}


@lru_cache(maxsize=4)
def pair_nats(folder: str) -> Float[np.ndarray, "257 256"]:
    """Return the cost of every byte after every other, or first, in the books to learn from.

    It is in nats; a pair that does not occur counts as one that occurs once.
    """
    counts = np.ones((257, 256))
    for document in _learned(folder):
        read = np.frombuffer(document.text().encode(), np.uint8).astype(np.int64)
        pairs = np.bincount(256 * read[:-1] + read[1:], minlength=256 * 256)
        counts[:256] += pairs.reshape(256, 256)
        counts[256, read[0]] += 1
    return np.log(counts.sum(1, keepdims=True)) - np.log(counts)


@lru_cache(maxsize=3)
def _running_text(folder: str, scored: bool, tuning: bool) -> str:
    learned_or_scored = _scored if scored else _learned
    documents = (_tuned if tuning else learned_or_scored)(folder)
    return " ".join(_NO_TEXT.sub("", " ".join(one.text() for one in documents)).split())


@lru_cache(maxsize=4)
def _all(folder: str) -> tuple[Document, ...]:
    return tuple(read_folder(folder) if folder else kjv())


@lru_cache(maxsize=4)
def _scored(folder: str) -> tuple[Document, ...]:
    if not folder:
        return tuple(one for one in kjv() if one.title in KJV_HELD_OUT)
    if (Path(folder) / "valid").is_dir():
        return tuple(read_folder(Path(folder) / "valid"))
    return tuple(one for one in _all(folder) if share_of(_author(one)) < HELD_OUT_SHARE)


@lru_cache(maxsize=4)
def _tuned(folder: str) -> tuple[Document, ...]:
    """Return the documents of a tenth of the authors who are not scored, two or more."""
    others = _without(folder, _scored(folder))
    authors = sorted({_author(one) for one in others}, key=lambda name: share_of(f"tuned {name}"))
    count = max(round(TUNED_SHARE * len(authors)), _FEWEST_AUTHORS)
    return tuple(one for one in others if _author(one) in authors[:count])


def _learned(folder: str) -> tuple[Document, ...]:
    return _without(folder, (*_scored(folder), *_tuned(folder)))


def _without(folder: str, kept: Sequence[Document]) -> tuple[Document, ...]:
    """Return the books of other titles and authors than some."""
    titles = {one.title for one in kept}
    authors = {_author(one) for one in kept}
    return tuple(
        one for one in _all(folder) if one.title not in titles and _author(one) not in authors
    )


def _with_chapters(
    documents: Sequence[Document], folder: str, what: str, advice: str
) -> tuple[Book, ...]:
    books = [book for book in map(_book, documents) if book.chapters]
    if len({book.author for book in books}) < _FEWEST_AUTHORS:
        raise UserError(
            f"Books of at least two authors must be {what}: got "
            f"{', '.join(book.title for book in books) or 'none'} in {folder or 'the Bible'!r}. "
            f"{advice}"
        )
    return tuple(books)


def _author(document: Document) -> str:
    told = (_AUTHOR.fullmatch(section.heading.strip()) for section in document.sections)
    return next((match[1] for match in told if match), document.title)


def _book(document: Document) -> Book:
    chapters = tuple(
        section
        for section in document.sections
        if sum(map(len, section.paragraphs)) >= LEAST_SYMBOLS
    )
    return Book(document.title, _author(document), chapters)
