"""Tokenise, then decode: the identity, or refused; as a stream or as a whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from counterpoint.data.text.documents import plain_document
from counterpoint.data.text.panics import without_panic
from counterpoint.data.text.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    text_pieces,
)
from counterpoint.errors import UserError
from tests.data.text.shard_folders import write_shards

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MARK = "\N{LOWER ONE EIGHTH BLOCK}"
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK), max_size=40)
LINES = ["the quick brown fox jumps over the lazy dog", "Zürich, naïve café — 42 😀"] * 9


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=ALPHABET, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def metaspace(*, prepend: bool) -> tokenizers.Tokenizer:
    """As those of Llama 2 (with a space before every text) and Gemma (without)."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for piece in (MARK, "t", "h", "e", "th", "the", f"{MARK}the", "é"):
        vocabulary[piece] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), (MARK, "the")]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend(MARK)] if prepend else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", MARK)])
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


def load(made: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=["bytes", "byte level", "llama", "gemma"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    kinds: dict[str, Callable[[], Tokenizer]] = {
        "bytes": ByteTokenizer,
        "byte level": lambda: load(byte_level(), folder),
        "llama": lambda: load(metaspace(prepend=True), folder),
        "gemma": lambda: load(metaspace(prepend=False), folder),
    }
    return kinds[request.param]()


@given(text=TEXTS)
def test_every_text_is_given_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    before = len(tokenizer.prefix) if text else 0
    assert tokenizer.num_bytes(ids) == len(text.encode()) + before


@given(content=st.binary(max_size=12))
def test_streamed_bytes_are_the_decoded_bytes(content: bytes) -> None:
    tokenizer = ByteTokenizer()
    whole = tokenizer.decode(np.array(list(content), np.int64))
    assert "".join(text_pieces(tokenizer, list(content))) == whole
    assert whole == content.decode("utf-8", "replace")


@given(data=st.data())
def test_streamed_ids_are_the_decoded_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    assert "".join(text_pieces(tokenizer, ids)) == tokenizer.decode(np.array(ids, np.int64))
    before = tokenizer.encode(data.draw(TEXTS))
    both = np.concatenate((before, np.array(ids, np.int64)))
    pieces = "".join(text_pieces(tokenizer, ids, before.tolist()))
    assert tokenizer.decode(before) + pieces == tokenizer.decode(both) or not len(before)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xf0\x9f\x98" + "é ok".encode(), "\ufffdé ok"),
        ("a\ufffd😀b".encode(), "a\ufffd😀b"),
        (b"\x80" * 3 + "😀".encode(), "\ufffd" * 3 + "😀"),
    ],
)
def test_reported_streams(content: bytes, text: str) -> None:
    assert "".join(text_pieces(ByteTokenizer(), list(content))) == text


@pytest.mark.parametrize("prepend", [True, False])
@given(text=TEXTS)
def test_decoding_is_that_of_the_package(prepend: bool, text: str) -> None:
    theirs = metaspace(prepend=prepend)
    ids = theirs.encode(text).ids
    assert theirs.decode(ids) == text


def few_characters() -> tokenizers.Tokenizer:
    """The reported one: trained without the alphabet, it drops what it has not seen."""
    made = tokenizers.Tokenizer(models.BPE())
    made.decoder = decoders.ByteLevel()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, show_progress=False)
    made.train_from_iterator(["the quick brown fox"] * 9, trainer)
    return made


def with_normalizer(normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    made = byte_level()
    made.normalizer = normalizer
    return made


def with_prefix_space() -> tokenizers.Tokenizer:
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def with_greedy_token() -> tokenizers.Tokenizer:
    made = byte_level()
    made.add_tokens([tokenizers.AddedToken("<note>", lstrip=True, rstrip=True)])
    return made


def with_removed_blanks() -> tokenizers.Tokenizer:
    made = byte_level()
    split = pre_tokenizers.Split(" ", "removed")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
    return made


def without_byte_fallback() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE({MARK: 0, "a": 1, "?": 2}, [], unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    return made


LOSSY: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "few characters": few_characters,
    "lower case": lambda: with_normalizer(normalizers.Lowercase()),
    "NFC": lambda: with_normalizer(normalizers.NFC()),
    "NFKC": lambda: with_normalizer(normalizers.NFKC()),
    "strip": lambda: with_normalizer(normalizers.Strip()),
    "prefix space": with_prefix_space,
    "token that takes blanks": with_greedy_token,
    "removed blanks": with_removed_blanks,
    "unknown token": without_byte_fallback,
}


@pytest.mark.parametrize("kind", LOSSY)
def test_what_loses_text_is_refused_when_it_is_loaded(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must give back every text: .* comes back as") as caught:
        load(LOSSY[kind](), tmp_path)
    assert "\n" not in str(caught.value)


def test_space_mark_is_refused_where_it_stands_for_a_space(tmp_path: Path) -> None:
    tokenizer = load(metaspace(prepend=True), tmp_path)
    with pytest.raises(UserError, match=r"must give back every text.*stands for a space there"):
        tokenizer.encode(f"a{MARK}b")
    with pytest.raises(UserError, match=r"document 'T' cannot be tokenised.*stands for a space"):
        write_shards([plain_document(f"a{MARK}b", "T")], tokenizer, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    assert ByteTokenizer().decode(ByteTokenizer().encode(MARK)) == MARK


def test_dropout_and_endless_vocabularies_are_refused(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "t.json"))
    spec = json.loads((tmp_path / "t.json").read_text())
    for change, message in (
        ({"dropout": 0.1}, "equal ids for equal text"),
        ({"vocab": spec["model"]["vocab"] | {"x": 2**32 - 1}}, "must be below 4,194,304"),
    ):
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(spec | {"model": spec["model"] | change}))
        with pytest.raises(UserError, match=message):
            load_tokenizer(str(path))


def test_text_that_a_pattern_cannot_end_on_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one line, where the package prints those of its panic before."""
    made = byte_level()
    endless = pre_tokenizers.Split(tokenizers.Regex(r"(a+)+$"), "isolated")
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([endless, inner])
    with pytest.raises(UserError, match="must be able to encode any text") as caught:
        load(made, tmp_path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_others_write_meanwhile_comes_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    def call(fails: bool) -> int:
        os.write(2, b"a line\n")
        assert capfd.readouterr().err == ""
        if fails:
            raise ValueError("no panic")
        return 7

    assert without_panic(call, fails=False) == 7
    assert capfd.readouterr().err == "a line\n"
    with pytest.raises(ValueError, match="no panic"):
        without_panic(call, fails=True)
    assert capfd.readouterr().err == "a line\n"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"\xff", b"", b'{"model": {}}'])
def test_what_is_no_tokenizer_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UserError, match="must be 'bytes' or the path") as caught:
        load_tokenizer(str(tmp_path / "t.json"))
    assert "\n" not in str(caught.value)


def test_sentencepiece_that_normalises_is_refused_for_text(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")

    def train(name: str, **options: object) -> str:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["In the beginning God created the heaven."] * 20),
            model_prefix=str(tmp_path / name),
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"byte_fallback": True, **options},
        )
        return str(tmp_path / f"{name}.model")

    default = train("default")
    with pytest.raises(UserError, match="must give back every text"):
        load_tokenizer(default)
    accepted = load_tokenizer(default, normalising=True)
    assert accepted.decode(accepted.encode("  In   the \ufb01")) == "In the fi"
    plain = train("plain", normalization_rule_name="identity", remove_extra_whitespaces=False)
    exact = load_tokenizer(plain)
    assert exact.decode(exact.encode("  In   the \ufb01\n")) == "  In   the \ufb01\n"
    no_fallback = train("none", byte_fallback=False)
    with pytest.raises(UserError, match="must give back every text"):
        load_tokenizer(no_fallback, normalising=True).encode("é")
