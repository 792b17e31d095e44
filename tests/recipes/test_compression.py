"""The grid of compressors: every cell is there once, and costs what the others cost."""

from itertools import product
from typing import get_args

from counterpoint.blocks.compress import Kind
from counterpoint.recipes.compression import (
    RATES,
    ROW_TICKS,
    WITH_SLOTS,
    compression_arms,
    compression_system,
)
from counterpoint.systems import sketch


def test_every_compressor_meets_every_rate_once() -> None:
    arms = compression_arms()
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    fixed = [arm for arm in arms if arm.ends == "fixed"]
    for rate, kind in product(RATES, get_args(Kind)):
        own = [arm for arm in fixed if arm.rate == rate and arm.compressor == kind]
        plain = sorted(arm.num_slots for arm in own if not arm.coded)
        assert plain == ([1, 2] if kind in WITH_SLOTS else [1])
    assert [arm.rate for arm in arms[:4]] == [8] * 4


def test_all_arms_cost_the_same_training_flops() -> None:
    arms = compression_arms()
    costs = [
        sketch(compression_system(arm)).flops_per_tick(ROW_TICKS, training=True) for arm in arms
    ]
    for arm, cost in zip(arms, costs, strict=True):
        assert abs(cost / costs[0] - 1) < 0.05, arm.name


def test_a_block_has_the_rate_of_its_arm() -> None:
    for arm in compression_arms():
        config = compression_system(arm)
        assert ROW_TICKS % config.block_ticks == 0
        assert config.ends_early == (arm.ends != "fixed")
        if arm.ends == "fixed":
            assert config.block_ticks == arm.rate
        assert bool(config.code_levels) == arm.coded
