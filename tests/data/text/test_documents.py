import hashlib
import json
import lzma
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from counterpoint.data.text.documents import (
    KJV_FILE,
    Document,
    Section,
    kjv,
    markdown_document,
    plain_document,
    read_folder,
    read_hub,
    read_jsonl,
    read_parquet,
)
from counterpoint.data.text.parquet import parquet_rows
from counterpoint.errors import UserError

Reader = Callable[[Path], Iterator[Document]]


def test_document_text_has_title_headings_and_paragraphs() -> None:
    document = Document("T", (Section("", ("p", "q")), Section("H", ("r",)), Section("E", ())))
    assert document.text() == "T\n\np\n\nq\n\nH\n\nr\n\nE"
    assert list(document.units("document")) == [("", document.text())]
    assert list(document.units("section")) == [("", "p\n\nq"), ("H", "H\n\nr")]


def test_plain_document_keeps_lines_and_indents() -> None:
    document = plain_document("\n  one\n  two  \n \n\n\nthree\r\n\r\nfour\n", "t")
    assert document.sections == (Section("", ("  one\n  two", "three", "four")),)
    assert plain_document(document.sections[0].text(), "t") == document


def test_markdown_headings_are_sections() -> None:
    text = "# Title ##\n\n## Author: X\n\n---\n\n##  I. Return \n\na\nb\n\nc\n\n```\n# code\n```\n"
    assert markdown_document(text, "stem") == Document(
        "Title",
        (
            Section("Author: X", ()),
            Section("I. Return", ("a\nb", "c", "```\n# code\n```")),
        ),
    )


def test_markdown_without_a_title_uses_the_given_one() -> None:
    assert markdown_document("lead\n\n# One\n\nx", "stem") == Document(
        "stem", (Section("", ("lead",)), Section("One", ("x",)))
    )
    assert markdown_document("# A\n# B\nx", "s") == Document("A", (Section("B", ("x",)),))
    assert markdown_document("#hash", "s") == Document("s", (Section("", ("#hash",)),))


def test_folder_is_read_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_bytes(b"\xef\xbb\xbfz\r\n\r\ny")
    (tmp_path / "a.md").write_text("# A\n\nx\n")
    (tmp_path / "c.TXT").write_text("c")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "image.png").write_bytes(b"\xff")
    documents = list(read_folder(tmp_path))
    assert [d.title for d in documents] == ["A", "z", "c"]
    assert documents[1].sections == (Section("", ("z", "y")),)


def test_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"text": "é", "title": "t"}, {"text": "b", "id": 3}, {"text": ""}, {"text": None}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert [(d.title, d.text()) for d in read_jsonl(path)] == [("t", "t\n\né"), ("", "b")]


def test_parquet_is_read_in_batches_from_files_and_folders(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(600)]
    table = pa.table({"body": texts, "name": [str(i) for i in range(600)], "n": range(600)})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    pa.parquet.write_table(table.select(["body"]), tmp_path / "b.parquet")
    documents = list(read_parquet(tmp_path / "a.parquet", "body", "name"))
    assert [d.title for d in documents] == [str(i) for i in range(600)]
    both = list(read_parquet(tmp_path, "body", "name"))
    assert [d.sections[0].text() for d in both] == texts * 2


def test_hub_dataset_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"text": "a\n\nb", "title": "t"}, {"text": "c", "title": None}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = list(read_hub(str(tmp_path)))
    assert [(d.title, d.text()) for d in documents] == [("t", "t\n\na\n\nb"), ("", "c")]
    with pytest.raises(ValueError, match="must be able to load"):
        list(read_hub(str(tmp_path), split="none"))


def test_hub_stream_that_breaks_off_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train-0.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "train-1.jsonl").write_text('{"text": "b"}\n')
    reader = read_hub(str(tmp_path))
    assert next(reader).text() == "a"
    (tmp_path / "train-1.jsonl").unlink()
    with pytest.raises(ValueError, match=r"must be able to load .*Check the name") as error:
        next(reader)
    assert "\n" not in str(error.value)


def test_readers_are_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    reader = read_folder(tmp_path)
    assert next(reader).text() == "a\n\nfine"
    with pytest.raises(ValueError, match="UTF-8"):
        next(reader)


BAD_FILES: list[tuple[Reader, str, bytes, str]] = [
    (read_folder, "x.txt", b"ok \xff", r"x\.txt has the byte 0xff at offset 3"),
    (read_jsonl, "x.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2 has the byte 0xff"),
    (
        read_jsonl,
        "x.jsonl",
        b'{"text": "a"}\n{"text"',
        "line 2 must be a JSON object: it is not JSON",
    ),
    (read_jsonl, "x.jsonl", b"[1]", "line 1 must be a JSON object: it is a list"),
    (read_jsonl, "x.jsonl", b'{"txt": "a"}', r"must have the field 'text': it has \['txt'\]"),
    (read_jsonl, "x.jsonl", b'{"text": 3}', "field 'text' must be text, got int"),
    (read_jsonl, "x.jsonl", b'{"text": "a", "title": 3}', "field 'title' must be text, got int"),
    (read_jsonl, "x.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 must be .*nested too deeply"),
    (read_jsonl, "x.jsonl", b'{"n": ' + b"7" * 5000 + b"}", "line 1 must be a JSON object"),
    (read_parquet, "x.parquet", b"not parquet at all", "must be a parquet file"),
]


@pytest.mark.parametrize(("reader", "name", "content", "message"), BAD_FILES)
def test_bad_file_is_a_one_line_error(
    tmp_path: Path,
    reader: Reader,
    name: str,
    content: bytes,
    message: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(reader(tmp_path if name.endswith(".txt") else tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [read_folder, read_jsonl, read_parquet])
def test_missing_source_is_an_error(tmp_path: Path, reader: Reader) -> None:
    with pytest.raises(ValueError, match="must be an existing"):
        list(reader(tmp_path / "none"))


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_text("no text")
    with pytest.raises(ValueError, match=r"corpus is empty.*\.txt or \.md"):
        list(read_folder(tmp_path))
    with pytest.raises(ValueError, match=r"corpus is empty.*\.parquet"):
        list(read_parquet(tmp_path))


def test_parquet_streams_in_a_fraction_of_its_memory(tmp_path: Path) -> None:
    """One row group of 49 MB of text: what is held at once is less than a quarter of it."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = random.Random(0)
    texts = [rng.randbytes(4_096).hex() for _ in range(6_000)]
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    del texts
    before = arrow.total_allocated_bytes()
    most = 0
    num_rows = 0
    for _, row in parquet_rows(tmp_path / "a.parquet", ["text"]):
        most = max(most, arrow.total_allocated_bytes() - before)
        num_rows += len(row["text"]) == 8_192
    assert num_rows == 6_000
    assert most < 6_000 * 8_192 / 4


def test_parquet_without_the_column_is_an_error(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"must have the column 'text': it has \['body'\]"):
        list(read_parquet(tmp_path / "a.parquet"))


def test_damaged_rows_of_parquet_name_the_file(tmp_path: Path) -> None:
    path, damaged = tmp_path / "a.parquet", tmp_path / "b.parquet"
    texts = [f"text {i} é" for i in range(2000)]
    pa.parquet.write_table(
        pa.table({"text": texts}), path, compression="none", use_dictionary=False
    )
    content = path.read_bytes()
    for place in (len(content) // 3, content.index(b"text 1500") - 4):
        damaged.write_bytes(content[:place] + b"\xff" * 20 + content[place + 20 :])
        with pytest.raises(UserError, match=r"b\.parquet") as caught:
            list(read_parquet(damaged))
        assert "\n" not in str(caught.value)


def test_parquet_that_is_not_utf8_names_the_file(tmp_path: Path) -> None:
    content = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    pa.parquet.write_table(pa.table({"text": content}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has the byte 0xe9 in one of the rows from 1"):
        list(read_parquet(tmp_path / "a.parquet"))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'counterpoint\[datasets\]'"):
        list(read_hub("any/name"))
    with pytest.raises(ValueError, match=r"pip install 'counterpoint\[data\]'"):
        list(read_parquet(tmp_path))


def test_kjv_is_the_text_of_its_provenance() -> None:
    digest = hashlib.sha256(lzma.decompress(KJV_FILE.read_bytes())).hexdigest()
    assert f"`{digest}`" in KJV_FILE.with_name("king_james_bible.md").read_text()


def test_kjv_is_complete_and_clean() -> None:
    books = list(kjv())
    chapters = [section for book in books for section in book.sections]
    verses = [verse for chapter in chapters for verse in chapter.paragraphs]
    assert (len(books), len(chapters), len(verses)) == (66, 1189, 31102)
    assert books[0].title == "Genesis"
    assert chapters[0].text().startswith("Genesis 1\n\nIn the beginning God created the heaven")
    assert "darkness was upon the face" in verses[1]
    assert verses[-1] == "The grace of our Lord Jesus Christ be with you all. Amen."
    assert min(verses, key=len) == "Jesus wept."
    text = "\n".join(verses)
    assert not set("[]0123456789<>") & set(text)
    assert "  " not in text
    assert "( " not in text
    assert sum(len(book.text().encode()) for book in books) == pytest.approx(4.19e6, rel=0.01)
