"""A small single-stream model on a folder of text."""

from dataclasses import replace

from counterpoint.recipes.books import books
from counterpoint.systems import single_stream
from counterpoint.train.run import Run


def books_single() -> Run:
    """Train `single_stream.small` on the .txt and .md files below ``books/``.

    For another folder use ``--data.source folder:PATH``. It takes at most an hour (``--minutes``).
    """
    return replace(books(), name="books_single", system=single_stream.small())
