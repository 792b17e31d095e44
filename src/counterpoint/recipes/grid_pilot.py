"""Times of the cells of a grid on this machine: every arm takes a few steps on every task."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from counterpoint.data.recorded import record
from counterpoint.data.tasks.items import scored_items
from counterpoint.evaluate.tasks import BATCH_ITEMS, respond
from counterpoint.progress import Progress
from counterpoint.recipes.budget import EVALUATION_UNITS, Plan, time_run
from counterpoint.recipes.cells import CURVE_ITEMS, ITEMS_SEED, Cell, cell_run
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.grid_workers import Workers
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train.distributed import World
from counterpoint.train.stacked import Stack

_FIXED_S = 1.0  # for the beginning of a run, and for its checkpoints
_STACK_STEPS = 12
_EAGER_STEPS = 5  # first steps of a stack, which are slower


@dataclass(frozen=True, kw_only=True, slots=True)
class CellTiming:
    """Time that an arm takes on a task.

    Attributes:
        step_s: Seconds of a training step of a cell, or of a stack of all its seeds.
        fixed_s: Seconds of everything else in a cell, above all its answers.
        batch_s: Seconds to make a batch, if batches are made before the training; otherwise 0.
    """

    step_s: float
    fixed_s: float
    batch_s: float = 0.0


def pilot(grid: Grid, workers: Workers, seconds: float, progress: Progress) -> list[CellTiming]:
    """Time every arm on every task, with the workers that will run the cells.

    Args:
        grid: Grid to time.
        workers: The workers that run it.
        seconds: Time for the steps of each arm and task, of which at least three are taken.
        progress: Shows how far the timing is.
    """
    pairs = [(task, arm.name) for task in grid.tasks for arm in grid.arms]
    work = (
        partial(_time_stack, grid, workers.device)
        if workers.in_stacks
        else partial(_time_cell, grid, seconds)
    )
    shown = progress.task("timing some steps")
    timings = []
    with closing(workers.work(work, pairs)) as done:
        for timing in done:
            timings.append(timing)
            shown(len(timings), len(pairs))
    return timings


def _time_cell(grid: Grid, seconds: float, pair: tuple[str, str]) -> CellTiming:
    """Time a cell that is trained alone."""
    run = cell_run(grid, _cells(grid, pair)[0])
    run = replace(run, train=replace(run.train, evaluate_every=0))
    timing = time_run(run, World(), Progress(quiet=True), Plan(), seconds)
    system = build_system(run.system, run.train.seed)
    return CellTiming(step_s=timing.step_s, fixed_s=_FIXED_S + _answering_s(grid, pair[0], system))


def _time_stack(grid: Grid, device: str, pair: tuple[str, str]) -> CellTiming:
    """Time all seeds of an arm and a task as lanes of a stack.

    The stacks of a grid have lanes of several tasks and take at most the sum of these times.
    """
    runs = [cell_run(grid, cell) for cell in _cells(grid, pair)]
    systems = [build_system(run.system, run.train.seed).to(device) for run in runs]
    begin = time.perf_counter()
    batches = runs[0].data.prepare(systems[0]).batches(runs[0].train.batch_rows, 0)
    recorded = record(batches, _STACK_STEPS)
    batch_s = (time.perf_counter() - begin) / _STACK_STEPS
    short = [replace(run.train, num_steps=_STACK_STEPS, log_every=1) for run in runs]
    moments = [time.perf_counter()]
    stack = Stack(systems, short)
    stack.train([recorded] * len(runs), lambda step, bits: moments.append(time.perf_counter()))
    stack.finish()
    steps = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    beginning_s = sum(steps[:_EAGER_STEPS]) / len(runs)
    return CellTiming(
        step_s=median(steps[_EAGER_STEPS:]),
        fixed_s=beginning_s + _answering_s(grid, pair[0], systems[0]),
        batch_s=batch_s,
    )


def _cells(grid: Grid, pair: tuple[str, str]) -> Sequence[Cell]:
    """Return the reported cells of an arm and a task, with any learning rate."""
    task, arm = pair
    rate = grid.learning_rates[0]
    return [Cell(task=task, arm=arm, learning_rate=rate, seed=seed) for seed in grid.seeds]


def _answering_s(grid: Grid, task: str, system: System) -> float:
    """Return the seconds to answer all items, at the end and during training, from a sample."""
    # On a GPU all items are answered at once, and some take as long as all: see `run_cell`.
    count = BATCH_ITEMS if system.device.type == "cpu" else grid.num_items
    own = grid.task(task)
    items = scored_items(own, ITEMS_SEED, count)
    list(respond(system, items[:2]))  # the first call also prepares libraries
    begin = time.perf_counter()
    own.score(items, list(respond(system, items, count)))
    item_s = (time.perf_counter() - begin) / len(items)
    every = grid.train.evaluate_every
    times = grid.train.num_steps // every if every else 0
    num_items = len(scored_items(own, ITEMS_SEED, grid.num_items))
    return item_s * (num_items + times * (CURVE_ITEMS + EVALUATION_UNITS))
