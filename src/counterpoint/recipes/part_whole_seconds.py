"""The smallest study of part and whole that shows something: it takes less than a minute."""

from dataclasses import replace

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import ScheduleConfig

TASK = "sections_seconds"
WINDOW = 4
"""Number of ticks that a layer reads; three layers see 10 of a text of up to 44 symbols."""


def part_whole_seconds() -> Grid:
    """Return the grid: two_stream learns to look up what a window alone does not see.

    It does not with the whole of another row, so the whole is what it uses. Tests run it to see
    that something is learned; it is too small for a comparison of systems.
    """
    grid = part_whole_small()
    ours = TwoStreamConfig(
        part=_tower(2, WINDOW, 128),
        whole=_tower(1, 16, 128),
        lower_layers=1,
        block_ticks=6,  # a section
        compressor="mean",
        num_links=1,
        whole_dropout=0.0,
        predict_weight=0.0,
        reconstruct_weight=0.1,
    )
    return replace(
        grid,
        name="part_whole_seconds",
        purpose=(
            "In less than a minute: does two_stream find in its whole what a window does not see?"
        ),
        arms=(
            GridArm(name="two_stream", system=ours),
            GridArm(name="shuffled_whole", system=replace(ours, whole_control="shuffled")),
            GridArm(name="window", system=SingleStreamConfig(tower=_tower(3, WINDOW, 128))),
        ),
        tasks=(TASK,),
        train=replace(grid.train, num_steps=300, schedule=ScheduleConfig(warmup_steps=20)),
        learning_rates=(6e-3,),
        seeds=(0, 1),
        num_items=200,
        smaller="",
        is_first_look=True,
    )


def _tower(layers: int, window: int, mlp_hidden: int) -> TowerConfig:
    return TowerConfig(
        width=48, num_layers=layers, num_heads=4, mlp_hidden=mlp_hidden, window=window
    )
