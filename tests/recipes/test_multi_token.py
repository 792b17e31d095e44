"""The studies of Multi-Token Attention have comparable arms."""

import pytest

from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.recipes.block_search import block_study
from counterpoint.recipes.loading import load_recipe
from counterpoint.recipes.study import training_flops
from counterpoint.systems.single_stream import SingleStreamConfig


@pytest.mark.parametrize("name", ["block_search", "multi_token"])
def test_arms_have_equal_flops_within_what_the_study_allows(name: str) -> None:
    study = load_recipe(name)
    flops = training_flops(study)
    assert list(flops) == [run.name for run in study.arms]


def test_kernels_cover_both_sides_of_a_block() -> None:
    system = block_study(8, 50).arms[1].system
    assert isinstance(system, SingleStreamConfig)
    mixer = system.tower.mixer
    assert isinstance(mixer, MultiTokenConfig)
    assert (mixer.num_queries, mixer.num_keys) == (2, 15)
