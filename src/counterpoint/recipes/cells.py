"""Cells of a grid: one small run each, and the record that is kept of it."""

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from counterpoint.data.tasks.items import HELD_OUT_SEED, Item
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.tasks import BATCH_ITEMS, answer
from counterpoint.files import whole_file, write_json
from counterpoint.packages import optional_module
from counterpoint.progress import Progress
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.training import train_run
from counterpoint.systems.contract import System
from counterpoint.train.checkpoint import load_system
from counterpoint.train.distributed import World
from counterpoint.train.loop import DivergedError
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

CELLS = "cells"
WORK = "work"
ITEMS_SEED = HELD_OUT_SEED - 1
"""This seed makes the items that are reported; the one before it, those that choose a rate."""

CURVE_ITEMS = 100
"""Items on which a cell is scored while it learns, if ``train.evaluate_every`` says so."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class CellOutcome:
    """What a cell gave.

    Attributes:
        cell: The cell.
        record: Its row of the results: the same wherever and however often it is run.
        facts: What is no outcome, such as how long it took and where.
    """

    cell: Cell
    record: Mapping[str, Any]
    facts: Mapping[str, Any]


def run_cell(grid: Grid, work: Path, cell: Cell) -> CellOutcome:
    """Train one cell and let it answer.

    Args:
        grid: What it is a cell of.
        work: Folder for its run; a cell that was stopped there goes on where it was.
        cell: Which one.

    Raises:
        DivergedError: Its loss is not a number, and it is a cell that is reported.
    """
    run = cell_run(grid, cell)
    begin = time.perf_counter()
    system: System | None = None
    try:
        result = train_run(
            run,
            work / cell.key,
            World(),
            measure_end=False,
            progress=Progress(quiet=True),
            loggers=(),
            also=partial(score_on_the_way, cell),
        )
    except DivergedError:
        if cell.seed not in grid.tuning_seeds:
            raise
    else:
        if not result.finished:
            raise KeyboardInterrupt
        system = cast("System", load_system(result.checkpoint))
    points = curve(read_metrics(work / cell.key / "metrics.jsonl"))
    facts = {"seconds": time.perf_counter() - begin, "threads": torch.get_num_threads()}
    return cell_outcome(grid, cell, system, points, facts)


def run_cell_elsewhere(grid: Grid, cell: Cell) -> CellOutcome:
    """`run_cell` on a machine that does not see the folder of the grid."""
    with TemporaryDirectory() as work:
        return run_cell(grid, Path(work), cell)


def cell_run(grid: Grid, cell: Cell) -> Run:
    """How a cell is trained; one that chooses a learning rate takes a share of the steps."""
    optimizer = replace(grid.train.optimizer, lr=cell.learning_rate, muon_lr=None)
    train = replace(grid.train, seed=cell.seed, optimizer=optimizer)
    if cell.seed in grid.tuning_seeds:
        train = replace(train, num_steps=max(1, round(train.num_steps * grid.tuning_share)))
    return Run(
        name=cell.key,
        system=next(arm.system for arm in grid.arms if arm.name == cell.arm),
        data=TaskData(task=TASKS[cell.task], seed=cell.seed),
        train=train,
    )


def cell_outcome(
    grid: Grid,
    cell: Cell,
    system: System | None,
    points: Sequence[Mapping[str, float | None]],
    facts: Mapping[str, Any],
) -> CellOutcome:
    """Let a trained system answer.

    Args:
        grid: What the cell is one of.
        cell: The cell.
        system: What was trained; ``None`` where learning diverged: its score is minus infinity.
        points: How it learned; see `curve`.
        facts: See `CellOutcome.facts`.
    """
    record = _record(cell, float("-inf")) if system is None else _answered(grid, cell, system)
    record["curve"] = list(points)
    facts = {**facts, "seconds": round(facts["seconds"], 2)}
    return CellOutcome(cell=cell, record=record, facts=facts)


def keep_outcome(folder: Path, outcome: CellOutcome) -> None:
    """Keep what a cell gave, and remove what it was trained in.

    How long it took is no outcome and has a file of its own: a grid that was killed gives the same
    Parquet as one that was not.

    Args:
        folder: Folder of the grid.
        outcome: From `run_cell`.
    """
    key = outcome.cell.key
    write_records(cell_path(folder, outcome.cell), [outcome.record])
    write_json(folder / CELLS / f"{key}.json", outcome.facts)
    shutil.rmtree(folder / WORK / key, ignore_errors=True)


def curve(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """How a run learned, by step.

    Args:
        metrics: Lines of its ``metrics.jsonl``.

    Returns:
        ``step``, training ``flops``, ``loss`` in bits a trained symbol, and ``score``, the primary
        score on items that are not reported; ``None`` is what was not measured at that step.
    """
    points: dict[int, dict[str, float | None]] = {}
    for row in metrics:
        point = points.setdefault(
            row["step"],
            {"step": row["step"], "flops": row["flops"], "loss": None, "score": None},
        )
        if row.get("loss") is not None:
            point["loss"] = row["loss"]
        score = row.get("evaluation", {}).get("score")
        if score is not None:
            point["score"] = score
    return list(points.values())


def score_on_the_way(cell: Cell, system: nn.Module) -> dict[str, float]:
    """The primary score while a cell learns, where the grid measures that."""
    task = TASKS[cell.task]
    items = [task.item(ITEMS_SEED - 2, number) for number in range(CURVE_ITEMS)]
    given = list(answer(system, items))
    return {"score": task.score(items, given).get(task.primary, 0.0)}


def _answered(grid: Grid, cell: Cell, system: System) -> dict[str, Any]:
    """The record of a cell that was trained."""
    task = TASKS[cell.task]
    items = _items(grid, cell)
    # A GPU takes as long for a tick of one row as for that of a thousand.
    batch_items = BATCH_ITEMS if system.device.type == "cpu" else len(items)
    given = list(answer(system, items, batch_items))
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
    seed = ITEMS_SEED - (cell.seed in grid.tuning_seeds)
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
