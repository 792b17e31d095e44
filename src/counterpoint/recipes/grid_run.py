"""Runs a grid, cell by cell, and keeps the result of every cell.

A cell is one small run: an arm learns a task with a learning rate and a seed, and answers items
that no run has learned from. Every finished cell is a Parquet file, so a grid that was stopped is
continued with the same outcome. Learning rates are chosen on separate seeds and items: for each arm
and task the rate with the best primary score on ``tuning_seeds`` is the one that is reported on
``seeds``. A rate with which learning diverges is not chosen.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.config_json import decode, encode, first_difference
from counterpoint.data.tasks.named import data_digest
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_findings import RESULTS
from counterpoint.evaluate.report.grid_table import running_table
from counterpoint.files import read_json, write_json
from counterpoint.locks import locked
from counterpoint.progress import Progress
from counterpoint.recipes.begun import read_begun
from counterpoint.recipes.cells import (
    CELLS,
    DATA,
    WORK,
    Cell,
    CellOutcome,
    cell_path,
    keep_outcome,
    read_cells,
    write_records,
)
from counterpoint.recipes.grid import Grid, check_costs
from counterpoint.recipes.grid_workers import Workers, worked
from counterpoint.recipes.stacks import BATCHES, record_batches

GRID = "grid.json"
_FREE = ("seeds", "purpose", "smaller", "is_first_look", "data")  # they change no cell
FEWEST_SEEDS = 2
"""Number of seeds that are never left out for lack of time: one does not show how much they matter.
"""


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
    end: float | None = None,
) -> list[dict[str, Any]]:
    """Run all cells that are missing.

    Args:
        grid: Grid to run.
        folder: Its folder; a grid that was begun there must be the same one.
        workers: The workers that run the cells; one process by default.
        progress: Shows how far the grid is; on stderr by default.
        end: Time of `time.perf_counter` at which the cells should be done: seeds after the second
            that would take longer are left out. ``None`` runs all of them.

    Returns:
        The records of all reported cells, sorted; ``results.parquet`` has them too.

    Raises:
        UserError: Arms do not cost the same, the workers cannot run one of them, or the folder
            belongs to another grid.
    """
    progress = Progress() if progress is None else progress
    workers = Workers() if workers is None else workers
    workers.check(grid)
    check_costs(grid, progress)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".grid.lock", wait=False), closing(progress):
        _keep_or_check(grid, folder)
        _note_other_devices(folder, workers.device, progress)
        rates = {}
        tuned = tuned_cells(grid)
        if tuned:
            _run_cells(grid, folder, tuned, workers, progress)
            rates = best_rates(read_cells(folder, tuned))
        reported = reported_cells(grid, rates)
        reported = _run_seeds(grid, folder, reported, workers, progress, end)
        shutil.rmtree(folder / BATCHES, ignore_errors=True)
        records = sorted(read_cells(folder, reported), key=lambda record: str(record["cell"]))
        write_records(folder / RESULTS, records)
    return records


def tuned_cells(grid: Grid) -> list[Cell]:
    """Return the cells that choose learning rates; none if there is only one rate."""
    if len(grid.learning_rates) == 1:
        return []
    return [
        Cell(task=task, arm=arm.name, learning_rate=rate, seed=seed)
        for task in grid.tasks
        for seed in grid.tuning_seeds
        for rate in grid.learning_rates
        for arm in grid.arms
    ]


def reported_cells(grid: Grid, rates: Mapping[tuple[str, str], float]) -> list[Cell]:
    """Return the reported cells, ordered by seed, so that an early stop has some of everything.

    Args:
        grid: Grid of the cells.
        rates: Chosen learning rates by task and arm; the first rate of the grid is the default.
    """
    return [
        Cell(
            task=task,
            arm=arm.name,
            learning_rate=rates.get((task, arm.name), grid.learning_rates[0]),
            seed=seed,
        )
        for seed in grid.seeds
        for task in grid.tasks
        for arm in grid.arms
    ]


def best_rates(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the rate with the best mean primary score by task and arm; of two the lower."""
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for record in records:
        own = scores.setdefault((record["task"], record["arm"]), {})
        own.setdefault(record["learning_rate"], []).append(record["score"])
    return {
        pair: max(sorted(own), key=lambda rate: float(np.mean(own[rate])))
        for pair, own in scores.items()
    }


def _run_seeds(
    grid: Grid,
    folder: Path,
    cells: Sequence[Cell],
    workers: Workers,
    progress: Progress,
    end: float | None,
) -> list[Cell]:
    """Run the reported cells, one seed after another if there is an end; return those it had."""
    if end is None or workers.in_stacks:
        _run_cells(grid, folder, cells, workers, progress)
        return list(cells)
    begin = time.perf_counter()
    done: list[Cell] = []
    for number, seed in enumerate(grid.seeds):
        now = time.perf_counter()
        if number >= FEWEST_SEEDS and now + (now - begin) / number > end:
            break
        done += [cell for cell in cells if cell.seed == seed]
        _run_cells(grid, folder, done, workers, progress)
    return done


def _run_cells(
    grid: Grid,
    folder: Path,
    cells: Sequence[Cell],
    workers: Workers,
    progress: Progress,
) -> None:
    """Run the missing cells; a table shows the results of the reported ones so far."""
    missing = [cell for cell in cells if not cell_path(folder, cell).exists()]
    if workers.in_stacks:
        record_batches(grid, folder / BATCHES, missing, progress)
    tuning = any(cell.seed in grid.tuning_seeds for cell in cells)
    task = progress.task("choosing learning rates" if tuning else grid.name)
    task(len(cells) - len(missing), len(cells))
    records = [] if tuning else read_cells(folder, cells)
    arms = [arm.name for arm in grid.arms]
    digests = data_digests(grid)
    # The generator is closed, so that processes end at once on an error or an interruption.
    with closing(worked(grid, folder, missing, workers)) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            _check_data(digests, outcome)
            keep_outcome(folder, outcome)
            task(len(cells) - len(missing) + number, len(cells), figures=outcome.cell.key)
            if not tuning:
                records.append(dict(outcome.record))
                progress.board(running_table(records, arms, grid.tasks))


def _keep_or_check(grid: Grid, folder: Path) -> None:
    """Refuse a folder of another grid; seeds may be added, because they change no cell.

    Cells that were begun begin again if the texts are in another place now: their checkpoints name
    the place, and go on with no other.
    """
    path = folder / GRID
    items, labels = _firsts(grid)
    digests = data_digests(grid)
    if path.exists():
        begun = read_begun(path, ("grid",))
        old = begun["grid"]
        with contextlib.suppress(UserError):  # if a field no longer exists, the difference names it
            old = encode(decode(Grid, old))  # fields that were added since then have defaults
        changed = first_difference(_facts(old), _facts(encode(grid)), "grid")
        if changed is None:
            changed = first_difference(begun.get("first_items", items), items, "first item of task")
        if changed is None:
            changed = first_difference(begun.get("first_labels", labels), labels, "label of task")
        if changed is None:
            changed = first_difference(begun.get("data", digests), digests, "data of task")
        if changed is not None:
            raise UserError(
                f"{folder} must belong to this grid: it was begun with another {changed}. Name "
                "another folder."
            )
        if old.get("data", "") != grid.data:
            shutil.rmtree(folder / WORK, ignore_errors=True)
    begun = {"first_items": items, "first_labels": labels, "data": digests}
    write_json(path, {"grid": encode(grid), **begun})


def data_digests(grid: Grid) -> dict[str, str]:
    """Return the digest of the data of every task; see `data_digest`."""
    return {task: data_digest(grid.task(task)) for task in grid.tasks}


def _firsts(grid: Grid) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """Return the text and the labels of the first item of every task that makes its items.

    In a later version of this library a task may have others under the same name.
    """
    firsts = {task: grid.task(task).item(0, 0) for task in grid.tasks if task in FORMS}
    items = {task: item.text for task, item in firsts.items()}
    labels = {task: [[one.start, one.text] for one in item.whole] for task, item in firsts.items()}
    return items, labels


def _check_data(digests: Mapping[str, str], outcome: CellOutcome) -> None:
    """Refuse a cell that was trained where the folder of data has other texts."""
    task = outcome.cell.task
    if outcome.record[DATA] != digests[task]:
        raise UserError(
            f"All machines must have the same data: those of {task!r} have the digest "
            f"{outcome.record[DATA][:12]} where {outcome.cell.key} was run, and here "
            f"{digests[task][:12]}. Copy the folder of data there."
        )


def _note_other_devices(folder: Path, device: str, progress: Progress) -> None:
    """Say if some cells were trained on another device, whose rounding differs."""
    found = [read_json(path).get("device", "cpu") for path in (folder / CELLS).glob("*.json")]
    others = [one for one in found if one != device]
    if others:
        progress.note(
            f"{folder} keeps {len(others)} cells that were trained on {others[0]}: arms are then "
            f"compared across devices. Take another folder to train all of them on {device}."
        )


def _facts(grid: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a grid on which its cells depend."""
    return {name: value for name, value in grid.items() if name not in _FREE}
