"""The study `front_loading` at the size of a CPU."""

from dataclasses import replace

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.front_loading import FrontLoading, front_loading
from counterpoint.systems.single_stream import SingleStreamConfig


def front_loading_small() -> FrontLoading:
    """Return the study at the size of a CPU: 0.13 M parameters, the cross, two seeds."""
    tower = TowerConfig(width=64, num_layers=2, num_heads=4, mlp_hidden=168, window=256)
    full = front_loading()
    return replace(
        full,
        name="front_loading_small",
        system=SingleStreamConfig(tower=tower),
        pretrain_tokens=300_000,
        tuning_tokens=40_000,
        num_unique=3000,
        num_items=24,
        num_samples=2,
        groups=("cross",),
        seeds=(0, 1),
    )
