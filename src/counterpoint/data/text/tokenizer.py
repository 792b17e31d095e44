"""Text to ids and back, with the exact number of bytes that ids stand for."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids; two further ids mark the start and the end of a unit of text."""

    @property
    def identity(self) -> str:
        """Equal exactly for tokenisers that give equal ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, start and end included."""
        ...

    @property
    def start_id(self) -> int:
        """Id before the first token of a unit."""
        ...

    @property
    def end_id(self) -> int:
        """Id after the last token of a unit."""
        ...

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        """UTF-8 bytes of text that each id stands for; 0 for special ids."""
        ...

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Ids of a text, without start and end."""
        ...

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Text of ids; special ids give nothing, broken UTF-8 gives U+FFFD."""
        ...

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """UTF-8 bytes of the text that the ids stand for; special ids count 0."""
        ...


class ByteTokenizer:
    """Every UTF-8 byte is its own id; 256 starts a unit and 257 ends it."""

    identity = "bytes"
    vocab_size = 258
    start_id = 256
    end_id = 257

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        """1 for every byte, 0 for start and end."""
        return (np.arange(self.vocab_size) < 256).astype(np.int64)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """UTF-8 bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Text of the bytes; special ids give nothing, broken UTF-8 gives U+FFFD."""
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """Number of ids that are bytes."""
        return int((ids < 256).sum())


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` package, with start and end ids added.

    Byte counts are exact for byte-level BPE (GPT-2, Llama 3, Qwen ...). With SentencePiece-style
    BPE (Llama 2, Mistral) they include the space that such a tokeniser puts before a text. Others
    lose text and are refused. Special tokens that a text spells out are encoded as plain text.

    Args:
        path: The `tokenizer.json` file.

    Raises:
        ValueError: The file is missing, broken or of a kind that loses text.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                f"Reading {path} needs the package `tokenizers`: pip install 'counterpoint[train]'."
            ) from error
        try:
            content = Path(path).read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # `tokenizers` raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"The tokenizer must be 'bytes' or the path of a Hugging Face tokenizer.json: "
                f"got {str(path)!r} ({reason})."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.identity = f"huggingface:{hashlib.sha256(content).hexdigest()}"
        self._byte_lengths = _token_byte_lengths(json.loads(content), self._tokenizer, path)
        self.vocab_size = len(self._byte_lengths)
        self.start_id = self.vocab_size - 2
        self.end_id = self.vocab_size - 1

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        """UTF-8 bytes of each token; 0 for special ids."""
        return self._byte_lengths

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Ids of a text, without start and end."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Text of ids; special ids give nothing, broken UTF-8 gives U+FFFD."""
        return self._tokenizer.decode(ids[ids < self.start_id].tolist(), skip_special_tokens=True)

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """UTF-8 bytes of the text that the ids stand for; special ids count 0."""
        return int(self._byte_lengths[ids].sum())


class SentencePieceTokenizer:
    """A SentencePiece .model file, as models of the Moshi family have; start and end ids are added.

    Such a file normalises text (blanks in a row become one): byte counts are those of what is left.

    Args:
        path: The .model file.

    Raises:
        ValueError: The package `sentencepiece` is missing, or the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise ValueError(
                f"Reading {path} needs the package `sentencepiece`: "
                "pip install 'counterpoint[speech]'."
            ) from error
        try:
            content = Path(path).read_bytes()
            self._pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"The tokenizer must be a SentencePiece .model file: got {str(path)!r} "
                f"({' '.join(str(error).split())[:100]})."
            ) from error
        self.identity = f"sentencepiece:{hashlib.sha256(content).hexdigest()}"
        self.start_id = int(self._pieces.get_piece_size())
        self.end_id = self.start_id + 1
        self.vocab_size = self.start_id + 2
        lengths = [self._bytes_of(token) for token in range(self.start_id)]
        self._byte_lengths = np.array([*lengths, 0, 0], np.int64)

    def _bytes_of(self, token: int) -> int:
        pieces = self._pieces
        if pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_unused(token):
            return 0
        if pieces.is_byte(token):
            return 1
        piece = pieces.id_to_piece(token).replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        return len(piece.encode("utf-8"))

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        """UTF-8 bytes of each piece; 0 for special ids."""
        return self._byte_lengths

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Ids of a text, without start and end."""
        return np.array(self._pieces.encode(text), np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Text of the pieces; special ids give nothing."""
        return str(self._pieces.decode(ids[ids < self.start_id].tolist()))

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """UTF-8 bytes of the text that the ids stand for; special ids count 0."""
        return int(self._byte_lengths[ids].sum())


def load_tokenizer(name: str) -> Tokenizer:
    """The tokeniser ``"bytes"``, or the one of a `tokenizer.json` or SentencePiece .model file.

    Raises:
        ValueError: There is no such file, or it cannot be used.
    """
    if name.endswith(".model"):
        return SentencePieceTokenizer(name)
    return ByteTokenizer() if name == "bytes" else HuggingFaceTokenizer(name)


def _token_byte_lengths(spec: Any, tokenizer: Any, path: str | Path) -> Int[np.ndarray, " V"]:
    """Table of bytes by id, with two more entries for start and end."""
    kinds = set(_component_types([spec.get("pre_tokenizer"), spec.get("decoder")]))
    is_byte_level = "ByteLevel" in kinds
    if not is_byte_level and not kinds & {"Metaspace", "ByteFallback"}:
        raise ValueError(
            f"The tokenizer must keep every byte of a text: {str(path)!r} is not a byte-level or "
            f"SentencePiece-style tokenizer (it has {sorted(kinds)}). Use such a one, or 'bytes'."
        )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    lengths = np.zeros(max(vocabulary.values()) + 3, np.int64)
    for token, token_id in vocabulary.items():
        if token_id in added:
            lengths[token_id] = 0 if added[token_id].special else len(token.encode("utf-8"))
        elif is_byte_level:
            lengths[token_id] = len(token)  # a byte-level vocabulary spells one byte a character
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            lengths[token_id] = 1
        else:
            lengths[token_id] = len(
                token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode("utf-8")
            )
    return lengths


def _component_types(part: Any) -> Iterator[str]:
    """Every ``type`` named anywhere in a part of a tokenizer.json."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        part = list(part.values())
    if isinstance(part, list):
        for child in part:
            yield from _component_types(child)
