"""Files of plain tensors from unknown sources: nothing in them can run code or fill the memory.

A `.pt` file is a zip of a pickle and of the memory of its tensors. It is read with only tensors
allowed, and only if it holds as many bytes as its tensors declare.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.errors import UserError

_MOST_ENTRIES = 1000
_END_OF_ZIP = b"PK\x05\x06"
_LONGEST_TAIL = 22 + (1 << 16)  # the end of a zip, and the longest comment after it
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)


def read_plain_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` or a `.pt` file, by name, on the CPU.

    Raises:
        UserError: It cannot be read, or holds anything but plain tensors that fill their memory.
    """
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            _check_zip(path)
            held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as problem:
        raise UserError(f"{path} must be readable: {problem}. Check the path.") from None
    except UserError:
        raise
    except Exception as problem:  # a hostile file can make a reader fail in any way
        raise UserError(
            f"{path} must be a complete file of plain tensors: reading it failed with "
            f"{type(problem).__name__}. Other objects could run code and are refused."
        ) from None
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise UserError(
            f"{path} must hold tensors by name: got {type(held).__name__}. Name another file."
        )
    for name, value in held.items():
        if what := _fault(value):
            raise UserError(f"{path} must hold plain tensors: {name!r} {what}. Name another file.")
    return held


def _check_zip(path: Path) -> None:
    """Refuse a zip that unpacks to more bytes than it has, or has too many entries."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _LONGEST_TAIL, 0))
        tail = file.read()
    place = tail.rfind(_END_OF_ZIP)
    if place < 0 or len(tail) - place < 22:
        return  # the older format of `torch.save` contains only what it stores
    (num_entries,) = struct.unpack_from("<H", tail, place + 10)
    if num_entries > _MOST_ENTRIES:
        raise UserError(
            f"{path} must have at most {_MOST_ENTRIES} entries: it has more. Name another file."
        )
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size:
        raise UserError(
            f"{path} must store its tensors uncompressed: it has {size:,} bytes, which unpack to "
            f"{unpacked:,}. Name another file."
        )


def _fault(value: Any) -> str | None:
    """Return what is wrong with a tensor from a file; ``None`` if nothing is."""
    if type(value) is not Tensor:
        return f"is a {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        return "is not dense"
    if value.device.type != "cpu" or value.dtype not in _DTYPES:
        return f"is {value.dtype} on {value.device}"
    if not value.is_contiguous() or value.untyped_storage().nbytes() < value.nbytes:
        return f"of shape {tuple(value.shape)} does not have memory of its own for all of it"
    return None
