"""A grid within a time budget: a smaller declared size, fewer seeds, then fewer steps.

A pilot times every arm of the smallest declared size on every task. From its times those of the
larger sizes are expected, and a larger one that may fit is timed too. Then the largest size that
fits is chosen: all seeds and steps; otherwise fewer seeds, down to two, because one seed does not
show how much seeds matter; otherwise fewer steps with a schedule that is adapted to them, down to a
half, and down to a tenth where no smaller size is declared. Arms and tasks are always those of a
declared size. The choice is kept in ``budget.json``, so that a grid that is continued keeps it.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from counterpoint.config_json import decode, encode
from counterpoint.errors import UserError, check_minutes
from counterpoint.progress import Progress, spell_minutes
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.recipes.budget import FILE, fitted_train
from counterpoint.recipes.grid import Grid, check_costs
from counterpoint.recipes.grid_pilot import CellTiming, pilot
from counterpoint.recipes.grid_run import FEWEST_SEEDS, GRID, run_grid, tuned_cells
from counterpoint.recipes.grid_sizes import declared_sizes, expected_timings
from counterpoint.recipes.grid_workers import Workers

LEAST_SHARE = 0.1
"""Smallest share of the steps: a shorter run does not represent the declared one."""

JUDGED_SHARE = 0.5
"""Smallest share of the steps with which arms are judged."""

_TRIAL_SHARE = 0.02  # share of the time
_LONGEST_TRIAL_S = 3.0  # for an arm on a task
_SLACK = 0.92  # share of the time that is used; a warm machine is slower
_START_S = 5.0  # until workers have loaded torch: for the two kinds of cells and the tick times
_REPORT_S = 10.0
_REPORT_ROW_S = 0.5  # for an arm on a task


@dataclass(frozen=True, kw_only=True, slots=True)
class GridBudget:
    """The part of a grid that is run.

    Attributes:
        minutes: Time budget.
        num_seeds: Number of seeds that are reported.
        num_steps: Number of steps of every run.
        of_seeds: Declared number of seeds.
        of_steps: Declared number of steps.
        size: Name of the declared size.
        instead_of: The study that was to be run, if that is a larger one.
        estimated_minutes: Time that it takes according to the pilot, the pilot included.
    """

    minutes: float
    num_seeds: int
    num_steps: int
    of_seeds: int
    of_steps: int
    estimated_minutes: float
    size: str = ""
    instead_of: str = ""

    def fit(self, grid: Grid) -> Grid:
        """Return the grid in this size; ``metrics.jsonl`` has as many lines as in the full size."""
        train = fitted_train(grid.train, self.num_steps)
        share = self.num_steps / grid.train.num_steps
        every = {
            name: max(round(getattr(train, name) * share), min(getattr(train, name), 1))
            for name in ("log_every", "evaluate_every", "checkpoint_every")
        }
        return replace(
            grid,
            seeds=grid.seeds[: self.num_seeds],
            train=replace(train, **every),
            is_first_look=grid.is_first_look or share < JUDGED_SHARE,
        )

    @property
    def is_enough(self) -> bool:
        """Whether it fits with enough steps; a smaller size that fits is better than fewer."""
        fits = self.estimated_minutes <= self.minutes
        return fits and self.num_steps >= JUDGED_SHARE * self.of_steps

    @property
    def left_out(self) -> str:
        """Sentence that says what is left out for lack of time; empty if nothing is."""
        parts = []
        if self.num_seeds < self.of_seeds:
            parts.append(f"{self.of_seeds - self.num_seeds} of {self.of_seeds} seeds")
        if self.num_steps < self.of_steps:
            parts.append(f"{self.of_steps - self.num_steps:,} of {self.of_steps:,} steps")
        some = " and ".join(parts)
        if self.instead_of:
            without = f" without {some}" if some else ""
            return (
                f"Left out for lack of time: {self.instead_of}. "
                f"Run instead: its declared size {self.size}{without}."
            )
        return f"Left out for lack of time: {some}." if some else ""


def fit_grid(
    grid: Grid, minutes: float | None, folder: Path, workers: Workers, progress: Progress
) -> tuple[Grid, str]:
    """Return the size of a grid that fits, or the size that was chosen before in its folder.

    Args:
        grid: The declared grid.
        minutes: Time for all of it; ``None`` runs all, or the size that was chosen before.
        folder: Its folder.
        workers: The workers that run it.
        progress: Is told the choice.

    Returns:
        The grid to run, and a sentence that says which part of the declared grid is left out.

    Raises:
        UserError: Not even the smallest size fits, arms do not cost the same, or the earlier choice
            cannot be read.
    """
    check_minutes(minutes)
    if minutes is not None and workers.ray is not None and workers.count is None:
        raise UserError(
            "`--minutes` on a Ray cluster must know how many cells run at a time: `--workers` is "
            "missing. Give the number of cores that the cluster has."
        )
    file = folder / FILE
    if file.exists():
        budget: GridBudget = decode(GridBudget, read_begun(file, ("minutes", "num_steps")))
        _size_named(grid, budget.size)  # before anything is said of another study's folder
        if budget.minutes != minutes:
            progress.note(
                f"{folder} keeps the size that `--minutes {budget.minutes:g}` chose in its first "
                "call. Take another folder to have another size."
            )
    elif minutes is None:
        if grid.smaller and not (folder / GRID).exists():
            progress.note(_expected(grid, workers, progress))
        return grid, ""
    elif (folder / GRID).exists():
        progress.note(
            f"{folder} was begun without `--minutes` and continues in full. Take another folder to "
            "have another size."
        )
        return grid, ""
    else:
        budget = _choose(grid, minutes, workers, progress)
        keep_begun(file, encode(budget))
    progress.note(
        f"{budget.left_out or 'Nothing is left out for lack of time.'} About "
        f"{budget.estimated_minutes:.2g} of {budget.minutes:g} minutes."
    )
    return budget.fit(_size_named(grid, budget.size)), budget.left_out


def run_fitted(
    grid: Grid, minutes: float | None, folder: Path, workers: Workers, progress: Progress
) -> tuple[Grid, str]:
    """Run as much of a grid as fits; see `fit_grid` and `counterpoint.recipes.grid_run.run_grid`.

    If the machine becomes slower than it was when it was timed, further seeds are left out.

    Returns:
        The grid that was run, and a sentence that says which part of the declared one is left out.
    """
    begin = time.perf_counter()
    is_new = minutes is not None and not (folder / GRID).exists()
    grid, left_out = fit_grid(grid, minutes, folder, workers, progress)
    end = begin + 60 * minutes - _report_s(grid) if minutes is not None and is_new else None
    records = run_grid(grid, folder, workers=workers, progress=progress, end=end)
    num_seeds = len({record["seed"] for record in records})
    if num_seeds < len(grid.seeds):
        budget: GridBudget = decode(GridBudget, read_begun(folder / FILE, ("minutes",)))
        budget = replace(budget, num_seeds=num_seeds)
        keep_begun(folder / FILE, encode(budget))
        grid, left_out = replace(grid, seeds=grid.seeds[:num_seeds]), budget.left_out
        progress.note(f"The machine was slower than when it was timed. {left_out}")
    late_s = 0.0 if end is None else time.perf_counter() - end
    if late_s > 0:
        progress.note(f"The cells took {late_s:.0f} s longer than the minutes allow.")
    return grid, left_out


def _report_s(grid: Grid) -> float:
    """Return the seconds of the report."""
    return _REPORT_S + _REPORT_ROW_S * len(grid.arms) * len(grid.tasks)


def _choose(grid: Grid, minutes: float, workers: Workers, progress: Progress) -> GridBudget:
    """Time the declared sizes and choose the largest that fits.

    Raises:
        UserError: Not even the smallest fits.
    """
    begin = time.perf_counter()
    *larger, smallest = declared_sizes(grid)
    timings = _timed(smallest, minutes, workers, progress)
    for size in larger:
        # A size that cannot fit is not timed, which alone may take longer than the minutes.
        some = expected_timings(size, smallest, timings)
        if not _fitting(size, minutes, some, workers, begin).is_enough:
            continue
        found = _fitting(size, minutes, _timed(size, minutes, workers, progress), workers, begin)
        if found.is_enough:
            return found if size is grid else replace(found, instead_of=_described(grid))
    found = _fitting(smallest, minutes, timings, workers, begin)
    if found.estimated_minutes > minutes:
        raise UserError(
            f"`--minutes` must be at least {_rounded_up(found.estimated_minutes)} for {grid.name} "
            f"here: its smallest size, {'' if smallest is grid else f'{smallest.name} with '}"
            f"{found.num_seeds} seeds and {found.num_steps:,} steps, takes about that long; got "
            f"{minutes:g}. Give more, or run fewer `--tasks`."
        )
    return found if smallest is grid else replace(found, instead_of=_described(grid))


def _expected(grid: Grid, workers: Workers, progress: Progress) -> str:
    """Return a sentence with the time that a grid and its smallest size take here."""
    begin = time.perf_counter()
    smallest = declared_sizes(grid)[-1]
    timings = _timed(smallest, 1.0, workers, progress)
    some = expected_timings(grid, smallest, timings)
    most = _minutes(grid, some, workers, begin)(len(grid.seeds), grid.train.num_steps)
    least = _fitting(smallest, 0.0, timings, workers, begin).estimated_minutes
    return (
        f"{_described(grid)} takes about {spell_minutes(most)} here. `--minutes N` runs the "
        f"largest declared size that fits; {smallest.name}, the smallest, needs "
        f"{_rounded_up(least)}."
    )


def _timed(
    grid: Grid, minutes: float, workers: Workers, progress: Progress
) -> Sequence[CellTiming]:
    """Time every arm on every task in a small share of the minutes."""
    workers.check(grid)
    check_costs(grid, progress)
    num_pairs = len(grid.arms) * len(grid.tasks)
    trial_s = _TRIAL_SHARE * 60 * minutes * (workers.count or 1) / num_pairs
    return pilot(grid, workers, min(trial_s, _LONGEST_TRIAL_S), progress)


def _fitting(
    grid: Grid, minutes: float, timings: Sequence[CellTiming], workers: Workers, begin: float
) -> GridBudget:
    """Return the largest size of a grid that fits, or the smallest if none does."""
    takes = _minutes(grid, timings, workers, begin)
    num_seeds, num_steps = largest_size(grid, workers, minutes, takes)
    return GridBudget(
        minutes=minutes,
        num_seeds=num_seeds,
        num_steps=num_steps,
        of_seeds=len(grid.seeds),
        of_steps=grid.train.num_steps,
        estimated_minutes=round(takes(num_seeds, num_steps), 2),
        size=grid.name,
    )


def _minutes(
    grid: Grid, timings: Sequence[CellTiming], workers: Workers, begin: float
) -> Callable[[int, int], float]:
    """Return a function of numbers of seeds and steps: the minutes since ``begin`` at its end."""
    spent_s = time.perf_counter() - begin + 3 * _START_S + _report_s(grid)

    def takes(num_seeds: int, num_steps: int) -> float:
        cells_s = grid_seconds(grid, timings, workers, num_seeds, num_steps)
        return (spent_s + cells_s / _SLACK) / 60

    return takes


def largest_size(
    grid: Grid, workers: Workers, minutes: float, takes: Callable[[int, int], float]
) -> tuple[int, int]:
    """Return seeds and steps of the largest size that fits, or of the smallest if none does.

    Args:
        grid: The declared grid.
        workers: The workers that run it. If seeds are trained together, fewer of them save little.
        minutes: Time for all of it.
        takes: Function that returns the minutes for numbers of seeds and steps.
    """
    steps = grid.train.num_steps
    most = len(grid.seeds)
    fewest = most if workers.in_stacks else min(FEWEST_SEEDS, most)
    for num_seeds in range(most, fewest - 1, -1):
        if takes(num_seeds, steps) <= minutes:
            return num_seeds, steps
    low = max(round(LEAST_SHARE * steps), 1)
    high = steps
    while high - low > 1:  # `low` fits, unless no size does
        middle = (low + high) // 2
        if takes(fewest, middle) <= minutes:
            low = middle
        else:
            high = middle
    return fewest, low


def grid_seconds(
    grid: Grid, timings: Sequence[CellTiming], workers: Workers, num_seeds: int, num_steps: int
) -> float:
    """Return the time that the cells of a grid take, in seconds.

    Args:
        grid: The declared grid.
        timings: One of every arm on every task, from `counterpoint.recipes.grid_pilot.pilot`.
        workers: The workers that run the cells.
        num_seeds: Number of seeds that are reported.
        num_steps: Number of steps of every run.
    """
    num_tuned = len(tuned_cells(grid)) // len(timings)  # for every arm and task
    tuned_steps = grid.tuning_share * num_steps
    if workers.in_stacks:
        steps = num_steps + (tuned_steps if num_tuned else 0)
    else:
        steps = num_seeds * num_steps + num_tuned * tuned_steps
    seconds = sum(t.step_s * steps + t.fixed_s * (num_seeds + num_tuned) for t in timings)
    seconds /= workers.count or 1
    batches = num_seeds * num_steps + (tuned_steps if num_tuned else 0)
    made_s = sum(timing.batch_s for timing in timings) * batches / len(grid.arms)
    return seconds + made_s / (os.cpu_count() or 1)


def _size_named(grid: Grid, name: str) -> Grid:
    """Return the declared size that was chosen before.

    Raises:
        UserError: There is none, because the folder is that of another study.
    """
    for size in declared_sizes(grid):
        if size.name == name or not name:
            return size
    raise UserError(
        f"The folder must be one of {grid.name}: {FILE} there names its size {name!r}. Take "
        "another folder."
    )


def _described(grid: Grid) -> str:
    return f"{grid.name} ({grid.size})"


def _rounded_up(minutes: float) -> str:
    return f"{int(minutes) + 1}"
