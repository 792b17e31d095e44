"""Several processes and machines: `torchrun`, FSDP2, and communication between processes.

In a program that was started without `torchrun`, the functions here do nothing or act as in a group
of one process.
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
        rank: Number of this process, counted from 0; process 0 writes files and reports.
        size: Number of processes on all machines.
        device: Device on which this process computes.
        num_threads: Number of threads that was chosen for all its work on a CPU; ``None`` before
            that (`counterpoint.train.threads`).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    num_threads: int | None = None

    @property
    def is_first(self) -> bool:
        """True in the only process that writes files and reports."""
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        """True if the threads of this process do its work."""
        return self.device.type == "cpu"

    def sum(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Add values of all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the first process's value in every process; others may pass any value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order, in every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any_error(self, error: str | None) -> str | None:
        """Return the first error of any process in every process, so that all of them stop."""
        return next((error for error in self.from_all(error) if error), None)


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Return a device on which torch can compute.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"mps"`` and so on. ``"auto"`` takes this process's CUDA GPU
            if there is one, otherwise the CPU.
        local_rank: Number of this process on its machine.

    Raises:
        UserError: Torch cannot compute on the device.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # a device from which nothing can be read, such as "meta", cannot compute
        return probe.device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise UserError(
            "`--device` must be auto, cpu, cuda, mps, or one of several GPUs such as cuda:1: got "
            f"{name!r} ({_why_not(name, error)}). Leave it out to use the best device there is."
        ) from None


def _why_not(name: str, error: Exception) -> str:
    """Return in a few words why torch cannot compute on a device; its own words can be a page."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        return "no device has this name"
    if kind == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU here"
    if kind == "cuda" and torch.device(name).index not in (None, *range(torch.cuda.device_count())):
        return f"the last GPU here is cuda:{torch.cuda.device_count() - 1}"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "torch finds no Apple GPU here"
    return " ".join(str(error).split())[:100]


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the process group that `torchrun` describes, or be a group of one without it.

    Processes communicate through gloo on CPUs and through nccl on GPUs.

    Yields:
        The processes. The group is left at the end of the block.
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
        # Sharded systems are reference cycles that hold the group. If they are left until Python
        # ends, threads of gloo may free tensors without an interpreter, which aborts a finished
        # run.
        gc.collect()
        dist.destroy_process_group()


def current_world(device: torch.device) -> World:
    """Return the group that this process has joined, or a group of one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World(device=device)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def shard(system: nn.Module, world: World) -> nn.Module:
    """Split parameters, gradients and optimiser state over all processes (FSDP2), in place.

    Each module of ``system.shard_units()`` is gathered on its own just before it computes; all
    other parameters are gathered with the root. Build the system with the same seed in all
    processes, and move it to its device first. In a group of one nothing is changed.

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
    # The root keeps its parameters between forward and backward; freeing them would save nothing.
    fully_shard(system, mesh=mesh, reshard_after_forward=False)
    # FSDP installs its hooks on `forward`, but training calls `losses`.
    register_fsdp_forward_method(system, "losses")
    return system


def sync_gradients(system: nn.Module, sync: bool) -> None:
    """Set whether the next backward pass averages gradients over processes (sharded systems)."""
    setter = getattr(system, "set_requires_gradient_sync", None)
    if callable(setter):
        setter(sync)


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded; every process must call this."""
    full = getattr(tensor, "full_tensor", None)
    return full() if callable(full) else tensor


def copy_weights(system: nn.Module, copy: nn.Module) -> None:
    """Copy the weights of a system that may be sharded to a whole one; all processes call this."""
    held = copy.state_dict()
    for name, own in system.state_dict().items():
        held[name].copy_(gathered(own).detach())


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that all processes hold, if ``like`` is sharded."""
    if not callable(getattr(like, "full_tensor", None)):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    everywhere = [Replicate()] * like.device_mesh.ndim
    held = DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False)
    return held.redistribute(like.device_mesh, like.placements)


def system_class(system: nn.Module) -> type:
    """Return the class of a system as it was written; sharding puts its own class in front."""
    return next(cls for cls in type(system).__mro__ if not cls.__name__.startswith("FSDP"))
