"""Pairs of all options of Multi-Token Attention, and random kernels and documents for them."""

from typing import Any

import torch
from torch import Tensor

from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.multi_token_attention_rows import Kernels
from tests.blocks.covering import covering_rows

OPTIONS: dict[str, list[Any]] = {
    "conv_before": [True, False],
    "conv_after": [True, False],
    "mix_before": [True, False],
    "mix_after": [True, False],
    "kernel": [(6, 11), (2, 3), (1, 5), (4, 1)],
    "num_kv_heads": [None, 2, 1],
    "group_heads": [None, 2, 1],
    "head_norm": ["none", "plain", "gate", "depth"],
    "window": [12, 40, 500],
    "packed": [False, True],
}
CASES = covering_rows(OPTIONS)


def config_of(case: dict[str, Any], **changes: Any) -> MultiTokenConfig:
    fields = {name: value for name, value in case.items() if name not in ("window", "packed")}
    num_queries, num_keys = fields.pop("kernel")
    fields |= {"num_queries": num_queries, "num_keys": num_keys, "conv_every": 1} | changes
    return MultiTokenConfig(**fields)


def starts(num_rows: int, num_steps: int, packed: bool) -> Tensor:
    """First step of every step's document; the last documents are short."""
    first = torch.zeros(num_rows, num_steps, dtype=torch.long)
    if packed:
        for row in range(num_rows):
            for at in sorted(torch.randperm(num_steps - 1)[:4].tolist()):
                first[row, at + 1 :] = at + 1
    return first


def random_kernels(case: dict[str, Any], num_heads: int = 4) -> Kernels:
    """Kernels and maps near the identity, in float64."""
    attention = config_of(case).build(
        MixerShape(width=16, num_heads=num_heads, window=500, capacity=600)
    )
    return Kernels(
        *(
            None if kernel is None else kernel.detach().double() + 0.2 * torch.randn(kernel.shape)
            for kernel in attention.kernels
        )
    )
