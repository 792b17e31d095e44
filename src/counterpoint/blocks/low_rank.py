"""Low-rank adapters (LoRA): small trained changes of linear maps whose own weights are frozen.

Source: LoRA (arXiv:2106.09685), section 4.1. As in Kyutai's moshi-finetune, all linear maps have
an adapter, the change is multiplied by a plain factor, and norms are not trained. The factors of a
map are called ``lora_A`` and ``lora_B`` and stand next to its ``weight``. Deviation: A is drawn
from ``N(0, 1 / in_features)``.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterpoint.blocks.depth import StepLinear
from counterpoint.blocks.quantized import Int8Linear, Int8StepLinear, store_int8
from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked

FACTOR_A = "lora_A.weight"
FACTOR_B = "lora_B.weight"
"""The names of a map's factors end with these; the name of the map itself ends with ``weight``."""


FrozenType = Literal["float32", "bfloat16", "int8"]
"""Type in which weights that are not trained are stored."""

_CODES = "codes"
_SCALE = "scale"
"""Ends of the names of the tensors of a map that is stored in 8 bits."""


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankConfig:
    """Shape of the adapters of a model.

    Attributes:
        rank: Number of features between the two factors of an adapter.
        scaling: Factor by which every change is multiplied.
        train_embeddings: Whether all embedding tables are trained too.
        frozen: Type of the linear maps and tables that are not trained. Maps in ``"bfloat16"`` also
            compute in that type. Maps in ``"int8"`` have one scale a row, and their model's tables
            are stored in bfloat16. Norms and adapters are always in float32.
    """

    rank: int = 128
    scaling: float = 2.0
    train_embeddings: bool = False
    frozen: FrozenType = "float32"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"`rank` must be >= 1: got {self.rank}. 128 is usual.")
        if not self.scaling > 0:
            raise UserError(f"`scaling` must be above 0: got {self.scaling}. 2 is usual.")


def add_low_rank(
    model: nn.Module, config: LowRankConfig, seed: int, trained: Container[str] = ()
) -> None:
    """Give every linear map an adapter and freeze everything else, in place.

    A map then computes ``base(x) + scaling * B(A(x))``. B starts at zero, so at first only the
    rounding of `LowRankConfig.frozen` changes the output.

    Args:
        model: Its maps are `torch.nn.Linear` and `StepLinear`.
        config: Shape of the adapters.
        seed: Seed of A.
        trained: Names of weights that are trained themselves; such a map gets no adapter.

    Raises:
        UserError: The model already has adapters.
    """
    if any(name.endswith(FACTOR_A) for name, _ in model.named_parameters()):
        raise UserError("A model with adapters cannot get others: merge those that it has first.")
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(config.train_embeddings)
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
    if config.frozen != "float32":
        _store_frozen(model, config.frozen)
    generator = torch.Generator().manual_seed(seed)
    for module in list(model.modules()):
        is_map = isinstance(module, nn.Linear | StepLinear | Int8Linear | Int8StepLinear)
        if is_map and not _is_trained(module):
            _adapt(module, config, generator)


def maps_without_adapter(model: nn.Module, weights: Container[str]) -> list[str]:
    """Return the names of the weights of a model's maps that have no adapter.

    Args:
        model: The model, with or without adapters, whose maps are not stored in 8 bits.
        weights: Names of all weights of such a model with adapters.
    """
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | StepLinear)
        and not name.endswith((".lora_A", ".lora_B"))
        and f"{name}.{FACTOR_A}" not in weights
    ]


def _is_trained(module: nn.Module) -> bool:
    """Return whether a weight of a map is trained itself."""
    return any(one.requires_grad for one in module.parameters(recurse=False))


def _store_frozen(model: nn.Module, frozen: FrozenType) -> None:
    """Store frozen weights in a smaller type, and all other weights in float32."""
    if frozen == "int8":
        store_int8(model, {module for module in model.modules() if _is_trained(module)})
    for module in model.modules():
        is_small = isinstance(module, nn.Linear | StepLinear | nn.Embedding)
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_kept = is_small and not parameter.requires_grad
            stored = parameter.detach().to(torch.bfloat16 if is_kept else torch.float32)
            setattr(module, name, nn.Parameter(stored, parameter.requires_grad))
            if is_kept and isinstance(module, nn.Embedding):
                module.register_forward_hook(_in_float32)
            elif is_kept:
                module.register_forward_pre_hook(_in_type_of_weight)


def _in_float32(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Convert rows of a table to float32, so that their sum is not rounded."""
    return output.float()


def _in_type_of_weight(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])


def _adapt(module: Any, config: LowRankConfig, generator: torch.Generator) -> None:
    """Give a map its two factors, in float32."""
    held = module.codes if isinstance(module, Int8Linear | Int8StepLinear) else module.weight
    width_in = held.shape[1]
    width_out = module.out_features
    rank = config.rank
    down: nn.Linear | StepLinear
    up: nn.Linear | StepLinear
    with shapes_only():
        if isinstance(module, StepLinear | Int8StepLinear):
            down = StepLinear(width_in, rank, module.schedule)
            up = StepLinear(rank, width_out, module.schedule)
        else:
            down = nn.Linear(width_in, rank, bias=False)
            up = nn.Linear(rank, width_out, bias=False)
    start = torch.randn(down.weight.shape, generator=generator) * width_in**-0.5
    down.weight = nn.Parameter(start.to(held.device))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=held.device))
    module.lora_A = down
    module.lora_B = up
    module.lora_scaling = config.scaling
    # A hook keeps the module and the names of its weights as they were.
    module.register_forward_hook(_add_change)


def _add_change(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Add the adapter's change to the output of a map.

    ``inputs`` are x and, for a `StepLinear`, the number of the first step and the number of steps.
    """
    x = inputs[0]
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(module.lora_A.weight.dtype)
    change = module.lora_B(module.lora_A(x, *inputs[1:]), *inputs[1:2])
    return output + module.lora_scaling * change


@torch.no_grad()
def merged_weights(weights: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Return the weights of the same model without adapters.

    Args:
        weights: State of a model with or without adapters; its maps may be stored in 8 bits.
        scaling: Factor by which every change is multiplied.

    Returns:
        All weights except the factors. The change of an adapter is added to its map, computed in
        float32 or a wider type. Maps of 8 bits become bfloat16.
    """
    merged: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module, _, end = name.rpartition(".")
        dot = module + "." if module else ""
        is_stored = dot + _CODES in weights and end in (_CODES, _SCALE)
        if name.endswith((FACTOR_A, FACTOR_B)) or (is_stored and end == _SCALE):
            continue
        dtype = weight.dtype
        if is_stored:
            weight = weight * weights[dot + _SCALE][:, None]
            dtype = torch.bfloat16
        if (is_stored or end == "weight") and dot + FACTOR_A in weights:
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            change = _change(weights[dot + FACTOR_A], weights[dot + FACTOR_B], exact.dtype)
            weight = exact + scaling * change
        merged[dot + "weight" if is_stored else name] = weight.to(dtype)
    return merged


def _change(down: Tensor, up: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product of two factors, for each weight set of a `StepLinear`."""
    num_sets = len(down) // up.shape[1]
    sets = torch.bmm(
        up.to(dtype).unflatten(0, (num_sets, len(up) // max(num_sets, 1))),
        down.to(dtype).unflatten(0, (num_sets, up.shape[1])),
    )
    return sets.flatten(0, 1)
