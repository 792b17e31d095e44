"""Gated feed-forward network."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix product.

    Source: GLU Variants (arXiv:2002.05202), SwiGLU without biases.
    """

    def __init__(self, width: int, hidden: int) -> None:
        """Make a network from ``width`` to ``width`` features with ``hidden`` gated features."""
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Apply the network to the last axis."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)
