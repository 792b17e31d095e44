"""Checkpoints: written completely or not at all, checked before use, without pickle.

A checkpoint is the folder ``<run>/checkpoints/step_00000100``:

* ``manifest.json``: format, system and its config, step, counters, size and SHA-256 of each file,
  and a digest of all that (`counterpoint.train.manifest`);
* ``weights.safetensors``: all weights in one file, whatever the number of processes. Adapters are
  stored together with the weights that they change, so that a checkpoint needs no other file;
* ``optimizer/*.safetensors``: moments, named by `KindOptimizers.named_state`: one file, or one of
  each process in the layout of `torch.distributed.checkpoint`, which any number of processes can
  read.

Random state is not stored, because noise is a function of (seed, step, part of the batch). A
checkpoint is written under a hidden name, flushed to the disk, then renamed, so that a reader sees
all of it or none.
"""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from counterpoint.blocks.low_rank import LowRankConfig, merged_weights
from counterpoint.config_json import decode, encode, first_difference
from counterpoint.errors import nearest_file
from counterpoint.files import flush, settle, write_json
from counterpoint.systems import SYSTEMS
from counterpoint.systems.contract import System
from counterpoint.train.distributed import World, system_class
from counterpoint.train.manifest import FORMAT as FORMAT
from counterpoint.train.manifest import MANIFEST as MANIFEST
from counterpoint.train.manifest import OPTIMIZER, make_manifest
from counterpoint.train.manifest import WEIGHTS as WEIGHTS
from counterpoint.train.manifest import CheckpointError as CheckpointError
from counterpoint.train.manifest import Counters as Counters
from counterpoint.train.manifest import check_files as check_files
from counterpoint.train.manifest import read_manifest as read_manifest
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.tensor_files import (
    expanded,
    not_finite,
    read_tensors,
    tensor_names,
    write_tensors,
)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step in a run folder."""
    return folder / "checkpoints" / f"step_{step:08d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a run folder, newest first, without checking them."""
    return sorted((folder / "checkpoints").glob("step_" + "[0-9]" * 8), reverse=True)


# ---------------------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path,
    system: nn.Module,
    optimizers: KindOptimizers,
    counters: Counters,
    world: World,
    extra: Mapping[str, Any],
) -> Path:
    """Write a checkpoint; every process must call this.

    Args:
        folder: Run folder. All processes must see it (on many machines: a shared disk).
        system: Model, sharded or not.
        optimizers: Its optimisers.
        counters: Counters of the run.
        world: The processes.
        extra: JSON that is stored in the manifest, such as the training config.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: The checkpoint could not be written (the disk is full, for example), or a
            number in it is not finite. Older checkpoints are not changed.
    """
    _check_finite(folder, system, optimizers, counters, world)
    path = checkpoint_path(folder, counters.step)
    partial = path.with_name(f".{path.name}.partial")
    error = None
    if world.is_first:
        try:
            remove_checkpoint_remains(folder)
            (partial / OPTIMIZER).mkdir(parents=True)
        except OSError as problem:
            error = str(problem)
    error = world.any_error(error)
    if error is None:
        error = world.any_error(write_tensors(partial, system, optimizers, world))
    if error is None and world.is_first:
        try:
            name = system_class(system).__name__
            config = encode(getattr(system, "config", None))
            manifest = make_manifest(partial, name, config, counters, world.size, extra)
            _finish(partial, path, manifest)
        except OSError as problem:
            error = str(problem)
    error = world.any_error(error)
    if error is not None:
        if world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        older = next(iter(checkpoint_paths(folder)), None)
        raise CheckpointError(
            f"The checkpoint of step {counters.step} must fit on the disk of {folder}: {error}. "
            f"The last good one is {older or 'none'}. Free space and run the same command again."
        )
    return path


def remove_checkpoint_remains(folder: Path) -> None:
    """Delete the unfinished files of a process that was killed."""
    for remains in (folder / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains, ignore_errors=True)


def remove_old_checkpoints(folder: Path, keep: int, saved: Path) -> None:
    """Delete all checkpoints except the ``keep`` newest ones up to the one just saved.

    Checkpoints of later steps are deleted too: they were refused when the run was resumed from an
    earlier one.

    Raises:
        CheckpointError: A checkpoint cannot be deleted.
    """
    paths = checkpoint_paths(folder)
    refused = [path for path in paths if path.name > saved.name]
    for path in refused + paths[len(refused) + keep :]:
        # It is renamed first: a deletion that is interrupted must not look like a checkpoint.
        remains = path.with_name(f".{path.name}.old")
        shutil.rmtree(remains, ignore_errors=True)
        try:
            shutil.rmtree(path.rename(remains))
        except OSError as problem:
            raise CheckpointError(
                f"Old checkpoints must be deletable: {path} is not ({problem.strerror}). The last "
                f"good one is {saved}. Delete the other and run the same command again."
            ) from None


def _check_finite(
    folder: Path, system: nn.Module, optimizers: KindOptimizers, counters: Counters, world: World
) -> None:
    """Refuse to save a state that contains an infinite number or NaN."""
    tensors = {**system.state_dict(), **optimizers.named_state()}
    name = world.any_error(not_finite(tensors.items()))
    if name is not None:
        older = next(iter(checkpoint_paths(folder)), None)
        raise CheckpointError(
            f"Weights and moments must be finite to be saved: {name!r} is not after step "
            f"{counters.step}. The last good checkpoint is {older or 'none'}. Lower the learning "
            "rate or `clip_norm`, and run again."
        )


def _finish(partial: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    """Flush everything to the disk, then rename the folder to its final name."""
    write_json(partial / MANIFEST, manifest)
    settle(partial)
    if path.exists():  # an earlier checkpoint of this step that was refused
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))
    partial.rename(path)
    flush(path.parent)


# ---------------------------------------------------------------------------------------- reading


_Known = TypeVar("_Known")


def begun_with(
    folders: Iterable[Path], known: Callable[[Mapping[str, Any]], _Known | None]
) -> _Known | None:
    """Return a fact of the manifest of the newest checkpoint of the first folder that tells it."""
    for folder in folders:
        for path in checkpoint_paths(folder):
            with contextlib.suppress(CheckpointError):
                found = known(read_manifest(path))
                if found is not None:
                    return found
                break
    return None


def check_origin(path: Path, system: nn.Module) -> None:
    """Check that a checkpoint belongs to this system: same class, config and shapes.

    Raises:
        CheckpointError: It belongs to another system.
    """
    manifest = read_manifest(path)
    hint = "Train in another folder, or change the recipe back."
    name = system_class(system).__name__
    if manifest["system"] != name:
        raise CheckpointError(
            f"{path} must be a checkpoint of {name}: it is one of {manifest['system']}. {hint}"
        )
    config = getattr(system, "config", None)
    written = manifest["config"]
    with contextlib.suppress(ValueError):  # then the config is compared as it was written
        # Fields that were added to the config since then get their defaults.
        written = encode(decode(type(config), written))
    difference = first_difference(written, encode(config))
    if difference is not None:
        raise CheckpointError(
            f"{path} must have the config of this {name}: it differs in {difference}. {hint}"
        )
    with safe_open(path / WEIGHTS, "pt") as file:
        keys = file.keys()  # no dict: it cannot be iterated
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    expected = {key: tuple(tensor.shape) for key, tensor in system.state_dict().items()}
    for key in sorted(shapes.keys() | expected.keys()):
        if shapes.get(key) != expected.get(key):
            raise CheckpointError(
                f"{path} must hold the weights of this {name}: {key!r} has shape "
                f"{shapes.get(key)} there and {expected.get(key)} here. {hint}"
            )


def newest_checkpoint(
    folder: Path,
    system: nn.Module | None = None,
    note: Callable[[str], None] | None = None,
) -> Path | None:
    """Return the newest usable checkpoint of a run folder.

    Args:
        folder: Run folder.
        system: Model that must be able to continue from it. ``None`` accepts any system and checks
            only the weights, as inference needs it.
        note: Function that is told, in one line, about each newer checkpoint that is refused.

    Returns:
        Folder of the checkpoint, or ``None`` if the run has none.

    Raises:
        CheckpointError: There are checkpoints and none is usable. Starting anew would overwrite
            them.
    """
    problem: CheckpointError | None = None
    for path in checkpoint_paths(folder):
        try:
            _check_usable(path, system)
        except CheckpointError as error:
            problem = problem or error
            if note is not None:
                note(f"Checkpoint refused: {error}")
        else:
            return path
    if problem is not None:
        raise CheckpointError(
            f"{folder} must hold a usable checkpoint or none: all are refused. "
            f"The newest: {problem}"
        )
    return None


def _check_usable(path: Path, system: nn.Module | None) -> None:
    try:
        if system is None:
            check_files(path, lambda name: name == WEIGHTS)
            return
        check_files(path)
        if not any(name.startswith(f"{OPTIMIZER}/") for name in read_manifest(path)["files"]):
            raise CheckpointError(
                f"{path} must hold an optimiser state to be resumed: it has none. Use another."
            )
        check_origin(path, system)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} must be readable: {' '.join(str(error).split())}. Use an older one."
        ) from None


def restore(path: Path, system: nn.Module, optimizers: KindOptimizers, world: World) -> Counters:
    """Load a checked checkpoint into a system and its optimisers, whatever their sharding.

    Returns:
        The counters of the run at the checkpoint.
    """
    with torch.no_grad():
        read_tensors(path, dict(system.state_dict()), world)
    folder = path / OPTIMIZER
    read_tensors(folder, optimizers.empty_state(tensor_names(folder)), world)
    return Counters(**read_manifest(path)["counters"])


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint on the CPU, with adapters merged.

    Args:
        path: A checkpoint, or a run folder, whose newest good checkpoint is used.

    Raises:
        CheckpointError: There is no checkpoint, or its weights are damaged.
    """
    path = resolve(path)
    check_files(path, lambda name: name == WEIGHTS)
    weights = expanded(load_file(path / WEIGHTS))
    low_rank = adapters_of(path)
    name = not_finite(weights.items())
    if name is not None:
        raise CheckpointError(
            f"{path / WEIGHTS} must hold finite numbers: {name!r} has others. The training has "
            "failed; use an older checkpoint."
        )
    return weights if low_rank is None else merged_weights(weights, low_rank.scaling)


def adapters_of(path: Path) -> LowRankConfig | None:
    """Return the adapters of the system in a checkpoint; ``None`` if it has none."""
    fine_tune = (read_manifest(path).get("train") or {}).get("fine_tune") or {}
    found: LowRankConfig | None = decode(LowRankConfig | None, fine_tune.get("low_rank"))
    return found


def load_system(path: Path, systems: Mapping[str, Any] | None = None) -> System:
    """Return the model of a checkpoint, or of a run folder's newest good one, for inference.

    Args:
        path: Checkpoint or run folder. Its optimiser files may be missing.
        systems: Classes by class name; by default those of `counterpoint.systems.SYSTEMS`.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or its system is unknown.
    """
    if systems is None:
        systems = {cls.__name__: cls for cls in SYSTEMS.values()}
    path = resolve(path)
    manifest = read_manifest(path)
    if manifest["system"] not in systems:
        raise CheckpointError(
            f"{path} must hold a known system: {manifest['system']!r} is not one of "
            f"{', '.join(systems)}. Use the version of counterpoint that wrote it."
        )
    cls = systems[manifest["system"]]
    try:
        system: System = cls(decode(cls.Config, manifest["config"]))
        system.load_state_dict(load_weights(path))
    except (ValueError, RuntimeError) as problem:
        if isinstance(problem, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} must fit this version of {cls.__name__}: {' '.join(str(problem).split())}"
        ) from None
    return system.eval()


def resolve(path: Path, note: Callable[[str], None] | None = None) -> Path:
    """Return ``path`` if it is a checkpoint, otherwise the newest good one of the run folder.

    Args:
        path: A checkpoint or a run folder.
        note: Function that is told, in one line, about each newer checkpoint that is refused; by
            default a warning is issued.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    if (path / MANIFEST).exists():
        return path
    newest = newest_checkpoint(path, note=note or (lambda line: warnings.warn(line, stacklevel=3)))
    if newest is None:
        where = "Check the path"
        if path.is_dir():
            where = "If nothing was trained there yet, run its training; otherwise check the path"
        raise CheckpointError(
            f"{path} must be a checkpoint or a run folder with one: none found. {where}. "
            f"{'' if path.exists() else nearest_file(path)}"
        )
    return newest
