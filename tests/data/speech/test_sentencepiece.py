"""SentencePiece files as tokenisers of text corpora, and of the text of speech runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from counterpoint.data.speech.text_rows import END_ID, TextBatches, prepare_text
from counterpoint.data.speech.words import open_tokenizer
from counterpoint.data.text.corpus import Folder
from counterpoint.data.text.tokenizer import SentencePieceTokenizer, load_tokenizer
from counterpoint.systems.moshi import Moshi, tiny

sentencepiece = pytest.importorskip("sentencepiece")
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form."


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with the special ids of the published one."""
    prefix = tmp_path_factory.mktemp("pieces") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3},
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.mark.parametrize("text", [TEXT, "the earth", "Zürich \N{SNOWMAN}"])
def test_pieces_keep_a_text_and_its_bytes(path: Path, text: str) -> None:
    tokenizer = load_tokenizer(str(path), normalising=True)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    # A blank comes before the first word.
    assert tokenizer.num_bytes(ids) == len(text.encode()) + 1
    both = np.array([tokenizer.start_id, *ids, tokenizer.end_id])
    assert tokenizer.decode(both) == text
    assert tokenizer.num_bytes(both) == tokenizer.num_bytes(ids)
    assert ids.tolist() == open_tokenizer(str(path)).encode_word(text)


def test_text_of_a_speech_run_has_its_pieces(path: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    tokenizer = load_tokenizer(str(path), normalising=True)
    ids = tokenizer.encode(TEXT).tolist()
    batches = TextBatches(
        source=Folder(path=str(tmp_path / "texts")),
        row_ticks=len(ids) + 2,
        cache_folder=str(tmp_path / "cache"),
    )
    config = tiny()
    model = Moshi(replace(config, text_vocab_size=tokenizer.start_id))
    batch = prepare_text(batches, str(path), model).rows(np.array([0]))
    assert batch.ticks["text"].tolist() == [[tokenizer.start_id, *ids, END_ID]]
    assert batch.targets["text"].tolist() == [[*ids, END_ID, -1]]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.model").write_bytes(b"no")
    for name in ("no.model", "missing.model"):
        with pytest.raises(ValueError, match=r"must be a SentencePiece \.model file"):
            SentencePieceTokenizer(tmp_path / name)
