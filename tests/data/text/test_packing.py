import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.text.documents import plain_document
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.shards import ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from counterpoint.streams.spec import UNSET_ID

BYTES = ByteTokenizer()


def shards_of(texts: list[str], folder: str | Path, shard_tokens: int = 1 << 20) -> TokenShards:
    with ShardWriter(Path(folder) / "s", BYTES, shard_tokens) as writer:
        for text in texts:
            writer.add(text)
    return TokenShards(Path(folder) / "s")


@settings(max_examples=30)
@given(
    texts=st.lists(st.text("aé\n", max_size=40), min_size=1, max_size=12),
    block_ticks=st.integers(1, 9),
    blocks_per_row=st.integers(1, 6),
    shard_tokens=st.integers(20, 200),
)
def test_rows_hold_every_unit_exactly(
    texts: list[str], block_ticks: int, blocks_per_row: int, shard_tokens: int
) -> None:
    row_ticks = block_ticks * blocks_per_row
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of(texts, folder, shard_tokens)
        packed = PackedRows(shards, row_ticks, block_ticks)
        everything = np.arange(len(packed))
        batch = packed.rows(everything)
        unit_of_tick = packed.units(everything).ravel()
    ticks = batch.ticks["part"].numpy().ravel()
    targets = batch.targets["part"].numpy().ravel()
    start = batch.document_start.numpy()
    # Written as a plain loop over units: where each begins, what it reads and what it predicts.
    begin = 0
    for number, text in enumerate(texts):
        ids = [BYTES.start_id, *text.encode(), BYTES.end_id]
        length = -(-len(ids) // block_ticks) * block_ticks
        if number == len(texts) - 1:
            length = len(ticks) - begin
        span = slice(begin, begin + length)
        assert ticks[span].tolist() == ids + [BYTES.end_id] * (length - len(ids))
        assert targets[span].tolist() == ids[1:] + [UNSET_ID] * (length - len(ids) + 1)
        assert set(unit_of_tick[span]) == {number}
        for tick in range(begin, begin + length):
            row, column = divmod(tick, row_ticks)
            assert start[row, column] == max(begin - row * row_ticks, 0)
        begin += length
    assert len(ticks) - begin < row_ticks
    assert begin == len(packed) * row_ticks
    assert (start % block_ticks == 0).all()
    assert batch.size == sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    folder = tmp_path_factory.mktemp("packed")
    return PackedRows(shards_of(["x" * n for n in (3, 50, 0, 17, 40, 9)], folder, 13), 16, 4)


@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_rows_do_not_depend_on_their_neighbours(packed: PackedRows, order: list[int]) -> None:
    indices = np.array(order) % len(packed)
    whole, some = packed.rows(np.arange(len(packed))), packed.rows(indices)
    assert (some.ticks["part"] == whole.ticks["part"][indices]).all()
    assert (some.targets["part"] == whole.targets["part"][indices]).all()
    assert (some.document_start == whole.document_start[indices]).all()
    alone = [packed.rows(indices[i : i + 1]).size for i in range(len(indices))]
    assert some.size == sum(alone)


def test_unit_goes_on_in_the_next_row_with_its_target(tmp_path: Path) -> None:
    packed = PackedRows(shards_of(["abcdefgh", "z"], tmp_path), 8, 4, stream="text")
    batch = packed.rows(np.arange(2))
    first, second = [256, *b"abcdefg"], [*b"h", 257, 257, 257, 256, *b"z", 257, 257]
    assert batch.ticks["text"].tolist() == [first, second]
    first, second = [*b"abcdefgh"], [257, UNSET_ID, UNSET_ID, UNSET_ID, *b"z", 257, -1, -1]
    assert batch.targets["text"].tolist() == [first, second]
    assert batch.document_start.tolist() == [[0] * 8, [0] * 4 + [4] * 4]
    assert batch.size == 9


def test_bytes_of_subword_targets_are_exact(tmp_path: Path) -> None:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the thing that thinks"] * 9, trainer)
    bpe.save(str(tmp_path / "t.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "t.json")
    texts = ["the thing — that café thinks", "☃", "thinking " * 20]
    with ShardWriter(tmp_path / "s", tokenizer, 11) as writer:
        for text in texts:
            writer.add(text)
    packed = PackedRows(TokenShards(tmp_path / "s"), 8, 4)
    assert packed.rows(np.arange(len(packed))).size == sum(len(t.encode()) for t in texts)
    targets = packed.rows(np.array([1])).targets["part"].numpy()
    expected = tokenizer.num_bytes(targets[targets != UNSET_ID])
    assert packed.rows(np.array([1])).size == expected


def test_unit_shorter_than_a_block_fills_one_block(tmp_path: Path) -> None:
    packed = PackedRows(shards_of(["a"], tmp_path), 64, 64)
    batch = packed.rows(np.array([0]))
    assert len(packed) == 1
    assert batch.ticks["part"][0].tolist() == [256, 97] + [257] * 62
    assert batch.targets["part"][0].tolist() == [97, 257] + [UNSET_ID] * 62


def test_misuse_is_refused(tmp_path: Path) -> None:
    shards = shards_of(["a"], tmp_path)
    for row_ticks, block_ticks in ((10, 4), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="`row_ticks` must be a multiple of `block_ticks`"):
            PackedRows(shards, row_ticks, block_ticks)
    packed = PackedRows(shards, 8, 4)
    for index in (-1, 1):
        with pytest.raises(ValueError, match=r"Rows must be 0 to 0: got \["):
            packed.rows(np.array([index]))


def test_corpus_larger_than_memory_is_written_and_read(tmp_path: Path) -> None:
    # 64 MB of ids go through a process that may allocate only 16 MB more than it starts with.
    script = f"""
import resource
from pathlib import Path
import numpy as np
from counterpoint.data.text.documents import plain_document
from counterpoint.data.loader import Loader
from counterpoint.data.text.packing import PackedRows
from tests.data.text.shard_folders import write_shards
from counterpoint.data.text.tokenizer import ByteTokenizer
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + (16 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
documents = (plain_document(chr(97 + i % 26) * 65_536) for i in range(512))
shards = write_shards(documents, ByteTokenizer(), {str(tmp_path / "s")!r}, shard_tokens=1 << 24)
assert len(shards._shards) == 3
loader = Loader(PackedRows(shards, 1024, 8), 16, seed=0)
assert sum(loader.batch(step).size for step in range(20)) > 20 * 15 * 1024
try:
    np.ones(128 << 20, np.uint8)
except MemoryError:
    print("limited")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("limited\n", "")


def test_a_batch_is_packed_quickly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = shards_of(["x" * n for n in rng.integers(0, 4000, 1000)], tmp_path, 1 << 18)
    packed = PackedRows(shards, 1024, 8)
    took_ms = []
    for _ in range(20):
        indices = rng.integers(0, len(packed), 16)
        started = time.perf_counter()
        packed.rows(indices)
        took_ms.append((time.perf_counter() - started) * 1e3)
    assert min(took_ms) < 5  # about 0.6 ms without the type checks of the tests


def test_stream_of_the_document_reader_packs(tmp_path: Path) -> None:
    document = plain_document("one\n\ntwo", "t")
    packed = PackedRows(shards_of([document.text()], tmp_path), 16, 4)
    assert BYTES.decode(packed.rows(np.array([0])).ticks["part"][0].numpy()) == document.text()
