"""Token shards: a tokenised corpus on disk, written as a stream and read through memory maps.

A folder of shards has these files:

- ``manifest.json``: format, version, tokeniser, counts, SHA-256 of each file and of itself. It is
  written last.
- ``tokens-00000.bin`` and so on: the ids of all units one after another, each unit as
  ``start_id, tokens, end_id``; little-endian uint16 or uint32, with ``shard_tokens`` ids in a file.
- ``units.bin``: for each unit, as int64: where its ids stop, its bytes, where its names stop.
- ``names.bin``: for each unit, the UTF-8 JSON list of its title and heading.
- ``byte_lengths.bin``: for each id, as int64: the bytes of text that it stands for.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, UInt

from counterpoint.data.listed import ReadSequence
from counterpoint.data.text.tokenizer import Tokenizer
from counterpoint.digests import file_digest, is_intact, json_digest, sealed
from counterpoint.errors import UserError
from counterpoint.files import flush, settle

FORMAT = "counterpoint-token-shards"
VERSION = 2
SHARD_TOKENS = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Unit:
    """One unit of a corpus.

    Attributes:
        title: Title of its document.
        heading: Heading of its section; empty for a whole document.
        ids: ``start_id, tokens, end_id``.
        num_bytes: UTF-8 bytes of its text.
    """

    title: str
    heading: str
    ids: Int[np.ndarray, " n"]
    num_bytes: int


class ShardWriter:
    """Writes a folder of shards; it appears complete when the ``with`` block ends, or not at all.

    Args:
        folder: The new folder. Only one process may write to it at a time.
        tokenizer: Turns text into ids.
        shard_tokens: Number of ids in one file.

    Raises:
        UserError: The folder exists, or nothing was added.
        OSError: The disk is full or cannot be written.
    """

    def __init__(
        self, folder: str | Path, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists():
            raise UserError(f"Shards must go into a new folder: {str(folder)!r} exists.")
        if shard_tokens < 1:
            raise UserError(f"`shard_tokens` must be >= 1, got {shard_tokens}.")
        self.num_units = self.num_tokens = self.num_bytes = 0
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._names_stop = 0
        self._files = dict[str, BinaryIO]()
        self._digests = dict[str, str]()

    def __enter__(self) -> "ShardWriter":
        shutil.rmtree(self._partial, ignore_errors=True)  # remains of a writer that was killed
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def add(self, text: str, title: str = "", heading: str = "") -> None:
        """Append a unit.

        Args:
            text: Text of the unit.
            title: Title of the document to which it belongs.
            heading: Heading of its section; empty if it has none.

        Raises:
            UserError: The text cannot be encoded as UTF-8, or the tokeniser cannot restore it.
        """
        try:
            num_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise UserError(
                f"Text must be valid Unicode: the document {title!r} has a lone surrogate at "
                f"character {error.start}. Repair it or take it out of the corpus."
            ) from error
        try:
            ids = self._ids(text)
        except UserError as error:
            raise UserError(f"The document {title!r} cannot be tokenised. {error}") from error
        names = json.dumps([title, heading]).encode()
        try:
            self._write_tokens(ids)
            self._names_stop += len(names)
            row = np.array([self.num_tokens, num_bytes, self._names_stop], "<i8")
            self._file("units.bin").write(row.tobytes())
            self._file("names.bin").write(names)
        except OSError as error:
            raise self._failure(error) from error
        self.num_units += 1
        self.num_bytes += num_bytes

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._commit()
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            for file in self._files.values():
                with suppress(OSError):  # closing flushes, which fails again on a full disk
                    file.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _ids(self, text: str) -> UInt[np.ndarray, " n"]:
        tokens = self._tokenizer.encode(text)
        ids = np.empty(len(tokens) + 2, self._dtype)
        ids[0] = self._tokenizer.start_id
        ids[1:-1] = tokens
        ids[-1] = self._tokenizer.end_id
        return ids

    def _write_tokens(self, ids: UInt[np.ndarray, " n"]) -> None:
        while len(ids):
            number, used = divmod(self.num_tokens, self._shard_tokens)
            part, ids = np.split(ids, [self._shard_tokens - used])
            self._file(f"tokens-{number:05d}.bin").write(part.tobytes())
            self.num_tokens += len(part)
            if used + len(part) == self._shard_tokens:
                self._close(f"tokens-{number:05d}.bin")

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self._partial / name).open("wb", buffering=1 << 20)
        return self._files[name]

    def _close(self, name: str) -> None:
        self._files.pop(name).close()
        self._digests[name] = file_digest(self._partial / name)

    def _commit(self) -> None:
        if not self.num_units:
            raise UserError(
                "The corpus is empty: it must hold at least one document with text and holds none."
            )
        tokenizer = self._tokenizer
        self._file("byte_lengths.bin").write(tokenizer.byte_lengths.astype("<i8").tobytes())
        for name in tuple(self._files):
            self._close(name)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "start_id": tokenizer.start_id,
            "end_id": tokenizer.end_id,
            "dtype": self._dtype.str,
            "shard_tokens": self._shard_tokens,
            "num_tokens": self.num_tokens,
            "num_units": self.num_units,
            "num_bytes": self.num_bytes,
            "names_size": self._names_stop,
            "files": dict(sorted(self._digests.items())),
        }
        content = json.dumps(sealed(manifest), indent=1)
        (self._partial / "manifest.json").write_text(content, encoding="utf-8")
        settle(self._partial)
        self._partial.rename(self.folder)
        flush(self.folder.parent)

    def _failure(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"Writing the corpus to {str(self.folder)!r} stopped after {self.num_tokens} tokens: "
            f"{error.strerror}. Nothing is kept; free space or choose another folder",
        )


class TokenShards(ReadSequence[Unit]):
    """A folder of shards, as a sequence of units. Files are mapped into memory.

    Args:
        folder: A folder that `ShardWriter` wrote.

    Attributes:
        token_stops: Position after the last id of each unit, in the sequence of all ids.
        unit_bytes: UTF-8 bytes of the text of each unit.
        byte_lengths: UTF-8 bytes of text that each id stands for.

    Raises:
        UserError: The folder holds no shards of this version, or they are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        try:
            self.tokenizer_identity: str = manifest["tokenizer"]
            self.vocab_size: int = manifest["vocab_size"]
            self.start_id: int = manifest["start_id"]
            self.end_id: int = manifest["end_id"]
            self.num_tokens: int = manifest["num_tokens"]
            self.num_bytes: int = manifest["num_bytes"]
            self.shard_tokens: int = manifest["shard_tokens"]
            num_units = manifest["num_units"]
            names_size = manifest["names_size"]
            self._files: dict[str, str] = manifest["files"]
            dtype = np.dtype(manifest["dtype"])
        except (KeyError, TypeError) as error:
            raise _damaged(self.folder, f"its manifest.json lacks {error}") from error
        if not is_intact(manifest):
            raise _damaged(self.folder, "its manifest.json is not what was written")
        units = self._map("units.bin", np.dtype("<i8"), 3 * num_units).reshape(num_units, 3)
        self.token_stops, self.unit_bytes, self._names_stops = units.T
        self.byte_lengths = self._map("byte_lengths.bin", np.dtype("<i8"), self.vocab_size)
        self._names = self._map("names.bin", np.dtype("u1"), names_size)
        starts = range(0, self.num_tokens, self.shard_tokens)
        self._shards = [
            self._map(
                f"tokens-{number:05d}.bin", dtype, min(self.shard_tokens, self.num_tokens - start)
            )
            for number, start in enumerate(starts)
        ]
        if self.token_stops[-1] != self.num_tokens or self._names_stops[-1] != names_size:
            raise _damaged(self.folder, "units.bin does not match manifest.json")
        if self.tokens(np.array([0, self.num_tokens - 1])).tolist() != [self.start_id, self.end_id]:
            raise _damaged(self.folder, "the ids do not begin and end as units do")

    def __len__(self) -> int:
        return len(self.token_stops)

    @property
    def digest(self) -> str:
        """Digest of the training content of the units: ids, their bounds, titles and headings."""
        learned = {name: own for name, own in self._files.items() if name != "byte_lengths.bin"}
        return json_digest([self.tokenizer_identity, self.shard_tokens, learned])

    def verify(self) -> None:
        """Check that every byte is as it was written; all files are read once.

        Raises:
            UserError: A file was changed.
        """
        for name, written in self._files.items():
            if file_digest(self.folder / name) != written:
                raise _damaged(self.folder, f"{name} is not what was written")

    def read(self, index: int) -> Unit:
        """Return unit ``index``."""
        start = int(self.token_stops[index - 1]) if index else 0
        names_start = int(self._names_stops[index - 1]) if index else 0
        title, heading = json.loads(bytes(self._names[names_start : self._names_stops[index]]))
        return Unit(
            title=title,
            heading=heading,
            ids=self.tokens(np.arange(start, int(self.token_stops[index]))),
            num_bytes=int(self.unit_bytes[index]),
        )

    def tokens(self, positions: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Return the ids at positions in the sequence of all ids."""
        if len(self._shards) == 1:
            return self._shards[0].view(np.ndarray)[positions].astype(np.int64)
        shards, offsets = np.divmod(positions, self.shard_tokens)
        ids = np.empty(positions.shape, np.int64)
        for shard in np.unique(shards):
            here = shards == shard
            ids[here] = self._shards[shard].view(np.ndarray)[offsets[here]]
        return ids

    def _map(self, name: str, dtype: np.dtype[Any], size: int) -> np.memmap[Any, Any]:
        """Map a file as an array; its size must be exact."""
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size * dtype.itemsize:
            came = "is missing" if found is None else f"has {found} bytes"
            raise _damaged(
                self.folder, f"{name} must have {size * dtype.itemsize} bytes and {came}"
            )
        return np.memmap(path, dtype, "r", shape=(size,))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{str(folder)!r} must hold token shards: it has no manifest.json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, "its manifest.json is not JSON") from error
    found = (
        (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    )
    if found != (FORMAT, VERSION):
        raise UserError(
            f"{str(folder)!r} must hold token shards of format {(FORMAT, VERSION)}: got {found}. "
            "Write them again with this version."
        )
    return dict(manifest)


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"The token shards in {str(folder)!r} are damaged: {what}. "
        "Delete the folder and make it again."
    )
