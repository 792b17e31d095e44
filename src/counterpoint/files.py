"""Files and folders that appear complete or not at all, and JSON in files.

A reader never sees half of a file or folder that is written here, not even after a power cut. All
files get the permissions of the user's umask.
"""

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from counterpoint.errors import UserError

_NAME = re.compile(r"""[^.\s/\\:*?"<>|\x00-\x1f][^/\\:*?"<>|\x00-\x1f]*""")
_LONGEST_NAME = 100  # bytes; names of files also have a task, a seed and an ending
_ADVICE = "Correct the file, or name another."


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file that appears complete or not at all.

    The block gets the path of an empty file in the same folder and writes to it. If the block ends
    without an error, the content is flushed to the disk and replaces ``path``; after an error
    ``path`` is unchanged. The folder must exist.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            permissions = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield partial
        # Some writers, such as safetensors, replace it by their own file, readable by the owner
        # alone.
        partial.chmod(permissions)
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except OSError as error:
        if error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears complete or not at all.

    The block gets the path of an empty folder next to ``path`` and writes to it. If the block ends
    without an error, everything is flushed to the disk and the folder is renamed to ``path``, which
    must not exist or must be empty. Remains of an earlier process that was killed are deleted
    first, so only one process at a time may fill the same folder.

    Raises:
        OSError: The folder cannot be written, or ``path`` is not empty.
    """
    if path.is_dir() and any(path.iterdir()):
        raise OSError(errno.ENOTEMPTY, "it must be empty, and is not", str(path))
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        settle(partial)
        partial.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def settle(folder: Path) -> None:
    """Flush a folder and everything below it to the disk; files get the permissions of the umask.

    Raises:
        OSError: The disk is full or fails.
    """
    sample = folder / f".{uuid4().hex}"
    sample.touch()
    permissions = stat.S_IMODE(sample.stat().st_mode)
    sample.unlink()
    for entry in folder.rglob("*"):
        if entry.is_file():
            entry.chmod(permissions)
        flush(entry)
    flush(folder)


def shown(path: Path) -> str:
    """Return a path as text that can be written anywhere; invalid bytes become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def flush(entry: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a complete file of UTF-8 text; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a complete file; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write a complete file of JSON, indented for human readers; see `whole_file`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a complete file with one JSON object a line; see `whole_file`."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a complete safetensors file; see `whole_file`.

    Args:
        path: The file.
        tensors: Tensors by name, on any device; they may share memory and be views of others.
        metadata: Text for the file's header.

    Raises:
        OSError: The file cannot be written.
    """
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        storage = copy.untyped_storage()
        # safetensors refuses memory that two names share, or of which a tensor is only a part.
        if storage.data_ptr() in storages or storage.nbytes() != copy.nbytes:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        own[name] = copy
    with whole_file(path) as partial:
        try:
            save_file(own, partial, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path} must be writable: {error}.") from error


def check_name(field: str, name: str) -> None:
    """Check a name that the user gives to something, which becomes that of files and folders.

    Raises:
        UserError: It cannot be the name of a file on every system.
    """
    if not _NAME.fullmatch(name) or name[-1] in ". " or len(name.encode()) > _LONGEST_NAME:
        raise UserError(
            f"`{field}` must serve as the name of a file or folder: got {name!r}. Use letters, "
            f"digits, '-' and '_', at most {_LONGEST_NAME} bytes."
        )


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a config names, which must lie in the config's folder.

    Raises:
        UserError: The name leads out of the folder.
    """
    place = PurePath(name)
    if not name or place.is_absolute() or ".." in place.parts:
        raise UserError(
            f"A config must name files of its own folder, {folder}: got {name!r}. Put the file "
            "there, and name it."
        )
    return folder / place


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: The file is not UTF-8; the message names the place.
        OSError: The file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from error


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        UserError: The file is not UTF-8 or not JSON.
        OSError: The file cannot be read.
    """
    return parse_json(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file with one JSON object a line; blank lines are skipped.

    Yields:
        The place of the object for errors, such as "scripts.jsonl, line 3", and the object.

    Raises:
        UserError: A line is not UTF-8, not JSON or not an object.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from parse_json_lines(file, str(path))


def parse_json_lines(
    lines: Iterable[str | bytes], source: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of lines; see `read_json_lines`.

    Args:
        lines: One JSON object each, or blank.
        source: Name of their source, for errors.
    """
    for number, line in enumerate(lines, start=1):
        place = f"{source}, line {number}"
        try:
            # A byte order mark may stand before the first line.
            text = line if isinstance(line, str) else line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(place, error) from error
        if text.strip():
            value = _parse(text, place, "a JSON object")
            if not isinstance(value, dict):
                raise UserError(
                    f"{place} must be a JSON object: it is a {type(value).__name__}. {_ADVICE}"
                )
            yield place, value


def parse_json(text: str, place: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        UserError: The text is not JSON, is nested too deeply, or has a number that is too long.
    """
    return _parse(text, place, "JSON")


def _parse(text: str, place: str, what: str) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair is parsed, but cannot be written
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{place} must be {what}: it is nested too deeply. {_ADVICE}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{place} must be {what} of text: it has half of a surrogate pair (\\ud800 to "
            f"\\udfff), which is no letter. {_ADVICE}"
        ) from None
    except ValueError as error:
        raise UserError(f"{place} must be {what}: it is not JSON ({error}). {_ADVICE}") from error
    return value


def _not_utf8(place: str, error: UnicodeDecodeError) -> UserError:
    return UserError(
        f"Text must be UTF-8: {place} has the byte 0x{error.object[error.start]:02x} at offset "
        f"{error.start}. Convert the file to UTF-8, or leave it out."
    )


def json_value(value: Any) -> Any:
    """Return a value as JSON allows it: paths become texts, and NaN or infinity becomes null."""
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
