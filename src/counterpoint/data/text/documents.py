"""Documents with structure, and readers that yield them one at a time.

A reader holds one document in memory, so a corpus may be larger than memory; one document may not.
"""

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from counterpoint.data.text.found import existing_file, files_below
from counterpoint.data.text.parquet import parquet_rows
from counterpoint.errors import UserError
from counterpoint.files import read_json_lines, read_text
from counterpoint.packages import optional_module

UnitKind = Literal["document", "section"]
"""Piece that is packed and read as one: a whole document, or each section separately."""

KJV_FILE = Path(__file__).with_name("king_james_bible.txt.xz")
"""The text of `kjv`; `king_james_bible.md` in the same folder tells its origin."""

# Every pattern takes time linear in the length of the line, and so does the code that uses it.
_MARKDOWN_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)(.*)")
_MARKDOWN_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document.

    Attributes:
        heading: Its heading, which may be empty.
        paragraphs: The paragraphs below it.
    """

    heading: str
    paragraphs: tuple[str, ...]

    def text(self) -> str:
        """Return heading line and paragraphs, separated by blank lines."""
        return "\n\n".join(part for part in (self.heading, *self.paragraphs) if part)


@dataclass(frozen=True, slots=True)
class Document:
    """A text in sections.

    Attributes:
        title: Its title, which may be empty.
        sections: Its sections, in order.
    """

    title: str
    sections: tuple[Section, ...]

    def text(self) -> str:
        """Return title line and sections, separated by blank lines."""
        parts = (self.title, *(section.text() for section in self.sections))
        return "\n\n".join(part for part in parts if part)

    def units(self, unit: UnitKind) -> Iterator[tuple[str, str]]:
        """Yield the (heading, text) of each unit.

        A document is one unit with an empty heading. Sections that hold only a heading are not
        units.
        """
        if unit == "document":
            yield "", self.text()
            return
        for section in self.sections:
            if section.paragraphs:
                yield section.heading, section.text()


def plain_document(text: str, title: str = "") -> Document:
    """Return a document of one section without a heading; blank lines separate paragraphs."""
    return Document(title, (Section("", _paragraphs(text)),))


def markdown_document(text: str, title: str) -> Document:
    """Parse Markdown: headings start sections, blank lines separate paragraphs, rules are dropped.

    A first line of the form ``# heading`` is the title; without one, ``title`` is used. Text
    between fences is not changed. A fence is closed by a line with at least as many of the same
    character and nothing after them.

    Source: CommonMark 0.31, thematic breaks, ATX headings and fenced code blocks.
    """
    parts = [(0, "", list[str]())]
    fence = ""
    for line in _plain_newlines(text).split("\n"):
        was_in_fence = bool(fence)
        fence = _fence_behind(line, fence)
        if was_in_fence or fence:
            parts[-1][2].append(line)
        elif (match := _MARKDOWN_HEADING.match(line)) is not None:
            parts.append((len(match[1]), _heading(match[2]), []))
        elif not _is_rule(line):
            parts[-1][2].append(line)
    sections = [Section(heading, _paragraphs("\n".join(lines))) for _, heading, lines in parts]
    if not sections[0].paragraphs and len(parts) > 1 and parts[1][0] == 1:
        title = sections[1].heading
        sections[:2] = [Section("", sections[1].paragraphs)]
    return Document(title, tuple(s for s in sections if s.heading or s.paragraphs))


def _fence_behind(line: str, fence: str) -> str:
    """Return the fence that is open after a line, given the one open before it; "" for none."""
    match = _MARKDOWN_FENCE.match(line)
    if match is None:
        return fence
    marks = match[1]
    info = match[2]
    if fence:
        closes = marks.startswith(fence) and not info.strip(" \t")
        return "" if closes else fence
    return "" if marks[0] == "`" and "`" in info else marks


def _heading(text: str) -> str:
    """Return the text of a heading without blanks around it and without closing number signs."""
    text = text.strip(" \t")
    without_signs = text.rstrip("#")
    is_closed = without_signs == "" or without_signs[-1] in " \t"
    return without_signs.rstrip(" \t") if is_closed else text


def _is_rule(line: str) -> bool:
    """Return whether a line is a thematic break: three or more equal signs, and blanks."""
    body = line.lstrip(" ")
    signs = body.replace(" ", "").replace("\t", "")
    has_place = len(line) - len(body) <= 3 and body[:1] in ("-", "*", "_")
    return has_place and len(signs) >= 3 and len(set(signs)) == 1


def read_folder(path: str | Path) -> Iterator[Document]:
    """Yield the documents of all .txt and .md files below a folder, in the order of their paths.

    The title is the file's name without its ending, or the first ``# heading`` of a .md file. Files
    that are empty or blank are skipped. Links are followed.

    Raises:
        UserError: There is no such folder, there are no such files, or a file is not UTF-8.
    """
    for file in folder_files(path):
        text = read_text(file)
        if text.strip():
            build = markdown_document if file.suffix.lower() == ".md" else plain_document
            yield build(text, file.stem)


def read_jsonl(
    path: str | Path, text_field: str = "text", title_field: str = "title"
) -> Iterator[Document]:
    """Yield the documents of a file with one JSON object a line.

    Args:
        path: The file.
        text_field: Key of the text.
        title_field: Key of the title, which may be missing.

    Raises:
        UserError: There is no such file, or a line is not UTF-8 or not an object with the text
            field.
    """
    for place, record in read_json_lines(existing_file(path)):
        yield from _record_document(record, text_field, title_field, place)


def read_parquet(
    path: str | Path, text_column: str = "text", title_column: str = "title"
) -> Iterator[Document]:
    """Yield the documents of a parquet file, or of all .parquet files below a folder, row by row.

    Args:
        path: The file or the folder.
        text_column: Column with the texts.
        title_column: Column with the titles, which may be missing.

    Raises:
        UserError: `pyarrow` is missing, there is no such file, or a file is damaged or has no text
            column.
    """
    for place, record in parquet_rows(path, [text_column], [title_column]):
        yield from _record_document(record, text_column, title_column, place)


def read_hub(
    name: str,
    subset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    title_column: str = "title",
) -> Iterator[Document]:
    """Yield the documents of a data set that the `datasets` package finds by name, as a stream.

    Args:
        name: Name of the data set, such as "wikitext".
        subset: Name of one of its configurations; ``None`` takes the only one.
        split: Split to read.
        text_column: Column with the texts.
        title_column: Column with the titles, which may be missing.

    Raises:
        UserError: `datasets` is missing, or it cannot load the data set or continue the stream.
    """
    for record in _hub_records(name, subset, split):
        yield from _record_document(record, text_column, title_column, f"{name!r}")


def kjv() -> Iterator[Document]:
    """Yield the books of the King James Bible, which comes with this library.

    66 books are documents, 1,189 chapters are sections ("Genesis 1"), 31,102 verses are paragraphs.
    Verse numbers, and the brackets around words that the translators added, are left out. It is
    4.2 MB of text.
    """
    text = lzma.decompress(KJV_FILE.read_bytes()).decode().removeprefix("# ").rstrip("\n")
    for book in text.split("\n# "):
        title, *chapters = book.split("\n## ")
        sections = []
        for chapter in chapters:
            heading, *verses = chapter.split("\n")
            sections.append(Section(heading, tuple(verses)))
        yield Document(title, tuple(sections))


def folder_files(path: str | Path) -> list[Path]:
    """Return the .txt and .md files below a folder, sorted; at least one.

    Raises:
        UserError: There is none.
    """
    return files_below(path, (".txt", ".md"))


def _hub_records(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    datasets = optional_module("datasets")
    try:
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # `datasets` and the network have many error classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"`datasets` must be able to load {name!r} (subset {subset!r}, split {split!r}): "
            f"{reason}. Check the name and the network, and run the same command again."
        ) from error


def _paragraphs(text: str) -> tuple[str, ...]:
    # Leading blanks of a line are kept: they carry the layout of verse and code.
    parts = (part.strip("\n").rstrip() for part in _BLANK_LINES.split(_plain_newlines(text)))
    return tuple(part for part in parts if part.strip())


def _plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record_document(
    record: dict[str, Any], text_field: str, title_field: str, place: str
) -> Iterator[Document]:
    """Yield the document of a row; none if its text is null or blank."""
    if text_field not in record:
        raise UserError(f"{place} must have the field {text_field!r}: it has {sorted(record)}.")
    text = record[text_field]
    title = record.get(title_field)
    if not isinstance(text, str | None) or not isinstance(title, str | None):
        wrong, value = (title_field, title) if isinstance(text, str | None) else (text_field, text)
        raise UserError(f"{place}: the field {wrong!r} must be text, got {type(value).__name__}.")
    if text and text.strip():
        yield plain_document(text, title or "")
