"""Cells of `part_whole_small` as stacks: all tasks, seeds and rates of an arm at once.

`counterpoint study part_whole_small` gives the same records cell by cell. This script trains all
lanes of an arm in one CUDA graph, scores them on the way, and stops in time: what has been learned
by then is scored. Cells that are in the folder are not run again.

    python benchmarks/bench_part_whole_lanes.py --prepare --batches /tmp/b
    python benchmarks/bench_part_whole_lanes.py --device cuda --batches /tmp/b --out runs/lanes
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.source import label_stream
from counterpoint.evaluate.tasks import answer
from counterpoint.progress import Progress
from counterpoint.recipes.cells import (
    ITEMS_SEED,
    Cell,
    CellOutcome,
    cell_outcome,
    cell_path,
    cell_run,
    keep_outcome,
)
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.recipes.stacks import record_runs, recorded_run, train_lanes
from counterpoint.systems import sketch
from counterpoint.systems.contract import System
from counterpoint.train.run import Run

CURVE_ITEMS = 200
SCORING_S = 15.0
"""Time that is kept for the last scores."""


def grid_of(args: argparse.Namespace) -> Grid:
    """Return the grid with the options of the command line."""
    grid = part_whole_small()
    return replace(
        grid,
        arms=tuple(arm for arm in grid.arms if not args.arms or arm.name in args.arms),
        tasks=tuple(args.tasks or grid.tasks),
        seeds=tuple(args.seeds or grid.seeds),
        tuning_seeds=(),
        learning_rates=grid.learning_rates,
        num_items=args.items,
        train=replace(
            grid.train,
            num_steps=args.steps or grid.train.num_steps,
            batch_rows=args.rows or grid.train.batch_rows,
            log_every=100,
            evaluate_every=args.curve_every,
        ),
    )


def cells_of(grid: Grid, arm: str, rates: Sequence[float]) -> list[Cell]:
    """Return the cells of an arm."""
    return [
        Cell(task=task, arm=arm, learning_rate=rate, seed=seed)
        for seed in grid.seeds
        for rate in rates
        for task in grid.tasks
    ]


def recorded_as(run: Run) -> Run:
    """Return the run whose batches are recorded: one for all arms that read the same streams."""
    if label_stream(sketch(run.system).layout) is not None:
        return run
    plain = next(arm.system for arm in part_whole_small().arms if arm.name == "full")
    return replace(run, system=plain)


def scores_of(task_name: str, system: System, device: str) -> dict[str, float]:
    """Return all scores on items that are not reported."""
    task = FORMS[task_name]
    items = [task.item(ITEMS_SEED - 2, number) for number in range(CURVE_ITEMS)]
    return task.score(items, list(answer(system.to(device), items, CURVE_ITEMS)))


class Curves:
    """Learning curves of the lanes of an arm."""

    def __init__(self, cells: Sequence[Cell], flops: Sequence[float], stop_at: float) -> None:
        self.cells = cells
        self.flops = flops
        self.stop_at = stop_at
        self.losses: list[list[dict[str, float | None]]] = [[] for _ in cells]
        self.scores: list[list[dict[str, Any]]] = [[] for _ in cells]

    def on_step(self, step: int, bits: Sequence[float]) -> bool:
        """Keep the losses of a step; return whether the time is over."""
        for points, cost, loss in zip(self.losses, self.flops, bits, strict=True):
            points.append({"step": step, "flops": cost * step, "loss": loss, "score": None})
        return time.time() > self.stop_at

    def visit(self, device: str, step: int, systems: Sequence[System]) -> None:
        """Score all lanes."""
        for cell, points, system in zip(self.cells, self.scores, systems, strict=True):
            points.append({"step": step} | scores_of(cell.task, system, device))

    def of(self, lane: int) -> list[dict[str, float | None]]:
        """Return the curve of a lane as grids keep it: losses, and primary scores where known."""
        primary = FORMS[self.cells[lane].task].primary
        known = {point["step"]: point.get(primary) for point in self.scores[lane]}
        return [point | {"score": known.get(point["step"])} for point in self.losses[lane]]


def train_arm(
    grid: Grid, arm: str, args: argparse.Namespace, stop_at: float
) -> tuple[list[tuple[Cell, System | None]], Curves]:
    """Train all cells of an arm that are missing."""
    cells = [c for c in cells_of(grid, arm, args.rates) if not cell_path(args.out, c).exists()]
    runs = [cell_run(grid, cell) for cell in cells]
    flops = []
    for run in runs:
        system = sketch(run.system)
        num_ticks = run.data.num_ticks(system.layout)
        flops.append(system.flops_per_tick(num_ticks, training=True) * num_ticks * args.rows)
    curves = Curves(cells, flops, stop_at)
    if not cells:
        return [], curves
    sources = [recorded_run(recorded_as(run), args.batches) for run in runs]
    # A system that writes its own whole answers tick by tick, which is too slow on the way.
    writes = label_stream(sketch(runs[0].system).layout) is not None
    visit = None if writes else partial(curves.visit, args.device)
    begin = time.perf_counter()
    systems = train_lanes(runs, sources, args.device, curves.on_step, visit=visit)
    taken = curves.losses[0][-1]["step"]
    seconds = time.perf_counter() - begin
    print(f"{arm}: {len(cells)} lanes, {taken} steps, {seconds:.1f} s", flush=True)
    return list(zip(cells, systems, strict=True)), curves


def outcome(
    grid: Grid,
    device: str,
    facts: dict[str, Any],
    cell: Cell,
    system: System | None,
    points: list[dict[str, float | None]],
) -> CellOutcome:
    """Let a lane answer."""
    torch.set_num_threads(1)
    here = None if system is None else system.to(device)
    return cell_outcome(grid, cell, here, points, facts)


def score_arm(
    grid: Grid,
    lanes: Sequence[tuple[Cell, System | None]],
    curves: Curves,
    args: argparse.Namespace,
    facts: dict[str, Any],
) -> None:
    """Let all lanes of an arm answer, and keep their records."""
    writes = any(system and label_stream(system.layout) is not None for _, system in lanes)
    curve = [curves.of(lane) for lane in range(len(lanes))]
    if writes:  # tick by tick, so in as many processes as there are cores
        num = min(len(lanes), os.cpu_count() or 1)
        with ProcessPoolExecutor(num, mp_context=get_context("spawn")) as pool:
            left = [
                pool.submit(outcome, grid, "cpu", facts, cell, system, points)
                for (cell, system), points in zip(lanes, curve, strict=True)
            ]
            for one in left:
                keep_outcome(args.out, one.result())
        return
    for (cell, system), points in zip(lanes, curve, strict=True):
        keep_outcome(args.out, outcome(grid, args.device, facts, cell, system, points))


def run(grid: Grid, args: argparse.Namespace, deadline: float) -> None:
    """Run arm by arm until the deadline."""
    for arm in grid.arms:
        if time.time() > deadline - 2 * SCORING_S:
            print(f"{arm.name}: no time left", flush=True)
            continue
        begin = time.perf_counter()
        try:
            lanes, curves = train_arm(grid, arm.name, args, deadline - SCORING_S)
            num = max(len(lanes), 1)
            seconds = (time.perf_counter() - begin) / num
            facts = {"seconds": seconds, "lanes": num, "device": args.device}
            by_lane = {
                cell.key: points for cell, points in zip(curves.cells, curves.scores, strict=True)
            }
            path = args.out / "curves" / f"{arm.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(by_lane))
            score_arm(grid, lanes, curves, args, facts)
        except Exception:  # one arm must not cost the others
            traceback.print_exc()


def main() -> None:
    """Prepare batches, or train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--curve-every", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/part_whole_lanes"))
    args = parser.parse_args()
    grid = grid_of(args)
    if args.prepare:
        cells = [cell for arm in grid.arms for cell in cells_of(grid, arm.name, args.rates[:1])]
        runs = [recorded_as(cell_run(grid, cell)) for cell in cells]
        record_runs(runs, args.batches, Progress(quiet=True))
        return
    until = float(os.environ.get("JOB_DEADLINE", "inf"))
    run(grid, args, min(until, time.time() + args.seconds))


if __name__ == "__main__":
    main()
