"""The grid `part_whole_small` on a GPU: all tasks, rates and seeds of an arm are lanes of a stack.

`make` makes the batches with all cores, `train` trains arms one after another and writes a Parquet
file of records for each as it is done, as `counterpoint study` keeps them, and `time` measures a
step of stacks of several sizes. `train` stops before `--deadline`, a time of the clock in seconds.

    python benchmarks/part_whole_stacks.py make --folder /tmp/batches --seeds 0 1 2 3 4
    python benchmarks/part_whole_stacks.py train --folder /tmp/batches --seeds 0 1 2 3 4 \
        --arms two_stream hrt --out runs/part_whole_gpu
    python benchmarks/part_whole_stacks.py time --folder /tmp/batches --arms two_stream hrt \
        --lanes 5 25 50 --out runs/part_whole_gpu
"""

import argparse
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.evaluate.lanes import answer_lanes
from counterpoint.files import write_json
from counterpoint.progress import Progress
from counterpoint.recipes.cells import (
    Cell,
    cell_items,
    cell_outcome,
    cell_run,
    curve_items,
    write_records,
)
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.recipes.stacks import (
    build_stack,
    flops_per_step,
    record_runs,
    recorded_run,
    stacks,
)

TIMED_STEPS = 12
REACHED = 0.95  # a lane with this primary score has learned its task


def grid_of(args: argparse.Namespace) -> Grid:
    """Return the recipe's grid with the changes of the command line."""
    grid = part_whole_small()
    train = replace(
        grid.train,
        num_steps=args.steps or grid.train.num_steps,
        batch_rows=args.rows or grid.train.batch_rows,
        evaluate_every=args.evaluate_every,
    )
    return replace(
        grid,
        train=train,
        num_items=args.items,
        tasks=tuple(args.tasks or grid.tasks),
        tuning_share=1,
    )


def cells_of(grid: Grid, arm: str, args: argparse.Namespace) -> list[Cell]:
    """Return the cells of an arm: all tasks, rates and seeds."""
    rates = args.rates or grid.learning_rates
    return [
        Cell(task=task, arm=arm, learning_rate=rate, seed=seed)
        for seed, rate, task in product(args.seeds, rates, grid.tasks)
    ]


def all_arms(grid: Grid, args: argparse.Namespace) -> list[str]:
    """Return the arms that were asked for."""
    return args.arms or [arm.name for arm in grid.arms]


def make(args: argparse.Namespace) -> None:
    """Make the batches of all cells; arms that read the same streams share them."""
    grid = grid_of(args)
    cells = [cell for arm in all_arms(grid, args) for cell in cells_of(grid, arm, args)]
    begin = time.perf_counter()
    record_runs([cell_run(grid, cell) for cell in cells], args.folder, Progress(quiet=True))
    print(f"batches of {len(cells)} cells in {time.perf_counter() - begin:.1f} s", flush=True)


def train(args: argparse.Namespace) -> None:
    """Train the arms, one after another."""
    grid = grid_of(args)
    for arm in all_arms(grid, args):
        for number, group in enumerate(stacks(grid, cells_of(grid, arm, args))):
            name = f"{arm}-{number}"
            if time.time() > args.deadline:
                print(f"no time left for {name}", flush=True)
                return
            try:
                train_group(grid, group, args.out / name, args)
            except Exception:
                traceback.print_exc()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def train_group(grid: Grid, cells: Sequence[Cell], out: Path, args: argparse.Namespace) -> None:
    """Train one stack, and write its records, its curves by kind of answer, and its times."""
    begin = time.perf_counter()
    runs = [cell_run(grid, cell) for cell in cells]
    stack = build_stack(runs, args.device)
    asked = [curve_items(cell) for cell in cells] if args.evaluate_every else []
    curves: list[list[dict[str, Any]]] = [[] for _ in cells]
    flops = [flops_per_step(run) for run in runs]
    clock = {"seconds": 0.0, "built": time.perf_counter() - begin, "answering": 0.0}

    def on_step(step: int, bits: list[float]) -> bool:
        clock.setdefault("first_report", time.perf_counter() - begin)
        clock["trained"] = time.perf_counter() - begin
        clock["steps"] = step
        given = None
        if asked and step % args.evaluate_every == 0:
            given = answer_lanes(stack, asked)
            clock["answering"] += time.perf_counter() - begin - clock["trained"]
        for lane, cell in enumerate(cells):
            cost = step * flops[lane]
            point: dict[str, Any] = {"step": step, "flops": cost, "loss": bits[lane], "score": None}
            if given is not None:
                point["scores"] = FORMS[cell.task].score(asked[lane], given[lane])
                point["score"] = point["scores"].get(FORMS[cell.task].primary, 0.0)
            curves[lane].append(point)
        if given is not None:
            write_curves(out, cells, curves, clock)
        return time.time() > args.deadline

    stack.train([recorded_run(run, args.folder) for run in runs], on_step)
    finite = stack.finish()
    before = time.perf_counter()
    items = [cell_items(grid, cell) for cell in cells]
    clock["items"] = time.perf_counter() - before
    answers = answer_lanes(stack, items)
    clock["answered"] = time.perf_counter() - before
    clock["all"] = time.perf_counter() - begin
    write_curves(out, cells, curves, clock)
    records = [
        cell_outcome(grid, cell, given if good else None, plain(points), clock).record
        for cell, given, points, good in zip(cells, answers, curves, finite, strict=True)
    ]
    write_records(out.with_suffix(".parquet"), records)
    show(records, clock, out.name)


def plain(points: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Return a curve as records have it, with the primary score alone."""
    return [{name: point[name] for name in ("step", "flops", "loss", "score")} for point in points]


def write_curves(
    out: Path, cells: Sequence[Cell], curves: list[list[dict[str, Any]]], clock: dict[str, float]
) -> None:
    """Write the learning curves of all lanes with the scores of every kind of answer."""
    by_cell = {cell.key: points for cell, points in zip(cells, curves, strict=True)}
    write_json(out.with_suffix(".json"), {"seconds": clock, "curves": by_cell})


def show(records: Sequence[Mapping[str, Any]], clock: dict[str, float], name: str) -> None:
    """Print the primary scores by task and rate, and the times."""
    found: dict[tuple[str, float], list[str]] = {}
    for record in records:
        key = (record["task"], record["learning_rate"])
        found.setdefault(key, []).append(f"{100 * record['score']:.0f}")
    for (task, rate), scores in found.items():
        print(f"{name} {task} {rate:g}: {' '.join(scores)}", flush=True)
    steps = 1000 * (clock["trained"] - clock["first_report"]) / max(clock["steps"], 1)
    print(
        f"{name}: {len(records)} lanes, {steps:.1f} ms a step, "
        + ", ".join(f"{what} {value:.1f}" for what, value in clock.items()),
        flush=True,
    )


def measure(args: argparse.Namespace) -> None:
    """Time a step of stacks of several sizes, and what a stack costs before its first steps."""
    grid = grid_of(args)
    rows = []
    for arm, lanes in product(all_arms(grid, args), args.lanes):
        if time.time() > args.deadline:
            break
        every = cells_of(grid, arm, args)
        cells = (every * (lanes // len(every) + 1))[:lanes]
        runs = [cell_run(grid, cell) for cell in cells]
        short = [
            replace(run, train=replace(run.train, num_steps=TIMED_STEPS, log_every=1))
            for run in runs
        ]
        sources = [recorded_run(run, args.folder) for run in runs]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        stack = build_stack(short, args.device)
        moments = [time.perf_counter()]

        def note(step: int, bits: list[float], moments: list[float] = moments) -> None:
            moments.append(time.perf_counter())

        try:
            stack.train(sources, note)
        except torch.OutOfMemoryError:
            print(f"{arm}: {lanes} lanes need more memory", flush=True)
            continue
        steps = [1000 * (b - a) for a, b in zip(moments[:-1], moments[1:], strict=True)]
        row = {
            "arm": arm,
            "lanes": lanes,
            "rows": grid.train.batch_rows,
            "build_ms": round(1000 * (moments[0] - begin)),
            "first_ms": [round(step) for step in steps[:3]],
            "step_ms": round(median(steps[3:]), 2),
            "lane_ms": round(median(steps[3:]) / lanes, 3),
            "gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if torch.cuda.is_available()
            else None,
        }
        print(row, flush=True)
        rows.append(row)
        write_json(args.out / "times.json", rows)
        del stack


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("make", "train", "time"))
    parser.add_argument("--folder", type=Path, required=True, help="folder of batches")
    parser.add_argument("--out", type=Path, default=Path("runs/part_whole_gpu"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--tasks", nargs="+", choices=FORMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[100])
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--evaluate-every", type=int, default=0)
    parser.add_argument("--lanes", nargs="+", type=int, default=[5, 25, 50])
    parser.add_argument("--deadline", type=float, default=float("inf"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    {"make": make, "train": train, "time": measure}[args.command](args)


if __name__ == "__main__":
    main()
