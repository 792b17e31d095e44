"""A tokeniser of one's own: whole words where the text has few, ids of padding free."""

from pathlib import Path

import pytest

from counterpoint.data.speech.monologue import EPAD_ID, PAD_ID
from counterpoint.data.speech.words import SentencePieceWords, train_tokenizer

pytest.importorskip("sentencepiece")

TEXTS = ["you said seven and i wrote the number down", "all right the heater is on"] * 50


def test_frequent_words_are_one_piece_and_padding_is_free(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, tmp_path / "words.model", 400)
    words = SentencePieceWords(tmp_path / "words.model")
    assert words.vocab_size <= 400
    for word in {word for text in TEXTS for word in text.split()}:
        (token,) = words.encode_word(word)
        assert token not in (EPAD_ID, PAD_ID)
        assert words.starts_word(token)
        assert words.decode([token]) == word
    assert [path.name for path in tmp_path.iterdir()] == ["words.model"]


def test_equal_texts_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(TEXTS, tmp_path / f"{name}.model", 400)
    first, second = (SentencePieceWords(tmp_path / f"{name}.model") for name in "ab")
    assert first.vocab_size == second.vocab_size
    assert first.encode_word("heating") == second.encode_word("heating")


def test_without_text_there_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have text to learn from"):
        train_tokenizer([], tmp_path / "words.model", 400)
    assert list(tmp_path.iterdir()) == []
