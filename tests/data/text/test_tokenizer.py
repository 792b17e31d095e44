import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.text.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    ModelIds,
    load_tokenizer,
)
from counterpoint.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SPECIAL = "<|endoftext|>"


def train_bpe(path: Path) -> HuggingFaceTokenizer:
    """A real byte-level BPE, trained on a little text."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[SPECIAL],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ["In the beginning was the Word, and the Word was with God.", "Cæsar’s — naïve café"]
    bpe.train_from_iterator(lines * 5, trainer)
    bpe.save(str(path))
    return HuggingFaceTokenizer(path)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json")


@given(TEXTS)
def test_byte_tokenizer_round_trips(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    framed = np.concatenate(([tokenizer.start_id], ids, [tokenizer.end_id]))
    assert tokenizer.decode(framed) == text
    assert tokenizer.num_bytes(framed) == len(text.encode())
    assert tokenizer.byte_lengths[framed].sum() == len(text.encode())


def test_byte_tokenizer_replaces_broken_utf8() -> None:
    ids = ByteTokenizer().encode("é")[:1]
    assert ByteTokenizer().decode(ids) == "\N{REPLACEMENT CHARACTER}"


@given(TEXTS)
def test_bpe_round_trips_with_exact_bytes(bpe: HuggingFaceTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    framed = np.concatenate(([bpe.start_id], ids, [bpe.end_id]))
    assert bpe.decode(framed) == text
    assert bpe.num_bytes(framed) == len(text.encode())


def test_bpe_merges_and_adds_two_ids(bpe: HuggingFaceTokenizer) -> None:
    ids = bpe.encode("the Word was")
    assert len(ids) < len("the Word was")
    assert (bpe.start_id, bpe.end_id) == (bpe.vocab_size - 2, bpe.vocab_size - 1)
    assert ids.max() < bpe.start_id
    assert len(bpe.byte_lengths) == bpe.vocab_size


def test_bpe_reads_special_tokens_in_text_as_text(bpe: HuggingFaceTokenizer) -> None:
    text = f"a{SPECIAL}b"
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.num_bytes(ids) == len(text)


def test_bpe_special_token_counts_no_bytes(bpe: HuggingFaceTokenizer, tmp_path: Path) -> None:
    train_bpe(tmp_path / "t.json")
    vocabulary = json.loads((tmp_path / "t.json").read_text())["model"]["vocab"]
    assert bpe.num_bytes(np.array([vocabulary[SPECIAL]])) == 0


def test_bpe_cut_inside_a_character_decodes_to_replacement(bpe: HuggingFaceTokenizer) -> None:
    ids = bpe.encode("\N{CJK UNIFIED IDEOGRAPH-4E00}")
    assert len(ids) == 3
    assert set(bpe.decode(ids[:2])) == {"\N{REPLACEMENT CHARACTER}"}


def test_tokenizer_of_a_model_has_its_ids(bpe: HuggingFaceTokenizer, tmp_path: Path) -> None:
    train_bpe(path := tmp_path / "tokenizer.json")
    own = bpe.vocab_size - 2
    theirs = HuggingFaceTokenizer(path, ModelIds(start_id=3, end_id=4, num_ids=own + 5))
    assert (theirs.start_id, theirs.end_id, theirs.vocab_size) == (3, 4, own + 5)
    assert theirs.encode("aab").tolist() == bpe.encode("aab").tolist()
    assert theirs.decode(np.array([own, own + 4])) == ""
    inside = HuggingFaceTokenizer("model.gguf", ModelIds(3, 4, own), path.read_bytes())
    assert inside.encode("aab").tolist() == bpe.encode("aab").tolist()
    with pytest.raises(UserError, match=f"it has {own - 1}, the tokenizer {own}"):
        HuggingFaceTokenizer(path, ModelIds(3, 4, own - 1))


def test_identity_names_the_file_content(bpe: HuggingFaceTokenizer, tmp_path: Path) -> None:
    other = train_bpe(tmp_path / "other.json")
    assert other.identity == bpe.identity
    spec = json.loads((tmp_path / "other.json").read_text())
    spec["model"]["merges"].pop()
    (tmp_path / "other.json").write_text(json.dumps(spec))
    assert HuggingFaceTokenizer(tmp_path / "other.json").identity != bpe.identity


def test_sentencepiece_style_counts_fallback_bytes_and_spaces(tmp_path: Path) -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁a": 256, "b": 257, "▁": 258}
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = HuggingFaceTokenizer(tmp_path / "t.json")
    assert loaded.num_bytes(loaded.encode("b b\N{SNOWMAN}b")) == len("b b\N{SNOWMAN}b".encode())
    assert loaded.byte_lengths[[0, 256, 257, 258]].tolist() == [1, 2, 1, 1]


def test_load_tokenizer_refuses_what_is_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer("bytes").vocab_size == 258
    with pytest.raises(ValueError, match="must be 'bytes' or the path"):
        load_tokenizer("byte")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be 'bytes' or the path.*t\.json") as caught:
        load_tokenizer(str(tmp_path / "t.json"))
    assert "\n" not in str(caught.value)


def test_tokenizer_that_loses_text_is_refused(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    words = tokenizers.Tokenizer(model)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(ValueError, match="must keep every byte of a text"):
        HuggingFaceTokenizer(tmp_path / "words.json")
