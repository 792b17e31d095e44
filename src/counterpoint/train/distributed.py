"""Many processes and machines: `torchrun`, FSDP2, and what the processes tell each other.

Started without `torchrun`, everything here is a no-op of one process.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes of a run.

    Attributes:
        rank: This process, 0 first; 0 writes files and reports.
        size: Processes on all machines.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and reports."""
        return self.rank == 0

    def sum(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process; others may pass anything."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any_error(self, error: str | None) -> str | None:
        """The first error of any process, in every process, so that all stop together."""
        if self.size == 1:
            return error
        errors: list[str | None] = [None] * self.size
        dist.all_gather_object(errors, error)
        return next((error for error in errors if error), None)


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """A device that torch can compute on.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"mps"``...; ``"auto"`` takes this process's CUDA GPU where
            there is one, else the CPU.
        local_rank: Number of this process on its machine.

    Raises:
        UserError: It cannot.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # what cannot be read, such as "meta", is no place to compute
        return probe.device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"`--device` must be auto, cpu or one that torch can use: got {name} ({reason}). "
            "Leave it out to take the best there is."
        ) from None


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the process group that `torchrun` describes; without `torchrun`, a world of one.

    gloo connects processes on the CPU, nccl on GPUs.

    Args:
        device: See `pick_device`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(device=pick_device(device))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    place = pick_device("auto" if device == "cuda" else device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=place)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=place)
    finally:
        # Sharded systems are cycles that hold the group: left to the interpreter's end, gloo's
        # threads may drop tensors when Python is gone, which aborts a run that was done.
        gc.collect()
        dist.destroy_process_group()


def current_world(device: torch.device) -> World:
    """The group this process has joined, or a world of one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World(device=device)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def shard(system: nn.Module, world: World) -> nn.Module:
    """Split parameters, gradients and optimiser state over all processes (FSDP2), in place.

    Each module of ``system.shard_units()`` is gathered on its own, just before it computes; what
    remains is gathered with the root. Build the system with one seed in all processes and move it
    to its device first. A world of one leaves it untouched.

    Returns:
        The same system.
    """
    if world.size == 1:
        return system
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    units = getattr(system, "shard_units", None)
    for unit in units() if callable(units) else ():
        fully_shard(unit, mesh=mesh)
    # The root keeps its parameters between forward and backward: gathering them twice buys nothing.
    fully_shard(system, mesh=mesh, reshard_after_forward=False)
    # Hooks sit on `forward`; training enters by `losses`.
    register_fsdp_forward_method(system, "losses")
    return system


def sync_gradients(system: nn.Module, sync: bool) -> None:
    """Whether the next backward pass averages gradients over processes (sharded systems only)."""
    setter = getattr(system, "set_requires_gradient_sync", None)
    if callable(setter):
        setter(sync)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must call it."""
    full = getattr(tensor, "full_tensor", None)
    return full() if callable(full) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a tensor that all processes hold, if ``like`` is sharded."""
    if not callable(getattr(like, "full_tensor", None)):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    everywhere = [Replicate()] * like.device_mesh.ndim
    held = DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False)
    return held.redistribute(like.device_mesh, like.placements)


def system_class(system: nn.Module) -> type:
    """Class of a system as it was written; sharding puts a class of its own in front."""
    return next(cls for cls in type(system).__mro__ if not cls.__name__.startswith("FSDP"))
