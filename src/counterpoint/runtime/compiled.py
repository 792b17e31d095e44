"""Compiled sessions: what a model does at a single tick, as one or a few compiled graphs."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.systems.moshi import Moshi
from counterpoint.systems.two_stream import LowerStates, TwoStream

MOST_BATCH_SIZES = 4  # torch gives up after 8 graphs; a size has two, with and without `lengths`


def compile_ticks(system: nn.Module) -> None:
    """Compile, in place, how a model reads one tick; longer chunks stay as they are.

    A `TwoStream` becomes three graphs, so that its whole tower still runs only when a block is
    finished; a `Moshi` two, one that reads a frame and one that writes it. The first tick of each
    of the first four batch sizes takes the compiler's time (half a minute for a small model on a
    CPU); other sizes stay as they are. Results are equal to float tolerance. It pays for models
    whose ticks are bound by the number of operations; attention looks at whole rings, so that a
    long window makes it slower.

    Source: `torch.compile`, inductor.
    """
    stages: tuple[str, ...]
    match system:
        case TwoStream():
            stages = ("extend_lower", "extend_whole", "extend_upper")
        case Moshi():
            stages = ("read", "write")
        case _:
            stages = ("extend",)
    # Text on CPUs: a tick of a tiny model is made of calls, and with those from C++ instead of
    # Python it is 1.1 to 1.2 times as fast.
    from_cpp = next(system.parameters()).is_cpu and not isinstance(system, Moshi)
    for name in stages:
        setattr(system, name, _at_single_ticks(getattr(system, name), from_cpp))


def _at_single_ticks(stage: Callable[..., Any], from_cpp: bool) -> Callable[..., Any]:
    """A stage that is compiled where its chunk is one tick."""
    # How sessions choose what is written has more forms than torch compiles: others stay as they
    # are, which is no error without `fullgraph`.
    options: dict[str, Any] = {"cpp_wrapper": from_cpp}
    whole = stage.__name__ != "write"
    compiled = torch.compile(stage, fullgraph=whole, dynamic=False, options=options)
    sizes = set[int]()

    @wraps(stage)
    def either(chunk: Any, state: Any, *rest: Any, **named: Any) -> Any:
        match chunk:
            case LowerStates():
                num_rows, num_ticks = chunk.x.shape[:2]
            case Tensor():  # what is written is one tick
                num_rows, num_ticks = len(chunk), 1
            case _:
                num_rows, num_ticks = next(iter(chunk.values())).shape[:2]
        if num_ticks == 1 and len(sizes) < MOST_BATCH_SIZES:
            sizes.add(num_rows)
        known = num_ticks == 1 and num_rows in sizes
        return (compiled if known else stage)(chunk, state, *rest, **named)

    return either
