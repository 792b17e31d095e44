"""Weights in one safetensors file, or in several with an index, as Hugging Face publishes them.

The index is `model.safetensors.index.json`: its `weight_map` gives the file of every tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.files import inside, read_json, write_json, write_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ENDINGS = (".safetensors", ".sft", ".sfts")
_MOST_FILES = 1000


class OpenTensors:
    """Tensors of open files by name; only the headers have been read.

    The methods are those of `safetensors.safe_open`.
    """

    def __init__(self, files: Sequence[Any]) -> None:
        pairs = ((name, file) for file in files for name in file.keys())  # noqa: SIM118 (no dict)
        self._files = dict(pairs)

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._files)

    def get_slice(self, name: str) -> Any:
        """Return a tensor of which parts, its shape and its type can be read."""
        return self._files[name].get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights: those of its index, or its only file.

    Raises:
        UserError: The index is not one, or names files of other folders.
    """
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    return shards(folder / INDEX)


def shards(index: Path) -> list[Path]:
    """Return the files that an index names.

    Raises:
        UserError: It is no index, or names files of other folders.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(
            f"{index} must hold `weight_map`, the file of every tensor: it does not. "
            "Fetch it again."
        )
    files = sorted(set(names.values()))
    if not 1 <= len(files) <= _MOST_FILES:
        raise UserError(
            f"{index} must name 1 to {_MOST_FILES} files: it names {len(files)}. Fetch it again."
        )
    return [inside(index.parent, name) for name in files]


@contextmanager
def open_tensors(path: Path) -> Iterator[OpenTensors]:
    """Open a file of tensors, or all files of an index.

    Raises:
        UserError: A file is missing or damaged, is no safetensors file, or a tensor is in two.
    """
    with ExitStack() as stack:
        files = shards(path) if path.suffix == ".json" else [path]
        opened = [stack.enter_context(_opened(file)) for file in files]
        names = [name for file in opened for name in file.keys()]  # noqa: SIM118 (no dict)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"A tensor must be in one file of {path}: {twice} is in two.")
        yield OpenTensors(opened)


def _opened(path: Path) -> Any:
    if path.suffix not in _ENDINGS:
        raise UserError(
            f"Weights must be a safetensors file: got {path}. Pickles can run code and are not "
            "read: convert the file if you trust it."
        )
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"{path} must be a complete safetensors file: {problem}. Fetch it again."
        ) from None


def write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int | None) -> None:
    """Write tensors into one file, or into several files with an index.

    Args:
        folder: An existing folder.
        tensors: Tensors by name.
        shard_bytes: Largest size of a file, unless a single tensor is larger; ``None`` writes one
            file.

    Raises:
        OSError: A file cannot be written.
    """
    parts = _parts(tensors, shard_bytes)
    if len(parts) == 1:
        write_tensors(folder / WEIGHTS, parts[0], {"format": "pt"})
        return
    stem = WEIGHTS.removesuffix(".safetensors")
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        write_tensors(folder / name, part, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _parts(tensors: Mapping[str, Tensor], shard_bytes: int | None) -> list[dict[str, Tensor]]:
    """Return tensors in their order, divided before a part would have too many bytes."""
    parts: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if room is not None and shard_bytes is not None:
            if parts[-1] and tensor.nbytes > room:
                parts.append({})
                room = shard_bytes
            room -= tensor.nbytes
        parts[-1][name] = tensor
    return parts
