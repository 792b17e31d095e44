import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from counterpoint.data.text.documents import Document, Section, plain_document
from counterpoint.data.text.shards import ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import ByteTokenizer
from tests.data.text.shard_folders import write_shards

BYTES = ByteTokenizer()


def corpus(count: int = 20) -> Iterator[Document]:
    for i in range(count):
        yield Document(f"T{i}", (Section("α", (f"{i} " * (i + 1),)), Section(f"H{i}", ("é" * i,))))


@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 1 << 20])
def test_shards_round_trip_over_files(tmp_path: Path, shard_tokens: int) -> None:
    documents = list(corpus(6))
    shards = write_shards(documents, BYTES, tmp_path / "s", shard_tokens)
    expected = [(d.title, *unit) for d in documents for unit in d.units("section")]
    assert [(u.title, u.heading, BYTES.decode(u.ids)) for u in shards] == expected
    assert [u.num_bytes for u in shards] == [len(text.encode()) for *_, text in expected]
    for unit in shards:
        assert (unit.ids[0], unit.ids[-1]) == (BYTES.start_id, BYTES.end_id)
    files = sorted((tmp_path / "s").glob("tokens-*.bin"))
    assert len(files) == -(-shards.num_tokens // shard_tokens)
    assert shards.num_bytes == sum(u.num_bytes for u in shards)
    assert [u.heading for u in shards[-2:]] == ["α", "H5"]


def test_whole_documents_are_one_unit(tmp_path: Path) -> None:
    shards = write_shards(corpus(3), BYTES, tmp_path / "s", unit="document")
    assert [BYTES.decode(u.ids) for u in shards] == [d.text() for d in corpus(3)]


def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    shards = write_shards(corpus(), BYTES, tmp_path / "s", 64)
    arrays = [*shards._shards, shards.token_stops, shards.unit_bytes, shards._names]
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert {array.dtype for array in shards._shards} == {np.dtype("<u2")}


def test_large_vocabulary_is_kept_in_four_bytes(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.vocab_size, self.start_id, self.end_id = 100_258, 100_256, 100_257
            self.byte_lengths = (np.arange(100_258) < 100_256).astype(np.int64)

        def encode(self, text: str) -> np.ndarray:
            return super().encode(text) + 100_000

    shards = write_shards([plain_document("ab")], Wide(), tmp_path / "s")
    assert shards[0].ids.tolist() == [100_256, 100_097, 100_098, 100_257]
    assert shards._shards[0].dtype == np.dtype("<u4")


def test_writing_consumes_documents_one_at_a_time(tmp_path: Path) -> None:
    alive = 0

    def stream() -> Iterator[Document]:
        nonlocal alive
        for i in range(200):
            alive = i
            yield plain_document("x" * 1000, str(i))

    with ShardWriter(tmp_path / "s", BYTES, shard_tokens=2000) as writer:
        for document in stream():
            writer.add(document.text())
            assert alive == writer.num_units - 1
            open_files = [name for name in writer._files if name.startswith("tokens")]
            assert len(open_files) <= 1  # finished files are closed while writing goes on


@pytest.mark.parametrize("name", ["tokens-00001.bin", "units.bin", "names.bin", "byte_lengths.bin"])
def test_truncated_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    write_shards(corpus(), BYTES, tmp_path / "s", 64)
    path = tmp_path / "s" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=rf"damaged: {name} must have \d+ bytes and has \d+"):
        TokenShards(tmp_path / "s")
    path.unlink()
    with pytest.raises(ValueError, match=f"damaged: {name} must have .* is missing"):
        TokenShards(tmp_path / "s")


def test_foreign_shards_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_shards(corpus(), BYTES, folder, 64)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="of format .*2.*: got .*99"):
        TokenShards(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="of format"):
        TokenShards(folder)
    (folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        TokenShards(folder)
    del manifest["end_id"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json lacks 'end_id'"):
        TokenShards(folder)
    with pytest.raises(ValueError, match=r"must hold token shards: it has no manifest"):
        TokenShards(tmp_path)


def test_shards_of_another_corpus_are_refused(tmp_path: Path) -> None:
    write_shards(corpus(), BYTES, tmp_path / "a", 64)
    write_shards([plain_document("y" * 5000)], BYTES, tmp_path / "b", 64)
    foreign = (tmp_path / "b" / "tokens-00001.bin").read_bytes()
    (tmp_path / "a" / "tokens-00000.bin").write_bytes(foreign)
    with pytest.raises(ValueError, match="do not begin and end as units do"):
        TokenShards(tmp_path / "a")


def test_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield plain_document("a" * 100)
        raise RuntimeError("reader broke")

    with pytest.raises(RuntimeError, match="reader broke"):
        write_shards(broken(), BYTES, tmp_path / "s", 16)
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_writer_are_replaced(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", BYTES, 16).__enter__()
    writer.add("written by a process that was killed" * 3)
    for file in writer._files.values():
        file.close()
    with pytest.raises(ValueError, match="has no manifest"):
        TokenShards(tmp_path / "s")
    shards = write_shards([plain_document("b")], BYTES, tmp_path / "s", 16)
    assert BYTES.decode(shards[0].ids) == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk: the same write fails the same way.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        with pytest.raises(OSError, match=r"stopped after \d+ tokens.*free space"):
            write_shards([plain_document("x" * (1 << 20))] * 4, BYTES, tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_bad_writing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus is empty"):
        write_shards([], BYTES, tmp_path / "s")
    with pytest.raises(ValueError, match="`shard_tokens` must be >= 1"):
        write_shards(corpus(), BYTES, tmp_path / "s", 0)
    with pytest.raises(ValueError, match="'T' has a lone surrogate at character 1"):
        write_shards([plain_document("a\ud800", "T")], BYTES, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    write_shards(corpus(), BYTES, tmp_path / "s")
    with pytest.raises(ValueError, match="must go into a new folder"):
        write_shards(corpus(), BYTES, tmp_path / "s")
