"""Runs a grid, cell by cell, and keeps what every cell gave.

A cell is one small run: an arm learns a task with a learning rate and a seed, and answers items
that no run has learned from. Every finished cell is a Parquet file, so a grid that was stopped goes
on where it was, with the same outcome. Learning rates are chosen on seeds and items of their own:
for each arm and task the rate with the best primary score on ``tuning_seeds`` is the one that is
reported on ``seeds``. A rate with which learning diverges is not chosen.
"""

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.config_json import encode
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json
from counterpoint.locks import locked
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.ray_tasks import work_on_ray
from counterpoint.recipes.cells import (
    WORK,
    Cell,
    CellOutcome,
    cell_path,
    keep_outcome,
    read_cells,
    run_cell,
    run_cell_elsewhere,
    write_records,
)
from counterpoint.recipes.grid import Grid, costs
from counterpoint.recipes.stacks import BATCHES, record_batches, run_stack, stacks

GRID = "grid.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who runs the cells of a grid: see `run_grid`."""

    count: int | None = None
    ray: str | None = None
    device: str = "cpu"

    @property
    def in_stacks(self) -> bool:
        """Whether cells of an arm and a task are trained together: on the CPU that is no faster."""
        return self.ray is None and self.device != "cpu"


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    num_processes: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run all cells that are not there yet, in several processes.

    Args:
        grid: What to do.
        folder: Its folder; a grid that was begun there must be the same one.
        num_processes: Processes, each with one thread and one cell at a time; by default one, or on
            Ray one for each core of the cluster.
        ray: Address of a Ray cluster that runs the cells; see
            `counterpoint.ray_tasks.work_on_ray`. Only this process needs the folder.
        device: Where cells are trained. On a GPU a process takes all cells of an arm and a task at
            once, as lanes of a stack (`counterpoint.recipes.stacks`).
        progress: Shows how far it is; on stderr by default.

    Returns:
        The records of all cells that are reported, sorted; ``results.parquet`` has them too.

    Raises:
        UserError: Arms do not cost the same, or the folder belongs to another grid.
    """
    progress = Progress() if progress is None else progress
    for task in grid.tasks:
        costs(grid, task)
    folder.mkdir(parents=True, exist_ok=True)
    workers = Workers(count=num_processes, ray=ray, device=device)
    with locked(folder / ".grid.lock", wait=False), closing(progress):
        _keep_or_check(grid, folder)
        rates = {}
        if len(grid.learning_rates) > 1:
            tuned = [
                Cell(task=task, arm=arm.name, learning_rate=rate, seed=seed)
                for task in grid.tasks
                for seed in grid.tuning_seeds
                for rate in grid.learning_rates
                for arm in grid.arms
            ]
            _run_cells(grid, folder, tuned, workers, progress, "choosing learning rates")
            rates = best_rates(read_cells(folder, tuned))
        reported = [
            Cell(
                task=task,
                arm=arm.name,
                learning_rate=rates.get((task, arm.name), grid.learning_rates[0]),
                seed=seed,
            )
            for seed in grid.seeds  # by seed first: an early stop has some of everything
            for task in grid.tasks
            for arm in grid.arms
        ]
        _run_cells(grid, folder, reported, workers, progress, grid.name)
        shutil.rmtree(folder / BATCHES, ignore_errors=True)
        records = sorted(read_cells(folder, reported), key=lambda record: str(record["cell"]))
        write_records(folder / "results.parquet", records)
    return records


def best_rates(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The learning rate with the best mean primary score, by task and arm; the lower one of two."""
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for record in records:
        own = scores.setdefault((record["task"], record["arm"]), {})
        own.setdefault(record["learning_rate"], []).append(record["score"])
    return {
        pair: max(sorted(own), key=lambda rate: float(np.mean(own[rate])))
        for pair, own in scores.items()
    }


def _run_cells(
    grid: Grid,
    folder: Path,
    cells: Sequence[Cell],
    workers: Workers,
    progress: Progress,
    title: str,
) -> None:
    missing = [cell for cell in cells if not cell_path(folder, cell).exists()]
    if workers.in_stacks:
        record_batches(grid, folder / BATCHES, missing, progress)
    task = progress.task(title)
    task(len(cells) - len(missing), len(cells))
    # Closed, so that processes end with an error or an interruption, and not later.
    with closing(_worked(grid, folder, missing, workers)) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            keep_outcome(folder, outcome)
            task(len(cells) - len(missing) + number, len(cells), figures=outcome.cell.key)


def _worked(
    grid: Grid, folder: Path, cells: Sequence[Cell], workers: Workers
) -> Generator[CellOutcome, None, None]:
    """What cells give, in the order in which they are done."""
    if workers.in_stacks:
        together = partial(run_stack, grid, folder / BATCHES, workers.device)
        stacked = work_in_processes(together, stacks(grid, cells), workers.count or 1)
        with closing(stacked) as groups:
            for outcomes in groups:
                yield from outcomes
        return
    if workers.ray is not None:
        elsewhere = partial(run_cell_elsewhere, grid)
        done = work_on_ray(elsewhere, cells, workers.ray, num_workers=workers.count)
    else:
        # Also one process is another one: each has one thread, so that numbers do not depend on
        # how many there are.
        done = work_in_processes(partial(run_cell, grid, folder / WORK), cells, workers.count or 1)
    with closing(done):
        yield from done


def _keep_or_check(grid: Grid, folder: Path) -> None:
    """A folder belongs to one grid; seeds may be added, for they change no cell."""
    facts = {
        name: value for name, value in encode(grid).items() if name not in ("seeds", "purpose")
    }
    digest = json_digest(facts)
    path = folder / GRID
    if path.exists() and read_json(path).get("digest") != digest:
        raise UserError(
            f"{folder} must belong to this grid: its {GRID} was written for another one. "
            "Name another folder."
        )
    write_json(path, {"digest": digest, "grid": encode(grid)})
