"""Tiny systems, units and corpora for the tests of evaluation and recipes."""

from typing import TypeVar

import numpy as np
import torch
from torch import nn

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.text.shards import Unit
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig

M = TypeVar("M", bound=nn.Module)

LENGTHS = ByteTokenizer().byte_lengths


def tower(width: int, window: int, num_layers: int = 1) -> TowerConfig:
    return TowerConfig(
        width=width, num_layers=num_layers, num_heads=2, mlp_hidden=2 * width, window=window
    )


def single_config() -> SingleStreamConfig:
    return SingleStreamConfig(tower=tower(16, window=8, num_layers=2))


def two_config(
    lag_blocks: int = 0, whole_dropout: float = 0.1, boundary_ids: tuple[int, ...] = ()
) -> TwoStreamConfig:
    return TwoStreamConfig(
        part=tower(16, window=8, num_layers=2),
        whole=tower(24, window=32),
        lower_layers=1,
        block_ticks=4,
        lag_blocks=lag_blocks,
        whole_dropout=whole_dropout,
        boundary_ids=boundary_ids,
    )


def shaken(system: M, scale: float = 0.3) -> M:
    """Random parameters everywhere, also where training starts from zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return system.eval()


def single() -> SingleStream:
    return shaken(SingleStream(single_config()))


def two(
    lag_blocks: int = 0, whole_dropout: float = 0.1, boundary_ids: tuple[int, ...] = ()
) -> TwoStream:
    return shaken(TwoStream(two_config(lag_blocks, whole_dropout, boundary_ids)))


def deaf(system: TwoStream) -> TwoStream:
    """Cut everything that leads from the whole to the part."""
    with torch.no_grad():
        system.steering.plan.weight.zero_()
        system.steering.no_plan.zero_()
        for link in system.steering.links:
            link.out.weight.zero_()
    return system


def unit(num_bytes: int, title: str, seed: int = 0) -> Unit:
    text = np.random.default_rng(seed).integers(97, 123, num_bytes)
    tokenizer = ByteTokenizer()
    ids = np.concatenate(([tokenizer.start_id], text, [tokenizer.end_id])).astype(np.int64)
    return Unit(title=title, heading=f"{title} {seed}", ids=ids, num_bytes=num_bytes)


def units() -> list[Unit]:
    """Two books with chapters of odd lengths."""
    sizes = ((70, "Ann"), (33, "Ann"), (101, "Bob"), (50, "Bob"), (64, "Ann"))
    return [unit(size, title, seed) for seed, (size, title) in enumerate(sizes)]
