"""Tiny systems with random weights everywhere, so that nothing is hidden by a zero."""

from typing import Any

import torch
from torch import nn

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig

VOCAB = 23
BLOCK = 4


def tower(window: int, width: int = 16) -> TowerConfig:
    return TowerConfig(width=width, num_layers=2, num_heads=2, mlp_hidden=24, window=window)


def randomise(system: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in system.parameters():
        nn.init.normal_(parameter, std=0.3)
    system.eval()


def single_stream(window: int = 16) -> SingleStream:
    system = SingleStream(SingleStreamConfig(tower=tower(window), vocab_size=VOCAB))
    randomise(system)
    return system


def two_stream(lag_blocks: int = 1, **changes: Any) -> TwoStream:
    fields: dict[str, Any] = {
        "part": tower(8),
        "whole": tower(6, width=24),
        "lower_layers": 1,
        "block_ticks": BLOCK,
        "lag_blocks": lag_blocks,
        "compressor": "mean",
        "vocab_size": VOCAB,
    }
    system = TwoStream(TwoStreamConfig(**(fields | changes)))
    randomise(system)
    return system
