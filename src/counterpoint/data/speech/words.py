"""Tokenisers of single words, whose text ids leave Moshi's padding ids free."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from counterpoint.data.speech.monologue import EPAD_ID, PAD_ID
from counterpoint.errors import UserError
from counterpoint.files import write_bytes
from counterpoint.packages import optional_module


@runtime_checkable
class WordTokenizer(Protocol):
    """Turns single words into text ids, without using the ids of padding."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    def encode_word(self, word: str) -> list[int]:
        """Return the ids of one word."""

    def starts_word(self, token: int) -> bool:
        """Return whether an id begins a word."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""


class ByteWords:
    """A word becomes a blank and its UTF-8 bytes; control characters (padding) are unused."""

    vocab_size = 256

    def encode_word(self, word: str) -> list[int]:
        """Return a blank and the bytes of a word without control characters; none for no word."""
        letters = [byte for byte in word.encode() if byte >= ord(" ")]
        return [ord(" "), *letters] if bytes(letters).strip() else []

    def starts_word(self, token: int) -> bool:
        """Return whether the id is that of a blank."""
        return token == ord(" ")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of bytes; broken UTF-8 becomes U+FFFD."""
        return bytes(token for token in ids if token >= ord(" ")).decode("utf-8", "replace")


class SentencePieceWords:
    """The tokeniser of the published models: a SentencePiece .model file.

    Raises:
        UserError: The package `sentencepiece` is missing, or the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        sentencepiece = optional_module("sentencepiece")
        try:
            self._pieces: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError(
                f"The tokenizer must be 'bytes' or a SentencePiece .model file: got {str(path)!r} "
                f"({' '.join(str(error).split())[:100]})."
            ) from error

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the file."""
        return int(self._pieces.get_piece_size())

    def encode_word(self, word: str) -> list[int]:
        """Return the pieces of one word; the first begins with U+2581.

        Letters that the file does not know are left out: the id of "unknown" carries no text, and
        in Moshi's text it is the id of the end of padding.
        """
        unknown = self._pieces.unk_id()
        known = [token for token in self._pieces.encode(word) if token != unknown]
        return known if self._pieces.decode(known).strip() else []

    def starts_word(self, token: int) -> bool:
        """Return whether a piece begins with U+2581."""
        return str(self._pieces.id_to_piece(token)).startswith("\N{LOWER ONE EIGHTH BLOCK}")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of pieces."""
        return str(self._pieces.decode(list(ids)))


def open_tokenizer(name: str) -> WordTokenizer:
    """Return the tokeniser "bytes", or that of a SentencePiece .model file.

    Raises:
        UserError: It cannot be used.
    """
    return ByteWords() if name == "bytes" else SentencePieceWords(name)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Learn pieces by byte-pair encoding, and write them as a .model file.

    As in Moshi's own tokeniser, id 0 is the unknown piece and the end of padding, and 3 is padding.

    Args:
        texts: The texts to learn from.
        path: The file to write; its name ends in .model.
        vocab_size: Largest number of pieces; there are fewer if the texts have fewer.

    Raises:
        UserError: The package `sentencepiece` is missing, or there is no text.
    """
    model = io.BytesIO()
    try:
        optional_module("sentencepiece").SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type="bpe",
            character_coverage=1.0,
            unk_id=EPAD_ID,
            bos_id=1,
            eos_id=2,
            pad_id=PAD_ID,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"A tokenizer must have text to learn from: got none that gives {vocab_size} pieces "
            f"({' '.join(str(error).split())[:100]})."
        ) from error
    write_bytes(path, model.getvalue())
