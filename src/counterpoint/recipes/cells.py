"""Cells of a grid: each is one small run, of which a record is kept."""

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from counterpoint.data.tasks.items import REPORTED_SEED, best_constant, draw, scored_items
from counterpoint.data.tasks.named import data_digest, learned_data
from counterpoint.evaluate.report.grid_rows import DIVERGED
from counterpoint.evaluate.tasks import answer, may_be_told, respond
from counterpoint.files import whole_file, write_json
from counterpoint.packages import optional_module
from counterpoint.progress import Progress
from counterpoint.recipes.budget import Plan
from counterpoint.recipes.grid import Grid, joined_factors
from counterpoint.recipes.training import train_run
from counterpoint.systems.contract import System
from counterpoint.train.checkpoint import load_system
from counterpoint.train.distributed import World
from counterpoint.train.loop import DivergedError
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

CELLS = "cells"
WORK = "work"
DATA = "data"
"""Field of a record that has the digest of the data of its task."""

PART = "part"
"""Name of the stream that answers, in every arm."""

ITEMS_SEED = REPORTED_SEED
"""Seed of the reported items; the seed before it makes the items that choose a rate."""

WITH_TRUE_WHOLE = ", true whole"
"""End of the names of scores that a system has if it need not write its whole itself."""

CURVE_ITEMS = 100
"""Number of items on which a cell is scored during training, every ``train.evaluate_every``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a grid.

    Attributes:
        task: Name of the task.
        arm: Name of the arm.
        learning_rate: Highest learning rate.
        seed: Seed of the weights and of the order of the data.
    """

    task: str
    arm: str
    learning_rate: float
    seed: int

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.task}-{self.arm}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CellOutcome:
    """Result of a cell.

    Attributes:
        cell: The cell.
        record: Its row of the results, which is the same however often it is run on a CPU. On a GPU
            products are rounded otherwise (TF32).
        facts: Facts that are not results, such as its duration and the machine.
    """

    cell: Cell
    record: Mapping[str, Any]
    facts: Mapping[str, Any]


def run_cell(grid: Grid, work: Path, cell: Cell) -> CellOutcome:
    """Train one cell and let it answer.

    Args:
        grid: Grid of the cell.
        work: Folder for its run; a cell that was stopped there is continued.
        cell: The cell.

    """
    run = cell_run(grid, cell)
    begin = time.perf_counter()
    system: System | None = None
    try:
        result = train_run(
            run,
            work / cell.key,
            World(),
            plan=Plan(also=partial(score_on_the_way, grid, cell)),
            measure_end=False,
            progress=Progress(quiet=True),
            loggers=(),
        )
    except DivergedError:
        pass  # a result like any other: see `cell_outcome`
    else:
        if not result.finished:
            raise KeyboardInterrupt
        system = load_system(result.checkpoint)
    points = curve(read_metrics(work / cell.key / "metrics.jsonl"))
    items = cell_items(grid, cell)
    given = None if system is None else list(respond(system, items))
    told = None
    if system is not None and may_be_told(system.layout, items):
        told = list(answer(system, items, true_whole=True))
    facts = {"seconds": time.perf_counter() - begin, "threads": torch.get_num_threads()}
    return cell_outcome(grid, cell, given, points, facts, told)


def run_cell_elsewhere(grid: Grid, cell: Cell) -> CellOutcome:
    """Run a cell on a machine that does not see the folder of the grid; see `run_cell`."""
    with TemporaryDirectory() as work:
        return run_cell(grid, Path(work), cell)


def cell_run(grid: Grid, cell: Cell) -> Run:
    """Return the run of a cell; a cell that chooses a learning rate takes a share of the steps."""
    arm = next(arm for arm in grid.arms if arm.name == cell.arm)
    optimizer = replace(
        grid.train.optimizer,
        lr=cell.learning_rate,
        lr_factors=joined_factors(grid, arm),
    )
    train = replace(grid.train, seed=cell.seed, optimizer=optimizer)
    if cell.seed in grid.tuning_seeds:
        train = replace(train, num_steps=max(1, round(train.num_steps * grid.tuning_share)))
    return Run(
        name=cell.key,
        system=arm.system,
        data=learned_data(grid.task(cell.task), cell.seed),
        train=train,
    )


def cell_outcome(
    grid: Grid,
    cell: Cell,
    given: Sequence[Any] | None,
    points: Sequence[Mapping[str, float | None]],
    facts: Mapping[str, Any],
    told: Sequence[Any] | None = None,
) -> CellOutcome:
    """Return the outcome of a cell whose system has answered.

    Args:
        grid: Grid of the cell.
        cell: The cell.
        given: Its replies to `cell_items`; ``None`` if learning diverged. A rate that is tried then
            scores minus infinity, and a reported cell 0, with `DIVERGED` as its only score.
        points: Learning curve; see `curve`.
        facts: See `CellOutcome.facts`.
        told: What a system that writes labels replies if it is given the true ones; these scores
            are recorded beside the others and decide nothing.
    """
    record = _diverged(grid, cell) if given is None else _answered(grid, cell, given)
    if given is not None and told is not None:
        scores = grid.task(cell.task).score(cell_items(grid, cell), told)
        record["scores"] += [
            {"name": name + WITH_TRUE_WHOLE, "value": value} for name, value in scores.items()
        ]
    record[DATA] = data_digest(grid.task(cell.task))
    record["curve"] = list(points)
    facts = {**facts, "seconds": round(facts["seconds"], 2)}
    return CellOutcome(cell=cell, record=record, facts=facts)


def keep_outcome(folder: Path, outcome: CellOutcome) -> None:
    """Keep the outcome of a cell, and remove the folder in which it was trained.

    The duration is not a result and has a file of its own: the Parquet file of a grid that was
    killed equals that of one that was not.

    Args:
        folder: Folder of the grid.
        outcome: Result of `run_cell`.
    """
    key = outcome.cell.key
    write_records(cell_path(folder, outcome.cell), [outcome.record])
    write_json(folder / CELLS / f"{key}.json", outcome.facts)
    shutil.rmtree(folder / WORK / key, ignore_errors=True)


def curve(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Return the learning curve of a run, by step.

    Args:
        metrics: Lines of its ``metrics.jsonl``.

    Returns:
        ``step``, training ``flops``, ``loss`` in bits a trained symbol, and ``score``, the primary
        score on items that are not reported; ``None`` for values not measured at that step. The
        loss is that of the part: labels, which only some arms learn, are not in it.
    """
    points: dict[int, dict[str, float | None]] = {}
    for row in metrics:
        point = points.setdefault(
            row["step"],
            {"step": row["step"], "flops": row["flops"], "loss": None, "score": None},
        )
        if row.get("loss") is not None:
            nats = row.get("terms", {}).get(f"{PART}_nats")
            point["loss"] = row["loss"] if nats is None else nats / math.log(2)
        score = row.get("evaluation", {}).get("score")
        if score is not None:
            point["score"] = score
    return list(points.values())


def score_on_the_way(grid: Grid, cell: Cell, system: nn.Module) -> dict[str, float]:
    """Return the primary score during training, for grids that measure it."""
    items = curve_items(grid, cell)
    scores = grid.task(cell.task).score(items, list(respond(system, items)))
    return {"score": primary_score(grid, cell, scores)}


def curve_items(grid: Grid, cell: Cell) -> list[Any]:
    """Return the items that a cell answers during training, which are not reported."""
    return scored_items(grid.task(cell.task), ITEMS_SEED - 2, CURVE_ITEMS)


def primary_score(grid: Grid, cell: Cell, scores: Mapping[str, float]) -> float:
    """Return the score that was declared as primary; it is 0 if nothing was asked for it."""
    return scores.get(grid.task(cell.task).primary, 0.0)


def _answered(grid: Grid, cell: Cell, given: Sequence[Any]) -> dict[str, Any]:
    """Return the record of a cell that was trained."""
    task = grid.task(cell.task)
    items = cell_items(grid, cell)
    scores = task.score(items, given)
    counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
    return _record(cell, primary_score(grid, cell, scores), scores, counts)


def _diverged(grid: Grid, cell: Cell) -> dict[str, Any]:
    """Return the record of a cell whose learning diverged."""
    if cell.seed in grid.tuning_seeds:
        return _record(cell, float("-inf"))
    task = grid.task(cell.task)
    items = cell_items(grid, cell)
    constant = best_constant(items)
    asked = [task.counts(item, constant(item, draw(cell.seed, 0))) for item in items]
    return _record(cell, 0.0, {DIVERGED: 1.0}, [(0 * above, below) for above, below in asked])


def _record(
    cell: Cell,
    score: float,
    scores: Mapping[str, float] = MappingProxyType({}),
    counts: Sequence[tuple[float, float]] = (),
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


def cell_items(grid: Grid, cell: Cell) -> list[Any]:
    """Return the items of a cell: the same for every arm, and others if a rate is chosen."""
    seed = ITEMS_SEED - (cell.seed in grid.tuning_seeds)
    return scored_items(grid.task(cell.task), seed, grid.num_items)


def cell_path(folder: Path, cell: Cell) -> Path:
    """Return the path of the record of a cell."""
    return folder / CELLS / f"{cell.key}.parquet"


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a Parquet file of records; it appears complete or not at all."""
    arrow = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial_path:
        parquet.write_table(arrow.Table.from_pylist(list(records)), partial_path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a Parquet file."""
    found: list[dict[str, Any]] = optional_module("pyarrow.parquet").read_table(path).to_pylist()
    return found


def read_cells(folder: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the records of those cells that have one, in order."""
    paths = [cell_path(folder, cell) for cell in cells]
    return [record for path in paths if path.exists() for record in read_records(path)]
