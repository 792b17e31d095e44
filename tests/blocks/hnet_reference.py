"""Numbers of the published H-Net code, and the inputs that they belong to.

`hnet_numbers.json` was made by goombalab/hnet at 3673fe1, in float32 on CPU: `RoutingModule`,
`ChunkLayer`, `DeChunkLayer`, `load_balancing_loss`, and outputs and gradients of the class `HNet`.
What cannot run on CPU was replaced: the kernel of Mamba-2 by its recurrence
``h = exp(dt A) h + dt B x``, written as a loop, and the networks between chunkers by `mixing`.
"""

import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def numbers() -> dict[str, Any]:
    """What the published code gave."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("hnet_numbers.json").read_text())
    return found


def wave(*shape: int, k: float = 1.0) -> Tensor:
    """Numbers between -1 and 1 without a pattern that a shift would repeat."""
    i = torch.arange(prod(shape), dtype=torch.float64)
    return torch.sin(k * (i * i % 97) + 0.3 * i).float().view(shape)


def near_identity(width: int, k: float) -> Tensor:
    """A map of a router."""
    return torch.eye(width) + 0.5 * wave(width, width, k=k)


def mixing(x: Tensor, *unused: Any) -> Tensor:
    """A causal network of two taps in place of a tower: ``tanh(1.5 x[t] - 0.7 x[t-1])``."""
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    return torch.tanh(1.5 * x - 0.7 * before)
