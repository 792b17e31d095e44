"""The type in which a run computes: the one in which this machine multiplies matrices faster.

The declared capabilities of a machine are not enough. On CPUs without bfloat16 a product in it
takes 20 to 100 times as long as in float32. A CPU that declares AVX-512 BF16 may still take 1.4 to
2.7 times as long (measured with oneDNN limited to those instructions), and one with AMX a tenth.
Therefore a product of the run's own size is measured in both types, which takes some hundredths of
a second.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from counterpoint.train.checkpoint import begun_with
from counterpoint.train.distributed import World

_FASTER = 0.75  # of float32's time; converting weights and activations costs some of the gain
_MUCH_SLOWER = 2.0  # from this factor on, a run is not continued in its type
_SECONDS = 0.01  # measuring time for each type
_MOST_ROWS = 4096
_CPU_SIZE = 1 << 24  # multiplications of a product: 30 ms if bfloat16 is emulated
_MOST_WEIGHTS = 1 << 25  # 128 MB
_DEVICE_SIZE = 1 << 34  # large enough on a GPU that launching does not matter


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductTimes:
    """Time of one product in both types.

    Attributes:
        shape: Rows, inputs, outputs.
        float32_s: Seconds in float32.
        bfloat16_s: Seconds in bfloat16; infinite if the device does not have that type.
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
        why: One line for the user; empty if the config sets the type and nothing argues against it.
    """

    precision: Literal["float32", "bfloat16"]
    why: str


@contextlib.contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices in TF32 within this context, if the device is a GPU.

    `counterpoint.train.stacked.Stack` asks for it in every step. What lanes answer, and runs that
    are trained alone, are computed in full float32.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(wanted: str, begun: str | None, measure: Callable[[], ProductTimes]) -> Choice:
    """Choose the type in which a run computes.

    Args:
        wanted: The setting of its config.
        begun: The type in which it has computed so far, if it is continued.
        measure: See `time_products`; it is called only if it matters.
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
        why = f"the run began in bfloat16 and continues in float32: {times}"
        return Choice(precision="float32", why=why)
    faster: Literal["float32", "bfloat16"] = "bfloat16" if slower < _FASTER else "float32"
    return Choice(precision=faster, why=f"computing in {faster}: {times}")


def settle_precision(
    wanted: str, systems: Sequence[nn.Module], folders: Sequence[Path], world: World
) -> Choice:
    """Choose the common type of some runs; all processes must call this.

    Args:
        wanted: The setting of their config.
        systems: The models that are trained.
        folders: Run folders; the first one that has a checkpoint tells how the runs began.
        world: The processes; the first one decides.
    """
    choice = None
    if world.is_first:
        begun = begun_with(folders, _precision_of)
        choice = choose_precision(wanted, begun, lambda: time_products(systems, world.device))
    found: Choice = world.from_first(choice)
    return found


def _precision_of(manifest: Mapping[str, Any]) -> str | None:
    found = (manifest.get("train") or {}).get("precision")
    return found if isinstance(found, str) else None


def time_products(systems: Sequence[nn.Module], device: torch.device) -> ProductTimes:
    """Measure a product of the size that holds most of these systems' parameters.

    Each time is the shortest of several. On a CPU one thread is used: if another program has a
    core, threads wait for each other, and all products would look equally slow.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        return _times(*main_product(systems, device), device)
    finally:
        torch.set_num_threads(threads)


def main_product(
    systems: Sequence[nn.Module], device: torch.device, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors of the product whose size holds most of these systems' parameters.

    Args:
        systems: The models.
        device: Device of the factors.
        rows: Number of rows; by default so many that the product takes a millisecond or more.

    Returns:
        Inputs (rows, inputs) and weights (outputs, inputs) for `torch.nn.functional.linear`.
    """
    inputs, outputs = _main_shape(systems)
    outputs = min(outputs, max(_MOST_WEIGHTS // inputs, 1))
    size = _CPU_SIZE if device.type == "cpu" else _DEVICE_SIZE
    rows = rows or max(min(size // (inputs * outputs), _MOST_ROWS), 16)
    return torch.ones(rows, inputs, device=device), torch.ones(outputs, inputs, device=device)


def _times(x: torch.Tensor, weight: torch.Tensor, device: torch.device) -> ProductTimes:
    times = {torch.float32: _seconds(x, weight)}
    try:
        times[torch.bfloat16] = _seconds(x.bfloat16(), weight.bfloat16())
    except (RuntimeError, TypeError):  # the device does not have this type
        times[torch.bfloat16] = float("inf")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        times[torch.bfloat16] = float("inf")
    return ProductTimes(
        shape=(len(x), x.shape[1], len(weight)),
        float32_s=times[torch.float32],
        bfloat16_s=times[torch.bfloat16],
    )


def _main_shape(systems: Sequence[nn.Module]) -> tuple[int, int]:
    """Return inputs and outputs of the linear layers that together have most parameters."""
    sizes: Counter[tuple[int, int]] = Counter()
    for system in systems:
        for module in system.modules():
            if isinstance(module, nn.Linear):
                outputs, inputs = module.weight.shape
                sizes[inputs, outputs] += inputs * outputs
    return max(sizes, key=lambda shape: sizes[shape]) if sizes else (256, 1024)


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the shortest time of a product, without the first one."""
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
        product[0, 0].item()  # wait until it is computed
    return time.perf_counter() - begin
