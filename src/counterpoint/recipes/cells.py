"""Cells of a grid: one small run each, and the record that is kept of it."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.source import HELD_OUT_SEED, TaskData
from counterpoint.evaluate.tasks import answer
from counterpoint.files import whole_file, write_json
from counterpoint.packages import optional_module
from counterpoint.progress import Progress
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.training import train_run
from counterpoint.systems.contract import System
from counterpoint.train.checkpoint import load_system
from counterpoint.train.distributed import World
from counterpoint.train.loop import DivergedError
from counterpoint.train.run import Run

CELLS = "cells"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a grid."""

    task: str
    arm: str
    learning_rate: float
    seed: int

    @property
    def key(self) -> str:
        """Names its files."""
        return f"{self.task}-{self.arm}-lr{self.learning_rate:g}-seed{self.seed}"


def run_cell(grid: Grid, folder: Path, cell: Cell) -> str:
    """Train one cell, let it answer, and keep what came out; its key."""
    system = next(arm.system for arm in grid.arms if arm.name == cell.arm)
    data = TaskData(task=TASKS[cell.task], seed=cell.seed)
    optimizer = replace(grid.train.optimizer, lr=cell.learning_rate, muon_lr=None)
    run = Run(
        name=cell.key,
        system=system,
        data=data,
        train=replace(grid.train, seed=cell.seed, optimizer=optimizer),
    )
    work = folder / "work" / cell.key
    begin = time.perf_counter()
    try:
        result = train_run(
            run, work, World(), measure_end=False, progress=Progress(quiet=True), loggers=()
        )
    except DivergedError:
        if cell.seed not in grid.tuning_seeds:
            raise
        record = _record(cell, float("-inf"))  # a rate that is too high is not chosen
    else:
        if not result.finished:
            raise KeyboardInterrupt
        record = _answered(grid, cell, data, result.checkpoint)
    write_records(cell_path(folder, cell), [record])
    # How long it took is no outcome: a grid that was killed gives the same files.
    write_json(
        folder / CELLS / f"{cell.key}.json",
        {"seconds": round(time.perf_counter() - begin, 2), "threads": torch.get_num_threads()},
    )
    shutil.rmtree(work)
    return cell.key


def _answered(grid: Grid, cell: Cell, data: TaskData, checkpoint: Path) -> dict[str, Any]:
    """The record of a cell that was trained."""
    trained = cast("System", load_system(checkpoint))
    items = _items(grid, cell)
    given = list(answer(trained, data, items))
    task = TASKS[cell.task]
    scores = task.score(items, given)
    counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
    return _record(cell, scores.get(task.primary, 0.0), scores, counts)


def _record(
    cell: Cell,
    score: float,
    scores: Mapping[str, float] = MappingProxyType({}),
    counts: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    return {
        "cell": cell.key,
        "task": cell.task,
        "arm": cell.arm,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "score": score,
        "scores": [{"name": name, "value": value} for name, value in scores.items()],
        "numerators": [above for above, _ in counts],
        "denominators": [below for _, below in counts],
    }


def _items(grid: Grid, cell: Cell) -> list[Item]:
    """What a cell is asked: the same of every arm, and other items where a rate is chosen."""
    seed = HELD_OUT_SEED - 1 - (cell.seed in grid.tuning_seeds)
    return [TASKS[cell.task].item(seed, number) for number in range(grid.num_items)]


def cell_path(folder: Path, cell: Cell) -> Path:
    """Where the record of a cell is kept."""
    return folder / CELLS / f"{cell.key}.parquet"


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole Parquet file of records."""
    arrow = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial_path:
        parquet.write_table(arrow.Table.from_pylist(list(records)), partial_path)


def read_cells(folder: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The records of these cells, those that are there, in their order."""
    parquet = optional_module("pyarrow.parquet")
    found: list[dict[str, Any]] = []
    for cell in cells:
        path = cell_path(folder, cell)
        if path.exists():
            found += parquet.read_table(path).to_pylist()
    return found
