"""Cells of one arm and task trained together, as lanes of a stack, which is faster on a GPU.

A lane learns what its cell would learn alone, up to rounding; see `counterpoint.train.stacked`.
"""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from counterpoint.config_json import encode
from counterpoint.data.recorded import Recorded, record_once
from counterpoint.data.source import BatchSource
from counterpoint.digests import json_digest
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.cells import Cell, CellOutcome, cell_outcome, cell_run
from counterpoint.recipes.grid import Grid
from counterpoint.systems import build_system, sketch
from counterpoint.train.loop import DivergedError
from counterpoint.train.run import Run
from counterpoint.train.stacked import Stack

BATCHES = "batches"


def stacks(grid: Grid, cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Return groups of cells that can be trained together, in the order of their first cells."""
    groups: dict[tuple[str, str, bool], list[Cell]] = {}
    for cell in cells:
        key = (cell.task, cell.arm, cell.seed in grid.tuning_seeds)
        groups.setdefault(key, []).append(cell)
    return [tuple(group) for group in groups.values()]


def run_stack(grid: Grid, batches: Path, device: str, cells: Sequence[Cell]) -> list[CellOutcome]:
    """Train cells of one arm and task together, and let each answer.

    Args:
        grid: Grid of the cells.
        batches: Folder of recorded batches.
        device: Device on which they are trained.
        cells: The cells.

    Raises:
        DivergedError: Weights of a reported cell are not finite.
    """
    begin = time.perf_counter()
    runs = [cell_run(grid, cell) for cell in cells]
    systems = [build_system(run.system, run.train.seed).to(device) for run in runs]
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    flops = [_flops_per_step(run) for run in runs]
    curves: list[list[dict[str, float | None]]] = [[] for _ in cells]

    def on_step(step: int, bits: Sequence[float]) -> None:
        for points, cost, loss in zip(curves, flops, bits, strict=True):
            points.append({"step": step, "flops": cost * step, "loss": loss, "score": None})

    stack = Stack(systems, [run.train for run in runs])
    stack.train([_recorded(batches, run) for run in runs], on_step)
    finite = stack.finish()
    seconds = (time.perf_counter() - begin) / len(cells)
    facts = {"seconds": seconds, "lanes": len(cells), "device": device}
    outcomes = []
    for cell, system, points, good in zip(cells, systems, curves, finite, strict=True):
        if not good and cell.seed not in grid.tuning_seeds:
            raise DivergedError(
                f"Weights must be finite: those of {cell.key} are not. Lower its learning rate."
            )
        outcomes.append(cell_outcome(grid, cell, system if good else None, points, facts))
    return outcomes


def _flops_per_step(run: Run) -> float:
    system = sketch(run.system)
    num_ticks = run.data.num_ticks(system.layout)
    flops = system.flops_per_tick(num_ticks, training=True)
    return flops * num_ticks * run.train.batch_rows


def record_batches(grid: Grid, batches: Path, cells: Sequence[Cell], progress: Progress) -> None:
    """Make the batches of cells, in as many processes as there are cores."""
    runs = {_path(batches, run): run for run in (cell_run(grid, cell) for cell in cells)}
    missing = [run for path, run in runs.items() if not path.exists()]
    task = progress.task("making batches")
    work = partial(_record, batches)
    with closing(work_in_processes(work, missing, os.cpu_count() or 1)) as done:
        for number, name in enumerate(done, 1):
            task(number, len(missing), figures=name)


def _record(batches: Path, run: Run) -> str:
    _recorded(batches, run)
    return run.name


def _recorded(batches: Path, run: Run) -> Recorded:
    return record_once(_source(run), run.train.num_steps, _path(batches, run))


def _source(run: Run) -> BatchSource:
    prepared = run.data.prepare(sketch(run.system))
    return prepared.batches(run.train.batch_rows, run.train.seed)


def _path(batches: Path, run: Run) -> Path:
    """Return the path of the batches of a run; arms that read the same streams share it."""
    layout = sketch(run.system).layout
    facts = {
        "data": encode(run.data),
        "ticks": run.data.num_ticks(layout),
        "streams": [encode(stream) for stream in layout.predicted],
        "rows": run.train.batch_rows,
        "steps": run.train.num_steps,
        "seed": run.train.seed,
    }
    return batches / f"{json_digest(facts)}.pt"
