"""Tokenisers: text to ids and back, with the exact bytes that every id stands for.

A tokeniser restores every text that it encodes, or refuses the text, so that training loses
nothing. Decoding works the same way for all tokenisers, and gives the same text in one piece as id
by id: the bytes of the ids are concatenated and read as UTF-8, with U+FFFD for invalid bytes.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from counterpoint.data.text.panics import without_panic
from counterpoint.errors import UserError
from counterpoint.packages import optional_module

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""Spelling of a space in SentencePiece-style vocabularies; such a text cannot contain it."""

_MOST_IDS = 1 << 22  # vocabularies of published models have up to about a million ids
_SHOWN = 40  # characters of a text that an error shows


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids; two further ids mark the start and the end of a unit of text."""

    @property
    def identity(self) -> str:
        """Name that is equal for two tokenisers if, and only if, they give equal ids."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, including start and end."""

    @property
    def start_id(self) -> int:
        """Id before the first token of a unit."""

    @property
    def end_id(self) -> int:
        """Id after the last token of a unit."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """UTF-8 bytes of text that each id stands for; empty for special ids."""

    @property
    def prefix(self) -> bytes:
        """Bytes that `encode` puts before every text and `decode` removes: a space, or nothing."""

    @property
    def byte_lengths(self) -> Int[np.ndarray, " V"]:
        """Lengths of `token_bytes`."""

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text, without start and end.

        Raises:
            UserError: The ids would not restore the text.
        """

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the text of ids; special ids give nothing, broken UTF-8 becomes U+FFFD."""

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """Return the UTF-8 bytes of the text of ids; special ids count 0."""


class ModelIds(NamedTuple):
    """Ids of a published model, which has its own start and end.

    Attributes:
        start_id: Id before the first token of a text.
        end_id: Id after the last token.
        num_ids: Number of ids of the model; ids that its tokeniser does not know give no text.
    """

    start_id: int
    end_id: int
    num_ids: int


class _Vocabulary:
    """Decoding through a table of bytes; a start id and an end id follow the given ids.

    Args:
        token_bytes: Bytes of every id except those two.
        model: Ids of the model to which the tokeniser belongs; then no ids are added.
    """

    def __init__(self, token_bytes: Sequence[bytes], model: ModelIds | None = None) -> None:
        if model is None:
            count = len(token_bytes)
            model = ModelIds(start_id=count, end_id=count + 1, num_ids=count + 2)
        unknown = [b""] * (model.num_ids - len(token_bytes))
        self.token_bytes: Sequence[bytes] = (*token_bytes, *unknown)
        self.byte_lengths: Int[np.ndarray, " V"] = np.array(
            [len(content) for content in self.token_bytes], np.int64
        )
        self.prefix = b""
        self.vocab_size = len(self.token_bytes)
        self.start_id = model.start_id
        self.end_id = model.end_id

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the text of ids; special ids give nothing, broken UTF-8 becomes U+FFFD."""
        return self._content(ids).removeprefix(self.prefix).decode("utf-8", "replace")

    def num_bytes(self, ids: Int[np.ndarray, "..."]) -> int:
        """Return the UTF-8 bytes of the text of ids; special ids count 0."""
        return int(self.byte_lengths[ids].sum())

    def _content(self, ids: Int[np.ndarray, " n"]) -> bytes:
        return b"".join(map(self.token_bytes.__getitem__, ids.tolist()))


class ByteTokenizer(_Vocabulary):
    """Every UTF-8 byte is an id; 256 starts a unit and 257 ends it."""

    identity = "bytes"

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the UTF-8 bytes of a text."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int64)


class HuggingFaceTokenizer(_Vocabulary):
    """A `tokenizer.json` of the Hugging Face `tokenizers` package, with added start and end ids.

    Byte counts are exact for byte-level BPE (GPT-2, Llama 3 and others). With SentencePiece-style
    BPE (Llama 2, Gemma) they include the space that some put before a text. A text with U+2581 is
    refused there, because it stands for a space. A tokeniser that cannot restore every other text
    is refused. Special tokens that are spelled in a text are encoded as plain text.

    Args:
        path: The `tokenizer.json` file.
        model: Ids of the published model to which the tokeniser belongs; they are used instead of
            added ones. Such a tokeniser may lose rare characters; texts that contain them are
            refused.
        content: Content of the file if it lies inside another file, which ``path`` then names.

    Raises:
        UserError: The file is missing, broken or of a kind that loses text, or the model has fewer
            ids than its tokeniser.
    """

    def __init__(
        self, path: str | Path, model: ModelIds | None = None, content: bytes | None = None
    ) -> None:
        tokenizers = optional_module("tokenizers")
        self._path = str(path)
        try:
            content = Path(path).read_bytes() if content is None else content
            spec = json.loads(content)
            self._tokenizer = without_panic(tokenizers.Tokenizer.from_buffer, content)
        except (Exception, RecursionError) as error:  # `tokenizers` raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                "The tokenizer must be 'bytes' or the path of a Hugging Face tokenizer.json or a "
                f"SentencePiece .model: got {self._path!r} ({reason})."
            ) from error
        # Only an own pattern is known to panic. Holding stderr back takes about 50 us a text.
        self._may_panic = b'"Regex"' in content
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.identity = f"huggingface:{hashlib.sha256(content).hexdigest()}"
        _check_same_ids_again(spec, self._path)
        token_bytes = _huggingface_bytes(spec, self._tokenizer, self._path)
        if model is not None and model.num_ids < len(token_bytes):
            raise UserError(
                f"A model must have an id for every token of {self._path}: it has {model.num_ids}, "
                f"the tokenizer {len(token_bytes)}. Use the tokenizer that came with the model."
            )
        super().__init__(token_bytes, model)
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        self.prefix = _prefix(self._content(self._ids("a")))
        if model is None:
            _check_lossless(self, [f"a{token}b {token} c" for token in added])

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text, without start and end.

        Raises:
            UserError: The ids would not restore the text.
        """
        ids = self._ids(text)
        content = self._content(ids).removeprefix(self.prefix)
        _check_given_back(content, _utf8(text), self._path)
        return ids

    def _ids(self, text: str) -> Int[np.ndarray, " n"]:
        _utf8(text)
        encode = self._tokenizer.encode
        try:
            if self._may_panic:
                ids = without_panic(encode, text, add_special_tokens=False).ids
            else:
                ids = encode(text, add_special_tokens=False).ids
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(
                f"The tokenizer {self._path!r} must be able to encode any text: on "
                f"{_excerpt(text)} it ends in {' '.join(str(error).split())[:200]}. Use another, "
                "or 'bytes'."
            ) from None
        return np.array(ids, np.int64)


class SentencePieceTokenizer(_Vocabulary):
    """A SentencePiece .model file, as models of the Moshi family use; start and end ids are added.

    Most such files normalise text (repeated blanks become one, ligatures are resolved). That loses
    text, so they are refused by default.

    Args:
        path: The .model file.
        normalising: Whether to accept a file that normalises; then the normalised text is what is
            encoded, counted and restored.

    Raises:
        UserError: The package `sentencepiece` is missing, the file cannot be read, or it loses
            text.
    """

    def __init__(self, path: str | Path, normalising: bool = False) -> None:
        sentencepiece = optional_module("sentencepiece")
        self._path = str(path)
        try:
            content = Path(path).read_bytes()
            self._pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The tokenizer must be a SentencePiece .model file: got {self._path!r} "
                f"({' '.join(str(error).split())[:100]})."
            ) from error
        self.identity = f"sentencepiece:{hashlib.sha256(content).hexdigest()}"
        super().__init__([self._bytes_of(token) for token in range(self._pieces.get_piece_size())])
        self._normalising = normalising
        self.prefix = _prefix(self._content(self._ids("a")))
        if not normalising:
            _check_lossless(self, [])

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text, without start and end.

        Raises:
            UserError: The ids would not restore the text.
        """
        ids = self._ids(text)
        expected = _utf8(text)
        if self._normalising:
            normal = str(self._pieces.normalize(text)).replace(SPACE_MARK, " ")
            expected = _utf8(normal).removeprefix(self.prefix)
        _check_given_back(self._content(ids).removeprefix(self.prefix), expected, self._path)
        return ids

    def _ids(self, text: str) -> Int[np.ndarray, " n"]:
        _utf8(text)
        return np.array(self._pieces.encode(text), np.int64)

    def _bytes_of(self, token: int) -> bytes:
        pieces = self._pieces
        if pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_unused(token):
            return b""
        piece = str(pieces.id_to_piece(token))
        if pieces.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()


def load_tokenizer(name: str, *, normalising: bool = False) -> Tokenizer:
    """Load the tokeniser ``"bytes"``, a `tokenizer.json` or a SentencePiece .model file.

    Args:
        name: ``"bytes"``, or the path of the file.
        normalising: Whether a SentencePiece file that normalises text is accepted.

    Raises:
        UserError: There is no such file, it cannot be used, or it loses text.
    """
    if name.endswith(".model"):
        return SentencePieceTokenizer(name, normalising)
    return ByteTokenizer() if name == "bytes" else HuggingFaceTokenizer(name)


def text_pieces(
    tokenizer: Tokenizer, ids: Iterable[int], before: Sequence[int] = ()
) -> Iterator[str]:
    """Yield the text of ids as they come; a character waits for its last byte.

    The pieces, joined after ``decode(before)``, equal ``decode`` of all the ids.

    Args:
        tokenizer: Tokeniser that made the ids.
        ids: Ids to decode.
        before: Ids of the text before them, which must be complete.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at_start = not any(tokenizer.token_bytes[one] for one in before)
    for one in ids:
        content = tokenizer.token_bytes[one]
        if at_start and content:
            content = content.removeprefix(tokenizer.prefix)
            at_start = False
        if piece := decoder.decode(content):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


# --------------------------------------------------------------- what a tokeniser must hold


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"Text must be valid Unicode: it has a lone surrogate at character {error.start}. "
            "Repair it, or leave it out."
        ) from error


def _prefix(content: bytes) -> bytes:
    """Return the bytes before the text "a" in the bytes of its ids."""
    return b" " if content == b" a" else b""


def _check_given_back(content: bytes, text: bytes, path: str) -> None:
    """Refuse a text if the bytes of its ids, without the prefix, differ from it."""
    if content == text:
        return
    mark = SPACE_MARK.encode()
    why = f" ({SPACE_MARK!r} stands for a space there)" if mark in text else ""
    raise UserError(
        f"The tokenizer {path!r} must give back every text: {_difference(text, content)}{why}. "
        "Change the text, or use a tokenizer that keeps every byte, such as 'bytes'."
    )


def _check_lossless(tokenizer: Tokenizer, more: Sequence[str]) -> None:
    """Refuse a tokeniser that changes or loses a text of any kind."""
    for text in (*_texts_of_all_kinds(), *more):
        try:
            tokenizer.encode(text)
        except UserError as error:
            raise UserError(
                f"{error} Look for a normaliser, an unknown token or a missing character in it."
            ) from None


def _texts_of_all_kinds() -> Iterator[str]:
    """Yield texts that reveal the known ways of losing text."""
    yield ""
    yield "a "
    yield " a"
    yield "  two  blanks\t\ttabs \n\n lines\r\nof \r all kinds\x0b\x0c\x85\u2028.  "
    yield "The DOG, the dog's 'best' friend, isn't \u201cHERE\u201d . Is it ? No ! n't 's"
    yield "".join(map(chr, range(128)))
    # All continuation bytes, then all first bytes of two-, three- and four-byte characters.
    yield "".join(map(chr, range(0x80, 0xC0)))
    yield "".join(map(chr, range(0x80, 0x800, 0x40)))
    yield "".join(map(chr, (*range(0x800, 0xD800, 0x400), *range(0xE000, 0x10000, 0x400))))
    yield "".join(map(chr, (*range(0x10000, 0x110000, 0x8000), 0x10FFFF)))
    # Texts that normal forms, lower case, or stripping accents or invisible characters change.
    yield "e\u0301 \u00e9 \u1e9b\u0323 \u212b \ufb01 \u2460 \uff21 \u2126 \u00bd"
    yield "\u0130 \u00df \u03a3\u03c2 \ud55c \u4e00\u4e8c\u0e01\u0e33 \U0001f469\u200d\U0001f52c"
    yield "\ufeffa\u200b\u200d\u00ad\u00a0\u3000\ufffd"
    yield "1234567890 3.14 1,000 x2 _a_ #hash @at http://a.b/c?d=e <s></s> [UNK] <unk> </w> ##a @@"
    for character in "a0 .\n-\u00e9":  # to reach the end of a pattern or of the longest word
        yield character * 300 + "!"


def _difference(expected: bytes, content: bytes) -> str:
    """Return the first place at which a text is not restored."""
    ends = zip(expected, content, strict=False)
    first = next((i for i, (a, b) in enumerate(ends) if a != b), min(len(expected), len(content)))
    start = max(first - _SHOWN // 2, 0)
    was, came = (
        part[start : start + _SHOWN].decode("utf-8", "replace") for part in (expected, content)
    )
    return f"{was!r} comes back as {came!r}"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _check_same_ids_again(spec: Any, path: str) -> None:
    dropout = (spec.get("model") or {}).get("dropout")
    if dropout:
        raise UserError(
            f"The tokenizer must give equal ids for equal text: {path!r} has a dropout of "
            f"{dropout}. Set `dropout` to null in it."
        )


def _huggingface_bytes(spec: Any, tokenizer: Any, path: str) -> list[bytes]:
    """Return the bytes of each id."""
    kinds = set(_component_types([spec.get("pre_tokenizer"), spec.get("decoder")]))
    is_byte_level = "ByteLevel" in kinds
    if not is_byte_level and not kinds & {"Metaspace", "ByteFallback"}:
        raise UserError(
            f"The tokenizer must keep every byte of a text: {path!r} is not a byte-level or "
            f"SentencePiece-style tokenizer (it has {sorted(kinds)}). Use one of these, or 'bytes'."
        )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if (most := max(vocabulary.values(), default=0)) >= _MOST_IDS:
        raise UserError(
            f"The ids of a tokenizer must be below {_MOST_IDS:,}: {path!r} has the id {most:,}. "
            "Number its tokens one after the other."
        )
    added = tokenizer.get_added_tokens_decoder()
    byte_of = _bytes_of_characters()
    found = [b""] * (most + 1)
    for token, token_id in vocabulary.items():
        if token_id in added:
            found[token_id] = b"" if added[token_id].special else token.encode()
        elif is_byte_level:
            spelled = [byte_of.get(character) for character in token]
            plain = [value for value in spelled if value is not None]
            found[token_id] = bytes(plain) if len(plain) == len(token) else token.encode()
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[token_id] = bytes([int(token[3:5], 16)])
        else:
            found[token_id] = token.replace(SPACE_MARK, " ").encode()
    return found


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary spells.

    Source: GPT-2. Printable characters of Latin-1 spell themselves; the characters from U+0100 on
    spell the other bytes in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    spelled = {chr(value): value for value in printable}
    return spelled | {chr(0x100 + place): value for place, value in enumerate(others)}


def _component_types(part: Any) -> Iterator[str]:
    """Yield every ``type`` named anywhere in a part of a tokenizer.json."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        part = list(part.values())
    if isinstance(part, list):
        for child in part:
            yield from _component_types(child)
