"""block_search: the toy task of Multi-Token Attention, with plain attention beside it."""

from dataclasses import replace

from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.block_search import BlockSearch
from counterpoint.data.tasks.source import TaskData
from counterpoint.recipes.study import Study
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run


def block_search() -> Study:
    """Train plain and Multi-Token Attention to find one of 50 blocks; see `block_study`."""
    return block_study(block_letters=5, num_blocks=50)


def block_study(block_letters: int, num_blocks: int, width: int = 64) -> Study:
    """Train both kinds of attention with five seeds each.

    The kernels are those of the paper: two queries and both sides of a block, before the softmax
    only, in every layer, without mixing or normalisation of heads. The model has a quarter of its
    width by default, and the optimiser is ours. Counted FLOPs differ, because the chunked form
    skips most of the pairs that are masked.

    Args:
        block_letters: Number of letters of a block; the paper has 5 and 8.
        num_blocks: Number of blocks; the paper has up to 50.
        width: Width of the model; the paper has 256.
    """
    task = BlockSearch(num_blocks=num_blocks, block_letters=block_letters)
    tower = TowerConfig(
        width=width,
        num_layers=4,
        num_heads=2,
        mlp_hidden=21 * width // 8,
        window=task.most_symbols + 1,
    )
    mixer = MultiTokenConfig(
        num_queries=2,
        num_keys=2 * block_letters - 1,
        conv_every=1,
        conv_after=False,
        mix_before=False,
        mix_after=False,
        head_norm="none",
    )
    return Study(
        name=f"block_search_{block_letters}",
        purpose="Does a model find the one block that holds both letters of a query?",
        arms=(
            _arm("plain", tower, task),
            _arm("multi_token", replace(tower, mixer=mixer), task),
        ),
        seeds=(0, 1, 2, 3, 4),
        max_flops_difference=0.25,
    )


def _arm(name: str, tower: TowerConfig, task: BlockSearch) -> Run:
    return Run(
        name=name,
        system=SingleStreamConfig(tower=tower),
        data=TaskData(task=task),
        train=TrainConfig(
            num_steps=10_000,
            batch_rows=64,
            precision="float32",
            checkpoint_every=1000,
            optimizer=OptimizerConfig(lr=2e-3),
            schedule=ScheduleConfig(warmup_steps=200),
        ),
    )
