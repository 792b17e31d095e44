"""Low-rank adapters: linear maps that stay as they are, beside a small change that is trained.

Source: LoRA (arXiv:2106.09685), section 4.1. As in Kyutai's moshi-finetune all linear maps have
one, the change is scaled by a plain factor, and norms are not trained. The factors of a map are
called ``lora_A`` and ``lora_B``, beside its ``weight``. Deviation: A starts at
``N(0, 1 / in_features)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.blocks.depth import StepLinear
from counterpoint.errors import UserError

FACTOR_A = "lora_A.weight"
FACTOR_B = "lora_B.weight"
"""Ends of the names of a map's factors, where that of the map itself is ``weight``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankConfig:
    """Adapters of a model.

    Attributes:
        rank: Features between the two factors of a change.
        scaling: Factor of every change.
        train_embeddings: Train embedding tables too, all of them.
    """

    rank: int = 128
    scaling: float = 2.0
    train_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"`rank` must be >= 1: got {self.rank}. 128 is usual.")
        if not self.scaling > 0:
            raise UserError(f"`scaling` must be above 0: got {self.scaling}. 2 is usual.")


def add_low_rank(model: nn.Module, config: LowRankConfig, seed: int) -> None:
    """Give every linear map an adapter, and let nothing else be trained, in place.

    A map then gives ``base(x) + scaling * B(A(x))``. B is zero, so that nothing changes at first.

    Args:
        model: Made of `torch.nn.Linear` and `StepLinear`.
        config: The adapters.
        seed: Decides A.

    Raises:
        UserError: The model has adapters.
    """
    if any(name.endswith(FACTOR_A) for name, _ in model.named_parameters()):
        raise UserError("A model must have no adapters to be given some: merge those that it has.")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(model.modules()):
        if isinstance(module, nn.Embedding):
            module.requires_grad_(config.train_embeddings)
        elif isinstance(module, nn.Linear | StepLinear):
            _adapt(module, config, generator)


def _adapt(module: Any, config: LowRankConfig, generator: torch.Generator) -> None:
    width_in = module.weight.shape[1]
    width_out = module.out_features
    rank = config.rank
    down: nn.Linear | StepLinear
    up: nn.Linear | StepLinear
    with torch.device("meta"):
        if isinstance(module, StepLinear):
            down = StepLinear(width_in, rank, module.schedule)
            up = StepLinear(rank, width_out, module.schedule)
        else:
            down = nn.Linear(width_in, rank, bias=False)
            up = nn.Linear(rank, width_out, bias=False)
    weight = module.weight
    for factor in (down, up):
        factor.to(weight.dtype).to_empty(device=weight.device)
    with torch.no_grad():
        start = torch.randn(down.weight.shape, generator=generator) * width_in**-0.5
        down.weight.copy_(start)
        up.weight.zero_()
    module.lora_A = down
    module.lora_B = up
    module.lora_scaling = config.scaling
    # A hook, so that the map stays the module it was, under the names it had.
    module.register_forward_hook(_add_change)


def _add_change(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """``inputs`` are x, and for a `StepLinear` the number of the first step and of steps."""
    change = module.lora_B(module.lora_A(*inputs), *inputs[1:2])
    return output + module.lora_scaling * change


@torch.no_grad()
def merged_weights(weights: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The state of the same model without adapters.

    Args:
        weights: State of a model with adapters, or without any.
        scaling: Factor of every change.

    Returns:
        All weights but the factors; those that have some are changed, computed in float32 at least.
    """
    merged: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.endswith((FACTOR_A, FACTOR_B)):
            continue
        merged[name] = weight
        module = name.removesuffix("weight")
        if module + FACTOR_A in weights:
            down = weights[module + FACTOR_A]
            up = weights[module + FACTOR_B]
            exact = torch.promote_types(weight.dtype, torch.float32)
            num_sets = len(down) // up.shape[1]  # stacked weights of a `StepLinear`
            change = torch.bmm(
                up.to(exact).unflatten(0, (num_sets, len(up) // max(num_sets, 1))),
                down.to(exact).unflatten(0, (num_sets, up.shape[1])),
            )
            merged[name] = (weight.to(exact) + scaling * change.flatten(0, 1)).to(weight.dtype)
    return merged
