"""Checkpoints: written whole or not at all, checked before use, free of pickle.

A checkpoint is the folder ``<run>/checkpoints/step_00000100``:

* ``manifest.json``: format, system and its config, step, counters, size and SHA-256 of each file;
* ``weights.safetensors``: all weights, whole, whatever the number of processes; adapters beside the
  weights that they change, so that a checkpoint needs no other file;
* ``optimizer/*.safetensors``: moments by `KindOptimizers.named_state`: one file, or one of each
  process in the layout of `torch.distributed.checkpoint`, which any number of processes can read.

Random state needs no file: noise is a function of (seed, step, part of the batch). A checkpoint is
written under a hidden name, flushed to the disk, then renamed: a reader sees all of it or none.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from counterpoint.blocks.low_rank import LowRankConfig, merged_weights
from counterpoint.config_json import decode, encode, first_difference
from counterpoint.train.distributed import World, gathered, system_class
from counterpoint.train.optimizer import KindOptimizers

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or must not be used; the message is one line."""


@dataclass(kw_only=True, slots=True)
class Counters:
    """What a run has done so far, over all processes.

    Attributes:
        step: Optimiser steps done; the next step reads batch ``step``.
        size: Bytes of text, or frames of speech, learned from.
        flops: Training FLOPs (three times the forward pass).
        seconds: Time in training steps, without evaluation, saving and loading.
    """

    step: int = 0
    size: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in a run folder."""
    return folder / "checkpoints" / f"step_{step:08d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Finished checkpoints of a run folder, newest first, unchecked."""
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
    """Write a checkpoint; every process must call it.

    Args:
        folder: Run folder, which all processes must see (a shared disk when on many machines).
        system: Model, sharded or not.
        optimizers: Its optimisers.
        counters: What the run has done so far.
        world: The processes.
        extra: JSON that goes into the manifest, such as the training config.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: It could not be written (disk full...). Older ones are untouched.
    """
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
        error = world.any_error(_write_tensors(partial, system, optimizers, world))
    if error is None and world.is_first:
        try:
            _finish(partial, path, _manifest(system, counters, world, extra, partial))
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
    """Delete what a killed process left behind."""
    for remains in (folder / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains, ignore_errors=True)


def remove_old_checkpoints(folder: Path, keep: int, saved: Path) -> None:
    """Delete all but the ``keep`` newest checkpoints up to the one just saved.

    Those of later steps were refused when the run went on from an earlier one: they go too.

    Raises:
        CheckpointError: One cannot be deleted.
    """
    paths = checkpoint_paths(folder)
    refused = [path for path in paths if path.name > saved.name]
    for path in refused + paths[len(refused) + keep :]:
        # Renamed first: a deletion that is cut short must not look like a checkpoint.
        remains = path.with_name(f".{path.name}.old")
        shutil.rmtree(remains, ignore_errors=True)
        try:
            shutil.rmtree(path.rename(remains))
        except OSError as problem:
            raise CheckpointError(
                f"Old checkpoints must be deletable: {path} is not ({problem.strerror}). The last "
                f"good one is {saved}. Delete the other and run the same command again."
            ) from None


def _write_tensors(
    partial: Path, system: nn.Module, optimizers: KindOptimizers, world: World
) -> str | None:
    """Write weights and optimiser state; give back what went wrong in this process."""
    weights: dict[str, Tensor] = {}
    for name, tensor in system.state_dict().items():
        full = gathered(tensor.detach())
        if world.is_first:
            weights[name] = _own_copy(full)
    state = optimizers.named_state()
    error = None
    try:
        if world.is_first:
            save_file(weights, partial / WEIGHTS)
        if world.size == 1:
            own = {name: _own_copy(tensor) for name, tensor in state.items()}
            save_file(own, partial / OPTIMIZER / "state.safetensors")
    except (OSError, SafetensorError) as problem:
        error = str(problem)
    if world.size == 1:
        return error
    # All processes take part in the collective write, or none does.
    return world.any_error(error) or _write_shards(state, partial / OPTIMIZER)


def _own_copy(tensor: Tensor) -> Tensor:
    """A CPU tensor that fills its own memory: safetensors refuses memory that two names share."""
    copy = tensor.detach().cpu().contiguous()
    return copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy


def _write_shards(state: Mapping[str, Tensor], folder: Path) -> str | None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(state), storage_writer=writer)
    except CheckpointException as problem:
        return "; ".join(f"process {rank}: {e[0]}" for rank, e in problem.failures.items())
    return None


def _manifest(
    system: nn.Module,
    counters: Counters,
    world: World,
    extra: Mapping[str, Any],
    partial: Path,
) -> dict[str, Any]:
    try:
        release = version("counterpoint")
    except PackageNotFoundError:  # run from a source tree
        release = "unknown"
    files = sorted(partial.rglob("*.safetensors"))
    return {
        "format": FORMAT,
        "system": system_class(system).__name__,
        "config": encode(getattr(system, "config", None)),
        "counters": asdict(counters),
        "num_processes": world.size,
        "versions": {"counterpoint": release, "torch": torch.__version__},
        **extra,
        "files": {
            str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in files
        },
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finish(partial: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    """Flush everything to the disk, then let it appear under its name."""
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for entry in (*partial.rglob("*"), partial):
        _flush(entry)
    if path.exists():  # a refused checkpoint of the same step
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))
    partial.rename(path)
    _flush(path.parent)


def _flush(entry: Path) -> None:
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> dict[str, Any]:
    """Manifest of a checkpoint.

    Raises:
        CheckpointError: There is none, or another version of the format wrote it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"A checkpoint must hold a readable {MANIFEST}: {path} does not "
            f"({type(problem).__name__}). Name a checkpoint or a run folder."
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"A checkpoint must have format {FORMAT}: {path} has {found!r}. "
            "Use the version of counterpoint that wrote it."
        )
    return manifest


def check_files(path: Path, names: Callable[[str], bool] = lambda name: True) -> None:
    """Check that files are as they were written.

    Raises:
        CheckpointError: A file is missing, cut short or changed.
    """
    for name, written in read_manifest(path)["files"].items():
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
        if _sha256(file) != written["sha256"]:
            raise CheckpointError(
                f"{file} must have the SHA-256 of its manifest: it differs. "
                "The checkpoint is damaged; use an older one."
            )


def check_origin(path: Path, system: nn.Module) -> None:
    """Check that a checkpoint belongs to this very system: class, config and shapes.

    Raises:
        CheckpointError: It belongs to another one.
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
    with contextlib.suppress(ValueError):  # the difference is then that of what was written
        # Fields that a config has got since then have their defaults.
        written = encode(decode(type(config), written))
    difference = first_difference(written, encode(config))
    if difference is not None:
        raise CheckpointError(
            f"{path} must have the config of this {name}: it differs in {difference}. {hint}"
        )
    with safe_open(path / WEIGHTS, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
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
    """Newest usable checkpoint of a run folder.

    Args:
        folder: Run folder.
        system: Model that must be able to go on from it; ``None`` accepts any system and asks for
            good weights only, as inference does.
        note: Told, in one line, about each newer checkpoint that is refused.

    Returns:
        Its folder, or ``None`` when the run has no checkpoint.

    Raises:
        CheckpointError: There are checkpoints and none is usable: to begin anew over them would
            lose them.
    """
    problem: CheckpointError | None = None
    for path in checkpoint_paths(folder):
        try:
            if system is None:
                check_files(path, lambda name: name == WEIGHTS)
            else:
                check_files(path)
                check_origin(path, system)
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


def restore(path: Path, system: nn.Module, optimizers: KindOptimizers, world: World) -> Counters:
    """Load a checked checkpoint into a system and its optimisers, whatever their sharding."""
    with torch.no_grad():
        _read(path, dict(system.state_dict()), world)
    _read(path / OPTIMIZER, optimizers.empty_state(_keys(path / OPTIMIZER)), world)
    return Counters(**read_manifest(path)["counters"])


def _keys(folder: Path) -> list[str]:
    keys: dict[str, None] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            keys.update(dict.fromkeys(tensors.keys()))
    return list(keys)


def _read(folder: Path, targets: dict[str, Tensor], world: World) -> None:
    """Fill tensors, sharded or not, from the safetensors files of a folder, sharded or not."""
    files = sorted(folder.glob("*.safetensors"))
    if world.size == 1 and len(files) == 1:
        with safe_open(files[0], "pt") as tensors:
            for name, target in targets.items():
                target.copy_(tensors.get_tensor(name))
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # meant so
        load(
            targets,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=world.size == 1,
        )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint, or of a run folder's newest good one, on the CPU; adapters merged.

    Raises:
        CheckpointError: There is no checkpoint, or its weights are damaged.
    """
    path = resolve(path)
    check_files(path, lambda name: name == WEIGHTS)
    weights, low_rank = load_file(path / WEIGHTS), adapters_of(path)
    return weights if low_rank is None else merged_weights(weights, low_rank.scaling)


def adapters_of(path: Path) -> LowRankConfig | None:
    """Adapters of the system in a checkpoint; ``None`` without any."""
    fine_tune = (read_manifest(path).get("train") or {}).get("fine_tune") or {}
    found: LowRankConfig | None = decode(LowRankConfig | None, fine_tune.get("low_rank"))
    return found


def load_system(path: Path, systems: Mapping[str, Any] | None = None) -> nn.Module:
    """The model of a checkpoint, or of a run folder's newest good one, ready for inference.

    Args:
        path: Checkpoint or run folder. Optimiser files need not be there.
        systems: Classes by class name; by default those of `counterpoint.systems.SYSTEMS`.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or its system is unknown.
    """
    if systems is None:
        from counterpoint.systems import SYSTEMS

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
        system = cls(decode(cls.Config, manifest["config"]))
        system.load_state_dict(load_weights(path))
    except (ValueError, RuntimeError) as problem:
        if isinstance(problem, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} must fit this version of {cls.__name__}: {' '.join(str(problem).split())}"
        ) from None
    return system.eval()


def resolve(path: Path) -> Path:
    """The checkpoint itself when ``path`` is one, else the newest good one of the run folder."""
    if (path / MANIFEST).exists():
        return path
    newest = newest_checkpoint(path)
    if newest is None:
        raise CheckpointError(
            f"{path} must be a checkpoint or a run folder with one: none found. Check the path."
        )
    return newest
