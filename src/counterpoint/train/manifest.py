"""The manifest of a checkpoint: what the checkpoint holds, and proof that it was not changed.

``manifest.json`` holds the format, the system and its config, counters, size and SHA-256 of every
file, and a digest of all that. No change in a checkpoint can therefore stay unnoticed.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from counterpoint.digests import DIGEST, file_digest, is_intact, sealed
from counterpoint.errors import UserError

FORMAT = 2
_UNSEALED_FORMAT = 1  # its manifest has no digest of itself; it can still be read
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer"
_STEP_FOLDER = re.compile(r"step_(\d{8})")


class CheckpointError(UserError):
    """A checkpoint cannot be written, or must not be used; the message is one line."""


@dataclass(kw_only=True, slots=True)
class Counters:
    """The progress of a run so far, over all processes.

    Attributes:
        step: Number of optimiser steps done; the next step reads batch ``step``.
        size: Number of bytes of text, or frames of speech, learned from.
        flops: Training FLOPs (three times the forward pass).
        seconds: Time of the training steps, without evaluation, saving and loading.
    """

    step: int = 0
    size: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def make_manifest(
    folder: Path,
    system: str,
    config: Any,
    counters: Counters,
    num_processes: int,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the manifest of the files in a folder.

    Args:
        folder: Folder with all files except the manifest.
        system: Name of the class.
        config: Its config, encoded.
        counters: Counters of the run.
        num_processes: Number of processes that have written.
        extra: Further JSON entries.
    """
    try:
        release = version("counterpoint")
    except PackageNotFoundError:  # run from a source tree
        release = "unknown"
    files = sorted(folder.rglob("*.safetensors"))
    return sealed(
        {
            "format": FORMAT,
            "system": system,
            "config": config,
            "counters": asdict(counters),
            "num_processes": num_processes,
            "versions": {"counterpoint": release, "torch": torch.__version__},
            **extra,
            "files": {
                file.relative_to(folder).as_posix(): {
                    "bytes": file.stat().st_size,
                    "sha256": file_digest(file),
                }
                for file in files
            },
        }
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: There is no manifest, another version of the format wrote it, or it was
            changed.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(
            f"A checkpoint must hold a readable {MANIFEST}: {path} does not "
            f"({type(problem).__name__}). Name a checkpoint or a run folder."
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in (_UNSEALED_FORMAT, FORMAT) or isinstance(found, bool):
        raise CheckpointError(
            f"A checkpoint must have format {_UNSEALED_FORMAT} or {FORMAT}: {path} has {found!r}. "
            "Use the version of counterpoint that wrote it."
        )
    if found == FORMAT or DIGEST in manifest:
        _must(is_intact(manifest), path, "is not what was written")
    _check_content(manifest, path)
    return manifest


def check_files(path: Path, names: Callable[[str], bool] = lambda name: True) -> None:
    """Check that files are as they were written, and that there are no other files.

    Args:
        path: Folder of the checkpoint.
        names: Selects the files of the manifest that are checked; the others may be missing.

    Raises:
        CheckpointError: A file is missing, truncated, changed or unknown.
    """
    files = read_manifest(path)["files"]
    for file in path.rglob("*.safetensors"):
        if file.relative_to(path).as_posix() not in files:
            raise CheckpointError(
                f"{file} must be in the manifest of its checkpoint: it is not. Remove it, or use "
                "an older checkpoint."
            )
    for name, written in files.items():
        if not names(name):
            continue
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != written["bytes"]:
            what = "is missing" if size is None else f"has {size}"
            raise CheckpointError(
                f"{file} must have {written['bytes']} bytes: it {what}. "
                "The checkpoint is damaged; use an older one."
            )
        if file_digest(file) != written["sha256"]:
            raise CheckpointError(
                f"{file} must have the SHA-256 of its manifest: it differs. "
                "The checkpoint is damaged; use an older one."
            )


def _check_content(manifest: Mapping[str, Any], path: Path) -> None:
    """Check the entries that are used without further checks."""
    files = manifest.get("files")
    counters = manifest.get("counters")
    _must(isinstance(manifest.get("system"), str), path, "names no `system`")
    _must("config" in manifest, path, "has no `config`")
    _must(_are_counters(counters), path, "has no `counters`")
    _must(isinstance(files, dict) and all(map(_is_file, files.items())), path, "lists no `files`")
    _must(WEIGHTS in (files or {}), path, f"does not list {WEIGHTS}")
    named = _STEP_FOLDER.fullmatch(path.absolute().name)
    step = (counters or {}).get("step")
    _must(named is None or int(named[1]) == step, path, f"is that of step {step}")


def _must(holds: bool, path: Path, what: str) -> None:
    if not holds:
        raise CheckpointError(
            f"{path / MANIFEST} must be that of a whole checkpoint: it {what}. The checkpoint is "
            "damaged; use an older one."
        )


def _are_counters(value: Any) -> bool:
    kinds = {"step": (int,), "size": (int,), "flops": (int, float), "seconds": (int, float)}
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(type(value[name]) in kinds[name] and value[name] >= 0 for name in kinds)
    )


def _is_file(entry: tuple[str, Any]) -> bool:
    name, written = entry
    place = PurePosixPath(name)
    return (
        not place.is_absolute()
        and ".." not in place.parts
        and isinstance(written, dict)
        and type(written.get("bytes")) is int
        and isinstance(written.get("sha256"), str)
    )
