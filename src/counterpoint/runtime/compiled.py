"""Compiled sessions: what a model does at a single tick, as one or a few compiled graphs."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from counterpoint.systems.two_stream import LowerStates, TwoStream


def compile_ticks(system: nn.Module) -> None:
    """Compile, in place, how a model reads one tick; longer chunks stay as they are.

    A `TwoStream` becomes three graphs, so that its whole tower still runs only when a block is
    finished. The first tick of each batch size takes the compiler's time (half a minute for a small
    model on a CPU); afterwards a tick of a small model costs half as much. Results stay equal to
    float tolerance. Attention looks at whole rings: a model with a long window gains less.

    Source: `torch.compile`, inductor.
    """
    stages = (
        ("extend_lower", "extend_whole", "extend_upper")
        if isinstance(system, TwoStream)
        else ("extend",)
    )
    for name in stages:
        setattr(system, name, _at_single_ticks(getattr(system, name)))


def _at_single_ticks(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage of `extend` that is compiled where its chunk is one tick."""
    compiled = torch.compile(stage, fullgraph=True, dynamic=False)

    @wraps(stage)
    def either(chunk: Any, state: Any, *rest: Any, **named: Any) -> Any:
        ids = chunk.x if isinstance(chunk, LowerStates) else next(iter(chunk.values()))
        return (compiled if ids.shape[1] == 1 else stage)(chunk, state, *rest, **named)

    return either
