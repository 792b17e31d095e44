"""Compiled sessions: the methods that run at every tick become compiled graphs."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from counterpoint.streams.spec import Role
from counterpoint.systems.contract import System

MOST_BATCH_SIZES = 4  # torch gives up after 8 graphs; a size has two, with and without `lengths`


def compile_ticks(system: System) -> None:
    """Compile, in place, how a model reads and writes one tick; longer chunks are not compiled.

    The compiled methods are those of `System.tick_stages`. A `TwoStream` has three, so that its
    whole tower still runs only when a block is finished; a `Moshi` has one that reads a frame and
    one that writes it. The first tick of each of the first four batch sizes takes the compiler's
    time (half a minute for a small model on a CPU); other sizes are not compiled. Results are equal
    to float tolerance. Compiling pays for models whose ticks are bound by the number of operations.
    Compiled attention reads whole rings, so a long window makes it slower.

    Source: `torch.compile`, inductor.
    """
    # A tick of a tiny text model on a CPU consists mostly of calls; made from C++ instead of
    # Python they are 1.1 to 1.2 times as fast.
    from_cpp = system.device.type == "cpu" and not system.layout.by_role(Role.SPOKEN)
    for name in system.tick_stages:
        setattr(system, name, _at_single_ticks(getattr(system, name), from_cpp))


def _at_single_ticks(stage: Callable[..., Any], from_cpp: bool) -> Callable[..., Any]:
    """Return a stage that uses its compiled form for chunks of one tick."""
    # The ways in which sessions choose ids have more forms than torch compiles. Without
    # `fullgraph` the other forms run uncompiled.
    options: dict[str, Any] = {"cpp_wrapper": from_cpp}
    whole = stage.__name__ != "write"
    compiled = torch.compile(stage, fullgraph=whole, dynamic=False, options=options)
    sizes = set[int]()

    @wraps(stage)
    def either(chunk: Any, state: Any, *rest: Any, **named: Any) -> Any:
        num_rows, num_ticks = _rows_and_ticks(chunk)
        if num_ticks == 1 and len(sizes) < MOST_BATCH_SIZES:
            sizes.add(num_rows)
        known = num_ticks == 1 and num_rows in sizes
        return (compiled if known else stage)(chunk, state, *rest, **named)

    return either


def _rows_and_ticks(chunk: Any) -> tuple[int, int]:
    """Return the numbers of rows and ticks of a chunk: ticks by stream, hidden states or states."""
    if isinstance(chunk, Tensor):
        return len(chunk), 1
    first = next(iter(chunk.values())) if isinstance(chunk, Mapping) else chunk[0]
    return first.shape[0], first.shape[1]
