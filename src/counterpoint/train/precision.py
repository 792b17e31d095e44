"""In which type a run computes: the one in which this machine multiplies its matrices faster.

What a machine can do says too little. Of CPUs without bfloat16 a product in it takes 20 to 100
times as long as in float32; but one that names AVX-512 BF16 among its capabilities may still take
1.4 to 2.7 times as long (measured with oneDNN held to those instructions), one with AMX a tenth.
So a product of the run's own size is measured in both types, which takes some hundredths of a
second.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from counterpoint.train.checkpoint import CheckpointError, checkpoint_paths, read_manifest
from counterpoint.train.distributed import World

_FASTER = 0.75  # of float32's time: converting weights and activations costs some of what is gained
_MUCH_SLOWER = 2.0  # then a run does not go on in its type
_SECONDS = 0.01  # for each type
_MOST_ROWS = 4096
_CPU_SIZE = 1 << 24  # multiplications of a product: 30 ms where bfloat16 is emulated
_DEVICE_SIZE = 1 << 34  # long enough on a GPU that starting it does not count


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductTimes:
    """How long one product takes in both types.

    Attributes:
        shape: Rows, inputs, outputs.
        float32_s: Seconds in float32.
        bfloat16_s: Seconds in bfloat16; infinite where the device has no such type.
    """

    shape: tuple[int, int, int]
    float32_s: float
    bfloat16_s: float

    def __str__(self) -> str:
        rows, inputs, outputs = self.shape
        product = f"a product {rows} x {inputs} x {outputs}"
        if self.bfloat16_s == float("inf"):
            return "this device has no bfloat16"
        return (
            f"{product} takes {1e3 * self.float32_s:.3g} ms in float32 and "
            f"{1e3 * self.bfloat16_s:.3g} ms in bfloat16"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The type of a run.

    Attributes:
        precision: ``"float32"`` or ``"bfloat16"``.
        why: One line for a person; empty where the config says it and nothing speaks against it.
    """

    precision: Literal["float32", "bfloat16"]
    why: str


def choose_precision(wanted: str, begun: str | None, measure: Callable[[], ProductTimes]) -> Choice:
    """Settle the type of a computation.

    Args:
        wanted: What its config says.
        begun: In which type it was computed so far, where it goes on.
        measure: See `time_products`; called where it matters.
    """
    if wanted == "float32":
        return Choice(precision="float32", why="")
    if wanted == "auto" and begun == "float32":
        return Choice(precision="float32", why="computing in float32, as the run began")
    times = measure()
    slower = times.bfloat16_s / times.float32_s
    if wanted == "bfloat16":
        why = f"computing in bfloat16 as the config says, but {times}: leave precision at 'auto'"
        return Choice(precision="bfloat16", why=why if slower > _MUCH_SLOWER else "")
    if begun == "bfloat16" and slower <= _MUCH_SLOWER:
        return Choice(precision="bfloat16", why="computing in bfloat16, as the run began")
    if begun == "bfloat16":
        why = f"the run began in bfloat16 and goes on in float32: {times}"
        return Choice(precision="float32", why=why)
    faster: Literal["float32", "bfloat16"] = "bfloat16" if slower < _FASTER else "float32"
    return Choice(precision=faster, why=f"computing in {faster}: {times}")


def settle_precision(
    wanted: str, systems: Sequence[nn.Module], folders: Sequence[Path], world: World
) -> Choice:
    """Settle the type of runs, which compute in one type; all processes must call this.

    Args:
        wanted: What their config says.
        systems: What is trained.
        folders: Run folders; the first that has a checkpoint says how the runs began.
        world: The processes; the first one decides.
    """
    choice = None
    if world.is_first:
        begun = next((name for name in map(_begun, folders) if name is not None), None)
        choice = choose_precision(wanted, begun, lambda: time_products(systems, world.device))
    found: Choice = world.from_first(choice)
    return found


def _begun(folder: Path) -> str | None:
    """The type in which the newest checkpoint of a run folder was computed."""
    for path in checkpoint_paths(folder):
        with contextlib.suppress(CheckpointError):
            found = (read_manifest(path).get("train") or {}).get("precision")
            return found if isinstance(found, str) else None
    return None


def time_products(systems: Sequence[nn.Module], device: torch.device) -> ProductTimes:
    """Measure a product of the size that takes most of these systems' parameters.

    Each time is the shortest of several and, on a CPU, that of one thread: threads that wait for
    each other while another program has a core would make all products equally slow.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        return _times(_main_shape(systems), device)
    finally:
        torch.set_num_threads(threads)


def _times(shape: tuple[int, int], device: torch.device) -> ProductTimes:
    inputs, outputs = shape
    size = _CPU_SIZE if device.type == "cpu" else _DEVICE_SIZE
    rows = max(min(size // (inputs * outputs), _MOST_ROWS), 16)
    x = torch.ones(rows, inputs, device=device)
    weight = torch.ones(outputs, inputs, device=device)
    times = {torch.float32: _seconds(x, weight)}
    try:
        times[torch.bfloat16] = _seconds(x.bfloat16(), weight.bfloat16())
    except (RuntimeError, TypeError):  # the device has no such type
        times[torch.bfloat16] = float("inf")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        times[torch.bfloat16] = float("inf")
    return ProductTimes(
        shape=(rows, inputs, outputs),
        float32_s=times[torch.float32],
        bfloat16_s=times[torch.bfloat16],
    )


def _main_shape(systems: Sequence[nn.Module]) -> tuple[int, int]:
    """Inputs and outputs of the linear layers that have most parameters together."""
    sizes: Counter[tuple[int, int]] = Counter()
    for system in systems:
        for module in system.modules():
            if isinstance(module, nn.Linear):
                outputs, inputs = module.weight.shape
                sizes[inputs, outputs] += inputs * outputs
    return max(sizes, key=lambda shape: sizes[shape]) if sizes else (256, 1024)


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Shortest time of a product, the first one left out."""
    best = float("inf")
    _product_seconds(x, weight)
    end = time.perf_counter() + _SECONDS
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, _product_seconds(x, weight))
    return best


def _product_seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    begin = time.perf_counter()
    product = nn.functional.linear(x, weight)
    if x.device.type != "cpu":
        product[0, 0].item()  # waits until it is there
    return time.perf_counter() - begin
