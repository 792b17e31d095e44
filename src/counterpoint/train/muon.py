"""Muon with batched products: all matrices of one shape are updated together."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint.errors import UserError
from counterpoint.train.distributed import gathered, shard_like

_STEPS = 5
_A = 3.4445
_B = -4.7750
_C = 2.0315
_EPSILON = 1e-7


class Muon(Optimizer):
    """Orthogonalised momentum: the arithmetic of `torch.optim.Muon` in batched products.

    Torch updates one matrix after another, in products that are too small to be fast and never use
    several threads; at the first run's 2,048 bytes a step that took 20 to 26 % of the time of a
    step on two cores. Here all matrices of one shape are stacked. Each update equals torch's except
    for the last bits of bfloat16 (`tests/train/test_muon.py`), the type that torch uses; float32 is
    for machines on which bfloat16 is slow.

    Source: https://kellerjordan.github.io/posts/muon, with learning rates scaled by shape as there.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float,
        weight_decay: float = 0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Make an optimiser of matrices, or of groups of them with their own rates.

        Args:
            params: Matrices, or groups as `torch.optim.Optimizer` takes them.
            lr: Learning rate.
            momentum: Share of the mean of earlier gradients that is kept at each step.
            weight_decay: Share of each weight, multiplied by the learning rate, that is taken off
                at each step.
            dtype: Type of the products.

        Raises:
            UserError: A parameter is not a matrix.
        """
        self._dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise UserError(f"Muon takes matrices only: got {tuple(parameter.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        if closure is not None:
            raise UserError("Muon computes no loss: call the closure before, not here.")
        stacks: dict[torch.Size, list[tuple[nn.Parameter, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                rows, columns = parameter.shape
                update = self._momentum(parameter, parameter.grad, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                stacks[parameter.shape].append((parameter, update, lr))
        for shape, stack in stacks.items():
            updates = torch.empty(len(stack), *shape, dtype=self._dtype, device=stack[0][1].device)
            for place, (_, update, _) in zip(updates, stack, strict=True):
                place.copy_(gathered(update))
            for update, (parameter, _, lr) in zip(orthogonal(updates), stack, strict=True):
                parameter.add_(shard_like(update, parameter), alpha=-lr)

    def _momentum(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Return Nesterov's update, and update the moment."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        moment: Tensor = state["momentum_buffer"]
        moment.lerp_(gradient, 1 - momentum)
        return gradient.lerp(moment, momentum)


def product_flops(shape: Sequence[int]) -> float:
    """Return the FLOPs of the products that `orthogonal` takes for one matrix of a shape."""
    short, long = sorted(shape)
    return _STEPS * (4.0 * short * short * long + 2.0 * short**3)


def orthogonal(x: Tensor) -> Tensor:
    """Return matrices (N, m, n) with all singular values near 1 (0.7 to 1.2).

    Five steps of the Newton-Schulz iteration, with the coefficients that are steepest at zero, on
    the shorter side. Matrices are not transposed, because copies would cost more than they save.
    """
    tall = x.shape[1] > x.shape[2]
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = x.mT @ x if tall else x @ x.mT
        change = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.baddbmm(x, *((x, change) if tall else (change, x)), beta=_A)
    return x
