"""The arms of `part_whole` on small forms of its tasks, which full attention can learn."""

from dataclasses import replace

from counterpoint.data.tasks.part_whole import SMALL
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.part_whole import arms, part_whole

TRAINED_SHARE = 1 / 12
"""Share of the ticks that carry a loss: 1/24 to 1/7, for the small forms ask more often."""


def part_whole_small() -> Grid:
    """Return the grid; a text has at most 120 symbols and several questions."""
    grid = part_whole()
    return replace(
        grid,
        name="part_whole_small",
        arms=arms(TRAINED_SHARE),
        tasks=tuple(SMALL),
        train=replace(grid.train, num_steps=2500),
        learning_rates=(2e-3,),
    )
