"""Finite scalar quantisation: a vector becomes a few numbers, each rounded to one of few levels."""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.errors import UserError


class FiniteScalarQuantizer(nn.Module):
    """A bottleneck of a few numbers with finitely many values, between two linear maps.

    Every number is squashed and rounded to one of its levels; the gradient passes the rounding
    unchanged. There is no table of codes, so no entry of one can remain unused.

    Source: arXiv:2309.15505, section 3.1 and appendix A.1.

    Args:
        width: Number of features of a vector.
        levels: Number of levels of each number; their product is the number of codes.

    Raises:
        UserError: There is no number, or one has fewer than three levels.
    """

    def __init__(self, width: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise UserError(f"A code needs numbers of at least 3 levels each: got {levels}.")
        self.num_codes = prod(levels)
        self.down = nn.Linear(width, len(levels), bias=False)
        self.up = nn.Linear(len(levels), width, bias=False)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        sizes = torch.tensor(levels)
        steps = [prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        self.sizes: Tensor
        self.steps: Tensor

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Return each vector as its code represents it."""
        half = self.sizes // 2
        value: Tensor = self.up((self._rounded(x) / half).to(x.dtype))
        return value

    def codes(self, x: Float[Tensor, "*B D"]) -> Int[Tensor, "*B"]:
        """Return the code of each vector, 0 to ``num_codes - 1``."""
        digits = self._rounded(x).long() + self.sizes // 2
        return (digits * self.steps).sum(-1)

    def decode(self, codes: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """Return the vectors that `forward` returns for vectors with these codes."""
        half = self.sizes // 2
        digits = codes[..., None] // self.steps % self.sizes - half
        value: Tensor = self.up((digits / half).to(self.up.weight.dtype))
        return value

    def _rounded(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B C"]:
        """Return integers from ``-(levels // 2)`` in float32, with the gradient of the squash."""
        numbers = self.down(x).float()
        # With an even number of levels the middle lies half a step away; the shift keeps 0 at 0.
        offset = (1 - self.sizes % 2) / 2
        most = (self.sizes - 1) / 2 * (1 + 1e-3)
        squashed = torch.tanh(numbers + torch.atanh(offset / most)) * most - offset
        return squashed + (squashed.round() - squashed).detach()
