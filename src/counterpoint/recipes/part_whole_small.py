"""The arms of `part_whole` on small forms of its tasks, which full attention can learn."""

from dataclasses import replace

from counterpoint.data.tasks.part_whole import SMALL
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.part_whole import arms, part_whole
from counterpoint.systems import SystemConfig
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.two_stream import TwoStreamConfig

TRAINED_SHARE = 1 / 12
"""Share of the ticks that carry a loss: 1/24 to 1/7, for the small forms ask more often."""
GRAPH_BLOCKS = 32
"""Room for words in a row that is trained on a GPU; no text of a small form has more."""


def part_whole_small() -> Grid:
    """Return the grid; a text has at most 108 symbols and several questions."""
    grid = part_whole()
    return replace(
        grid,
        name="part_whole_small",
        arms=tuple(replace(arm, system=_bounded(arm.system)) for arm in arms(TRAINED_SHARE)),
        tasks=tuple(SMALL),
        train=replace(grid.train, num_steps=2000, batch_rows=16),
        learning_rates=(3e-3,),
        smaller="part_whole_minutes",
    )


def _bounded(system: SystemConfig) -> SystemConfig:
    """Return a system whose words have no more room than they need."""
    if isinstance(system, HRTConfig | TwoStreamConfig) and system.boundary_ids:
        return replace(system, graph_blocks=GRAPH_BLOCKS)
    return system
