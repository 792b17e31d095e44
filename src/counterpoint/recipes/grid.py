"""A grid: arms × tasks × learning rates × seeds under one budget, cell by cell.

A cell is one small run: an arm learns a task with a learning rate and a seed, and answers items
that no run has learned from. Every finished cell is a Parquet file, so a grid that was stopped goes
on where it was, with the same outcome. Learning rates are chosen on seeds and items of their own:
for each arm and task the rate with the best primary score on ``tuning_seeds`` is the one that is
reported on ``seeds``. A rate with which learning diverges is not chosen.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch

from counterpoint.config_json import encode
from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.source import HELD_OUT_SEED, TaskData
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.evaluate.tasks import answer
from counterpoint.files import read_json, whole_file, write_json
from counterpoint.locks import locked
from counterpoint.packages import optional_module
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.training import train_run
from counterpoint.systems import SystemConfig, sketch
from counterpoint.systems.contract import System, state_bytes
from counterpoint.train.checkpoint import load_system
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.loop import DivergedError
from counterpoint.train.run import Run

GRID = "grid.json"
CELLS = "cells"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridArm:
    """A system of a grid.

    Attributes:
        name: Names it in tables.
        system: Its config.
        unmatched: Why it is not held to the budget, such as "a ceiling"; empty where it is.
    """

    name: str
    system: SystemConfig
    unmatched: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Largest differences to the first arm, as shares; ``None`` only prints them.

    Attributes:
        parameters: Limit of the number of trainable parameters.
        flops: Limit of the training FLOPs a tick. The optimiser, AdamW, has no matrix products.
        state: Limit of the state bytes of a session.
    """

    parameters: float | None = 0.02
    flops: float | None = 0.05
    state: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What is compared.

    Attributes:
        name: Names its folder.
        purpose: What it is to show, in a sentence.
        arms: Systems; the first is what budgets are compared with.
        tasks: Names in `counterpoint.data.tasks.part_whole.TASKS`.
        train: How each cell learns; its learning rate and seed are those of the cell.
        learning_rates: Rates that each arm may have.
        seeds: Training seeds that are reported.
        tuning_seeds: Seeds on which rates are chosen; none of them is reported.
        num_items: Items that are scored.
        limits: The budget.
    """

    name: str
    arms: tuple[GridArm, ...]
    tasks: tuple[str, ...]
    train: TrainConfig
    purpose: str = ""
    learning_rates: tuple[float, ...] = (2e-3,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (100,)
    num_items: int = 1000
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise UserError(f"A grid must have arms with different names: got {names}.")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise UserError(f"`tasks` must be some of {', '.join(TASKS)}: got {self.tasks}.")
        rates = tuple(f"{rate:g}" for rate in self.learning_rates)  # as cells are named
        for field_name, values in (
            ("tasks", self.tasks),
            ("seeds", self.seeds),
            ("tuning_seeds", self.tuning_seeds),
            ("learning_rates", rates),
        ):
            if len(set(values)) < len(values):
                raise UserError(
                    f"`{field_name}` must be different, for each is counted once: got {values}."
                )
        if set(self.seeds) & set(self.tuning_seeds):
            raise UserError(
                f"Seeds that choose learning rates must not be reported: got {self.tuning_seeds} "
                f"and {self.seeds}. Make them different."
            )
        if not self.seeds or not self.learning_rates:
            raise UserError("A grid must have at least one seed and one learning rate.")
        if len(self.learning_rates) > 1 and not self.tuning_seeds:
            raise UserError("Several learning rates need `tuning_seeds` to be chosen on.")


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
class Costs:
    """What an arm costs on a task: parameters, training FLOPs a tick, state bytes of a session."""

    parameters: int
    flops: float
    state: int


def costs(grid: Grid, task: str) -> dict[str, Costs]:
    """What every arm costs on a task.

    Raises:
        UserError: An arm is outside of the budget; the arm, the share and the limit are named.
    """
    found = {}
    for arm in grid.arms:
        system = sketch(arm.system)
        num_ticks = TaskData(task=TASKS[task]).num_ticks(system.layout)
        found[arm.name] = Costs(
            parameters=sum(weight.numel() for weight in system.parameters()),
            flops=system.flops_per_tick(num_ticks, training=True),
            state=state_bytes(system.initial_state(1)),
        )
    first = found[grid.arms[0].name]
    for arm in grid.arms[1:]:
        for name in ("parameters", "flops", "state"):
            share = getattr(found[arm.name], name) / getattr(first, name) - 1
            limit = getattr(grid.limits, name)
            if not arm.unmatched and limit is not None and abs(share) > limit:
                raise UserError(
                    f"Arms must cost the same: {arm.name!r} has {share:+.1%} {name} beside "
                    f"{grid.arms[0].name!r} on {task!r}, and the limit is {limit:.0%}. Change its "
                    "shape, or say in `unmatched` why it is not held to the budget."
                )
    return found


def run_grid(
    grid: Grid, folder: Path, *, num_processes: int = 1, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run all cells that are not there yet, in several processes.

    Args:
        grid: What to do.
        folder: Its folder; a grid that was begun there must be the same one.
        num_processes: Processes, each with one thread and one cell at a time.
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
            _run_cells(grid, folder, tuned, num_processes, progress, "choosing learning rates")
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
        _run_cells(grid, folder, reported, num_processes, progress, grid.name)
        records = sorted(read_cells(folder, reported), key=lambda record: str(record["cell"]))
        _write_records(folder / "results.parquet", records)
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


def read_cells(folder: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The records of these cells, those that are there, in their order."""
    parquet = optional_module("pyarrow.parquet")
    found: list[dict[str, Any]] = []
    for cell in cells:
        path = _path(folder, cell)
        if path.exists():
            found += parquet.read_table(path).to_pylist()
    return found


def _run_cells(
    grid: Grid,
    folder: Path,
    cells: Sequence[Cell],
    num_processes: int,
    progress: Progress,
    title: str,
) -> None:
    missing = [cell for cell in cells if not _path(folder, cell).exists()]
    task = progress.task(title)
    task(len(cells) - len(missing), len(cells))
    for number, key in enumerate(_worked(grid, folder, missing, num_processes), 1):
        task(len(cells) - len(missing) + number, len(cells), figures=key)


def _worked(grid: Grid, folder: Path, cells: Sequence[Cell], num_processes: int) -> Iterator[str]:
    """The keys of cells in the order in which they are done."""
    # Also one process is another one: each has one thread, so that numbers do not depend on how
    # many there are.
    work = partial(run_cell, grid, folder)
    with closing(work_in_processes(work, cells, num_processes)) as done:
        yield from done


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
    _write_records(_path(folder, cell), [record])
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


def _path(folder: Path, cell: Cell) -> Path:
    return folder / CELLS / f"{cell.key}.parquet"


def _write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    arrow = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial_path:
        parquet.write_table(arrow.Table.from_pylist(list(records)), partial_path)


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
