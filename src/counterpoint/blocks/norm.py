"""Root mean square normalisation."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scale vectors to unit root mean square, then by a learned weight.

    Source: arXiv:1910.07467.
    """

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        """Weights of one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Normalise the last axis; statistics in float32, result in the input's dtype."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.epsilon)
