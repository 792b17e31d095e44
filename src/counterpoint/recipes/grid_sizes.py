"""The declared sizes of a grid, and the times that are expected of one from those of another."""

from collections.abc import Sequence

from counterpoint.errors import UserError
from counterpoint.recipes.grid import Grid, costs
from counterpoint.recipes.grid_pilot import CellTiming
from counterpoint.recipes.loading import load_recipe


def declared_sizes(grid: Grid) -> list[Grid]:
    """Return a grid and the smaller sizes that its recipe declares, the largest first.

    Raises:
        UserError: A smaller size is no recipe of a grid, or one that came before.
    """
    sizes = [grid]
    while sizes[-1].smaller:
        smaller = load_recipe(sizes[-1].smaller)
        if not isinstance(smaller, Grid) or smaller.name in [size.name for size in sizes]:
            raise UserError(
                f"`smaller` of {sizes[-1].name} must name a recipe of a smaller `Grid`: got "
                f"{sizes[-1].smaller!r}."
            )
        sizes.append(smaller)
    return sizes


def expected_timings(grid: Grid, timed: Grid, timings: Sequence[CellTiming]) -> list[CellTiming]:
    """Return the times that cells of a grid are expected to take, from those of another grid.

    A step is taken to last as long as its FLOPs, and answers as long as the symbols of their items.

    Args:
        grid: Grid with the expected times.
        timed: Grid that was timed; see `counterpoint.recipes.grid_pilot.pilot`.
        timings: Its times.
    """
    step_s = sum(timing.step_s for timing in timings) / sum(_step_flops(timed))
    fixed_s = sum(timing.fixed_s for timing in timings) / sum(_symbols(timed, timed.num_items))
    made = sum(_symbols(timed, timed.train.batch_rows))
    batch_s = sum(timing.batch_s for timing in timings) / made
    return [
        CellTiming(step_s=flops * step_s, fixed_s=read * fixed_s, batch_s=rows * batch_s)
        for flops, read, rows in zip(
            _step_flops(grid),
            _symbols(grid, grid.num_items),
            _symbols(grid, grid.train.batch_rows),
            strict=True,
        )
    ]


def _step_flops(grid: Grid) -> list[float]:
    """Return the FLOPs of a training step of every arm, task by task."""
    ticks = _symbols(grid, grid.train.batch_rows)
    flops = [cost.flops for task in grid.tasks for cost in costs(grid, task).values()]
    return [each * count for each, count in zip(flops, ticks, strict=True)]


def _symbols(grid: Grid, num_items: int) -> list[float]:
    """Return the symbols of some items for every arm, task by task."""
    symbols = [float(num_items * grid.task(task).most_symbols) for task in grid.tasks]
    return [own for own in symbols for _ in grid.arms]
