"""A first look at `part_whole` within minutes of a laptop: three of its arms on one short task."""

from dataclasses import replace

from counterpoint.recipes.grid import Grid
from counterpoint.recipes.part_whole_small import part_whole_small

ARMS = ("two_stream", "window", "full")
TASK = "acrostic_minutes"


def part_whole_minutes() -> Grid:
    """Return the grid: its runs end long before any arm has learned the task.

    It shows what a study does, and which arm begins to find a plan that stands beyond its window.
    It has no verdict, because it tells only who is first, not who is better in the end.
    """
    grid = part_whole_small()
    return replace(
        grid,
        name="part_whole_minutes",
        purpose=(
            "A first look within minutes: which of three arms begins to write lines under a plan "
            "that stands before its window?"
        ),
        arms=tuple(arm for arm in grid.arms if arm.name in ARMS),
        tasks=(TASK,),
        train=replace(grid.train, num_steps=1000),
        seeds=(0, 1, 2),
        num_items=200,
        smaller="",
        is_first_look=True,
    )
