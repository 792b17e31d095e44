"""Reading and writing the tensors of a checkpoint, sharded or not, as safetensors files."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from counterpoint import files
from counterpoint.blocks.quantized import to_int8
from counterpoint.train.distributed import World, gathered
from counterpoint.train.manifest import OPTIMIZER, WEIGHTS
from counterpoint.train.optimizer import KindOptimizers

Stored = Literal["float32", "bfloat16", "int8"]
"""Type in which the weights of a file are stored."""

_SCALE = ".scale"  # the scales of a matrix of 8 bits have its name with this suffix


def write_tensors(
    partial: Path, system: nn.Module, optimizers: KindOptimizers, world: World
) -> str | None:
    """Write weights and optimiser state, and return the error message if there was an error.

    Args:
        partial: Folder of a checkpoint that is being written.
        system: The system, sharded or not.
        optimizers: Its optimisers.
        world: The processes, all of which must call this.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in system.state_dict().items():
        full = gathered(tensor.detach())
        if world.is_first:
            weights[name] = full.cpu()  # all of them may not fit on the device
    state = optimizers.named_state()
    error = None
    try:
        if world.is_first:
            files.write_tensors(partial / WEIGHTS, weights)
        if world.size == 1:
            files.write_tensors(partial / OPTIMIZER / "state.safetensors", state)
    except OSError as problem:
        error = str(problem)
    if world.size == 1:
        return error
    # All processes take part in the collective write, or none does.
    return world.any_error(error) or _write_shards(state, partial / OPTIMIZER)


def read_tensors(folder: Path, targets: dict[str, Tensor], world: World) -> None:
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
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended
        load(
            targets,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=world.size == 1,
        )


def tensor_names(folder: Path) -> list[str]:
    """Return the names of the tensors in the safetensors files of a folder."""
    keys: dict[str, None] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            keys.update(dict.fromkeys(tensors.keys()))
    return list(keys)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the first tensor with a number that is not finite.

    Of a sharded tensor only this process's part is read.
    """
    names: list[str] = []
    flags: list[Tensor] = []
    for name, tensor in tensors:
        local = getattr(tensor, "to_local", lambda tensor=tensor: tensor)().detach()
        if local.is_floating_point() and local.numel():
            names.append(name)
            flags.append(local.isfinite().all())
    if not flags:
        return None
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


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


def compacted(weights: Mapping[str, Tensor], stored: Stored) -> dict[str, Tensor]:
    """Return weights in the form of a small file; `expanded` undoes it except for rounding.

    Args:
        weights: Tensors by name; floats of any type. Whole numbers are not changed.
        stored: Type in which they are stored. With "int8" each row of a matrix, also of an
            embedding, gets a float32 scale, and all other floats are float32.
    """
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    small: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if stored == "int8" and weight.is_floating_point() and weight.dim() == 2:
            small[name], small[name + _SCALE] = to_int8(weight)
        else:
            small[name] = weight.to(dtype) if weight.is_floating_point() else weight
    return small


def expanded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for computing: matrices of 8 bits as float32, all others unchanged."""
    # Maps that a run keeps in 8 bits have scales of another name and are merged elsewhere.
    scales = {
        name + _SCALE
        for name, weight in weights.items()
        if weight.dtype == torch.int8 and name + _SCALE in weights
    }
    return {
        name: weight * weights[name + _SCALE][:, None] if name + _SCALE in scales else weight
        for name, weight in weights.items()
        if name not in scales
    }
