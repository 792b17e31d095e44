"""The number of threads in which a CPU computes: as many as make products faster now.

Threads wait for each other after every product. If other programs use the cores, one of them waits
for its core, and the others for it: on a busy machine with two cores a step took 40 times as long
with two threads as with one. Therefore products of the run's own size are measured with one thread,
with two, and so on, as long as more of them are faster.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from counterpoint.train.checkpoint import begun_with
from counterpoint.train.distributed import World
from counterpoint.train.precision import main_product

_FASTER = 0.8  # of the time with fewer threads; the cores may become busy later
_MUCH_SLOWER = 2.0  # from this factor on, a run is not continued with its number
_ROUNDS = 8
_SECONDS = 0.02  # of each number of threads in a round; the cores change hands every few ms
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

Measure = Callable[[Sequence[int]], Mapping[int, float]]
"""A function that returns the seconds of a product for some numbers of threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadChoice:
    """The number of threads of a run.

    Attributes:
        num_threads: The number.
        why: What the user is told; empty if there was nothing to choose.
    """

    num_threads: int
    why: str = ""


def choose_threads(most: int, begun: int | None, fixed_by: str, measure: Measure) -> ThreadChoice:
    """Choose the number of threads in which a run computes.

    Args:
        most: Largest number: that of torch.
        begun: The number with which it has computed so far, if it is continued.
        fixed_by: What the user has fixed ``most`` with; empty if it is torch's own number.
        measure: See `time_threads`; it is called only if it matters.
    """
    if fixed_by:
        return _fixed(most, begun, fixed_by, measure)
    if begun == 1 and most > 1:
        return ThreadChoice(num_threads=1, why="with 1 thread, as the run began")
    if begun is not None and 1 < begun <= most:
        slower = _ratio(measure, begun, 1)
        if slower <= _MUCH_SLOWER:
            return ThreadChoice(num_threads=begun, why=f"with {begun} threads, as the run began")
        why = f"with 1 thread, although the run began with {begun}: they take {_times(slower)} now"
        return ThreadChoice(num_threads=1, why=why)
    choice = _fastest(most, measure)
    if begun in (None, choice.num_threads):
        return choice
    why = f"with {_spelled(choice.num_threads)}, although the run began with {begun}"
    return replace(choice, why=f"{why}: {most} can be had here")


def _fixed(most: int, begun: int | None, fixed_by: str, measure: Measure) -> ThreadChoice:
    """Keep the user's number, and say what argues against it."""
    if begun not in (None, most):
        why = f"with {_spelled(most)}, as {fixed_by} says, although the run began with {begun}"
        return ThreadChoice(num_threads=most, why=why)
    slower = _ratio(measure, most, 1) if most > 1 else 1.0
    why = f"with {most} threads, as {fixed_by} says, but one takes less: they take {_times(slower)}"
    return ThreadChoice(num_threads=most, why=why if slower > _MUCH_SLOWER else "")


def _fastest(most: int, measure: Measure) -> ThreadChoice:
    """Take twice as many threads as long as they are clearly faster."""
    best = 1
    why = ""
    while best < most:
        more = min(2 * best, most)
        ratio = _ratio(measure, more, best)
        if ratio > _FASTER:
            why = f"with {_spelled(best)}: {more} take {_times(ratio)}"
            break
        why = f"with {more} of {most} threads: they take {_times(ratio)} of {best}"
        best = more
    return ThreadChoice(num_threads=best, why=why)


def _ratio(measure: Measure, more: int, fewer: int) -> float:
    seconds = measure((fewer, more))
    return seconds[more] / seconds[fewer]


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times the time"


def _spelled(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def settle_threads(
    systems: Sequence[nn.Module], folders: Sequence[Path], world: World
) -> tuple[World, str]:
    """Choose the number of threads for some runs; all processes must call this.

    Args:
        systems: The models that are trained.
        folders: Run folders; the first one that has a checkpoint tells how the runs began.
        world: The processes; the first one decides.

    Returns:
        The processes with their number of threads, which `computing` sets, and what the user is
        told. If the number was chosen before, or the device is no CPU, nothing is chosen.
    """
    if world.num_threads is not None or not world.on_cpu:
        return world, ""
    choice = None
    if world.is_first:
        begun = begun_with(folders, _threads_of)
        most = torch.get_num_threads()
        choice = choose_threads(
            most, begun, fixed_by(), lambda numbers: time_threads(systems, numbers)
        )
    found: ThreadChoice = world.from_first(choice)
    return replace(world, num_threads=found.num_threads), found.why


def in_one_line(precision: str, threads: str) -> str:
    """Return what the user is told of the type of products and of the threads; may be empty."""
    if not (precision and threads):
        return precision or (threads and f"computing {threads}")
    return f"{precision}; {threads}"


@contextmanager
def computing(num_threads: int | None) -> Iterator[None]:
    """Compute with a number of threads in the block; ``None`` leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if num_threads is None else num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fixed_by() -> str:
    """Return what the user has fixed the number of threads with; empty if it is torch's own.

    Torch takes a thread for each core, or for each half of a core if that is all it knows. A
    smaller number was set by the program. One that equals torch's own is taken for torch's.
    """
    for name in _VARIABLES:
        if os.environ.get(name):
            return name
    return "torch.set_num_threads" if torch.get_num_threads() < _num_cores() else ""


def _num_cores() -> int:
    """Return the number of cores that this process may use; two halves of a core count as one."""
    if not hasattr(os, "sched_getaffinity"):
        return (os.cpu_count() or 1) // 2  # some cores may be slow ones, which torch leaves out
    own = os.sched_getaffinity(0)
    folders = [Path(f"/sys/devices/system/cpu/cpu{number}/topology") for number in own]
    try:
        names = ("physical_package_id", "core_id")
        return len({tuple((one / name).read_text() for name in names) for one in folders})
    except OSError:
        return len(own) // 2


def _threads_of(manifest: Mapping[str, Any]) -> int | None:
    found = manifest.get("num_threads")
    return found if isinstance(found, int) and found > 0 else None


def time_threads(
    systems: Sequence[nn.Module], numbers: Sequence[int], rows: int | None = None
) -> dict[int, float]:
    """Return the mean seconds of a product of these systems' size, by the number of threads.

    The numbers take turns, so that what other programs do concerns all of them. The mean counts and
    not the shortest time, because threads that wait are what is looked for.

    Args:
        systems: Models, whose products have the size that holds most of their parameters.
        numbers: Numbers of threads.
        rows: Rows of the product; many by default.
    """
    x, weight = main_product(systems, torch.device("cpu"), rows)
    seconds = dict.fromkeys(numbers, 0.0)
    products = dict.fromkeys(numbers, 0)
    for _ in range(_ROUNDS):
        for number in numbers:
            with computing(number):
                nn.functional.linear(x, weight)  # the threads begin
                begin = time.perf_counter()
                took = 0.0
                while took < _SECONDS:
                    nn.functional.linear(x, weight)
                    products[number] += 1
                    took = time.perf_counter() - begin
                seconds[number] += took
    return {number: seconds[number] / products[number] for number in numbers}
