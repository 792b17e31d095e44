"""Words as text ids, on which Moshi's text leaves those of padding free."""

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
    """Turns single words into text ids that leave those of padding free."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word."""
        ...

    def starts_word(self, token: int) -> bool:
        """Whether an id begins a word."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


class ByteWords:
    """A word is a blank and its UTF-8 bytes; control characters, padding among them, are free."""

    vocab_size = 256

    def encode_word(self, word: str) -> list[int]:
        """A blank, and the bytes of a word without control characters; nothing of no word."""
        letters = [byte for byte in word.encode() if byte >= ord(" ")]
        return [ord(" "), *letters] if bytes(letters).strip() else []

    def starts_word(self, token: int) -> bool:
        """Whether it is a blank."""
        return token == ord(" ")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of bytes; broken UTF-8 gives U+FFFD."""
        return bytes(token for token in ids if token >= ord(" ")).decode("utf-8", "replace")


class SentencePieceWords:
    """The published models' text: a SentencePiece .model file.

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
        """Pieces of the file."""
        return int(self._pieces.get_piece_size())

    def encode_word(self, word: str) -> list[int]:
        """Pieces of one word; the first begins with U+2581.

        Letters that the file does not know are left out: the id of "unknown" says nothing, and in
        Moshi's text it is that of the end of padding.
        """
        unknown = self._pieces.unk_id()
        known = [token for token in self._pieces.encode(word) if token != unknown]
        return known if self._pieces.decode(known).strip() else []

    def starts_word(self, token: int) -> bool:
        """Whether a piece begins with U+2581."""
        return str(self._pieces.id_to_piece(token)).startswith("\N{LOWER ONE EIGHTH BLOCK}")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of pieces."""
        return str(self._pieces.decode(list(ids)))


def open_tokenizer(name: str) -> WordTokenizer:
    """The tokeniser "bytes", or that of a SentencePiece .model file.

    Raises:
        UserError: It cannot be used.
    """
    return ByteWords() if name == "bytes" else SentencePieceWords(name)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Learn pieces by byte-pair encoding and write them as a .model file.

    Id 0 is the unknown piece and the end of padding, 3 is padding, as in Moshi's own tokeniser.

    Args:
        texts: What it learns from.
        path: The file to write; ends in .model.
        vocab_size: Most pieces; fewer where the texts have no more.

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
