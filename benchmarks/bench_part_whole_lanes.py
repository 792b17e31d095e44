"""Cells of `part_whole_small` as stacks: all tasks, seeds and rates of an arm at once.

`counterpoint study part_whole_small` gives the same records cell by cell. This script trains all
lanes of an arm in one CUDA graph, scores them on the way, and stops in time: what has been learned
by then is scored. Cells that are in the folder are not run again.

    python benchmarks/bench_part_whole_lanes.py --prepare --batches /tmp/b
    python benchmarks/bench_part_whole_lanes.py --device cuda --batches /tmp/b --out runs/lanes
    python benchmarks/bench_part_whole_lanes.py --report --out runs/lanes
    python benchmarks/bench_part_whole_lanes.py --pairs two_stream:hrt_words --out runs/lanes
"""

import argparse
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.data.recorded import Recorded
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.source import label_stream
from counterpoint.evaluate.report.grid_findings import RESULTS
from counterpoint.evaluate.report.grid_rows import by_cell, counts_of
from counterpoint.evaluate.statistics import bootstrap_difference, holm
from counterpoint.files import write_json
from counterpoint.progress import Progress
from counterpoint.recipes.cells import (
    Cell,
    cell_path,
    cell_run,
    keep_outcome,
    read_cells,
    write_records,
)
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.recipes.grid_report import report_grid
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.recipes.stacks import record_runs, recorded_run, run_stack, stacks
from counterpoint.systems import sketch, system_layout
from counterpoint.train.run import Run

SCORING_S = 6.0
"""Time that is kept for the last scores."""
WRITING_S = 100.0
"""The same for arms that write their own whole, tick by tick."""


def grid_of(args: argparse.Namespace) -> Grid:
    """Return the grid with the options of the command line."""
    grid = part_whole_small()
    by_name = {arm.name: arm for arm in grid.arms}
    return replace(
        grid,
        arms=tuple(by_name[name] for name in args.arms or by_name),
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
    if label_stream(system_layout(run.system)) is not None:
        return run
    plain = next(arm.system for arm in part_whole_small().arms if arm.name == "full")
    return replace(run, system=plain)


def batches(folder: Path, run: Run) -> Recorded:
    """Return the batches of a run."""
    return recorded_run(recorded_as(run), folder)


def train_group(
    grid: Grid, group: Sequence[Cell], args: argparse.Namespace, stop_at: float, name: str
) -> None:
    """Train one stack, and keep the records of its cells and their scores on the way."""
    begin = time.perf_counter()
    curves: dict[str, list[dict[str, Any]]] = {cell.key: [] for cell in group}
    clock: dict[str, float] = {"lanes": len(group), "steps": 0}

    def watch(step: int, scores: list[dict[str, float]]) -> bool:
        seconds = round(time.perf_counter() - begin, 2)
        clock.setdefault("first_report_s", seconds)
        clock.update(steps=step, trained_s=seconds)
        for cell, own in zip(group, scores, strict=False):
            curves[cell.key].append({"step": step} | own)
        return time.time() > stop_at

    outcomes = run_stack(grid, partial(batches, args.batches), args.device, group, watch)
    for outcome in outcomes.cells:
        keep_outcome(args.out, outcome)
    for key in outcomes.diverged:
        print(f"{key}: weights are not finite", flush=True)
    clock["all_s"] = round(time.perf_counter() - begin, 2)
    path = args.out / "curves" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"clock": clock, "curves": curves})
    print(f"{name}: {clock}", flush=True)


def run(grid: Grid, args: argparse.Namespace, deadline: float) -> None:
    """Run arm by arm until the deadline."""
    cells = [cell for arm in grid.arms for cell in cells_of(grid, arm.name, args.rates)]
    missing = [cell for cell in cells if not cell_path(args.out, cell).exists()]
    groups = stacks(grid, missing)
    for number, group in enumerate(groups):
        name = f"{group[0].arm}-{number}"
        arm = next(arm for arm in grid.arms if arm.name == group[0].arm)
        writes = label_stream(system_layout(arm.system)) is not None
        kept = WRITING_S if writes else SCORING_S
        if deadline - time.time() < kept + 2 * SCORING_S:
            print(f"{name}: no time left", flush=True)
            continue
        try:
            train_group(grid, group, args, deadline - kept, name)
        except Exception:  # one arm must not cost the others
            traceback.print_exc()


def count_recorded_rows(arm: GridArm, records: list[dict[str, Any]], batch_rows: int) -> None:
    """Count the FLOPs of curves for rows as they were recorded, not filled up to whole blocks."""
    system = sketch(arm.system)
    for record in records:
        num_ticks = FORMS[record["task"]].most_symbols
        a_step = system.flops_per_tick(num_ticks, training=True) * num_ticks * batch_rows
        for point in record["curve"]:
            point["flops"] = a_step * point["step"]


def report(grid: Grid, folder: Path) -> None:
    """Write the report of all arms whose cells are all there and were not stopped early."""
    finished = []
    left_out = []
    for arm in grid.arms:
        records = read_cells(folder, cells_of(grid, arm.name, grid.learning_rates))
        count_recorded_rows(arm, records, grid.train.batch_rows)
        steps = [record["curve"][-1]["step"] for record in records]
        whole = len(records) == len(grid.tasks) * len(grid.seeds)
        if whole and min(steps) == grid.train.num_steps:
            finished.append((arm, records))
        else:
            left_out.append(f"{arm.name} ({len(records)} cells, {min(steps, default=0)} steps)")
    grid = replace(grid, arms=tuple(arm for arm, _ in finished))
    write_records(folder / RESULTS, [record for _, records in finished for record in records])
    sentence = f"Left out, because they were not finished: {', '.join(left_out)}."
    report_grid(
        grid,
        folder,
        command="python benchmarks/bench_part_whole_lanes.py --device cuda",
        left_out=sentence if left_out else "",
    )


def compare(grid: Grid, folder: Path, pairs: Sequence[str]) -> None:
    """Print the differences of declared pairs of arms, on the seeds that both have finished.

    Holm's correction counts pairs and tasks without runs too, as tests that show nothing. A pair
    that was not declared must not be among them: if it differs, others would be corrected less.
    """
    records = [
        record
        for arm in grid.arms
        for record in read_cells(folder, cells_of(grid, arm.name, grid.learning_rates))
    ]
    write_records(folder / RESULTS, records)
    cells = by_cell(records)
    for (task, arm), found in cells.items():
        scores = ", ".join(f"{100 * record['score']:.0f}" for record in found)
        print(f"| {task} | {arm} | {scores} |")
    rows = []
    for pair in pairs:
        ours, theirs = pair.split(":")
        for task in grid.tasks:
            both = [cells.get((task, arm), []) for arm in (ours, theirs)]
            seeds = set.intersection(*({record["seed"] for record in own} for own in both))
            if len(seeds) < 2:
                continue
            first, second = (
                counts_of([record for record in own if record["seed"] in seeds]) for own in both
            )
            difference, p_value = bootstrap_difference(first, second)
            rows.append((pair, task, len(seeds), difference, p_value))
    num_not_run = len(pairs) * len(grid.tasks) - len(rows)
    corrected = holm([*(row[-1] for row in rows), *[1.0] * num_not_run])
    for (pair, task, count, gap, _), p_value in zip(rows, corrected, strict=False):
        ends = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        print(f"| {pair} | {task} | {count} seeds | {ends} | p = {p_value:.3f} after Holm |")


def main() -> None:
    """Prepare batches, train, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument(
        "--rates", nargs="+", type=float, default=list(part_whole_small().learning_rates)
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--curve-every", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--pairs", nargs="+", help="OURS:THEIRS, whose differences are printed")
    parser.add_argument("--batches", type=Path, default=Path("/tmp/part_whole_batches"))
    parser.add_argument("--out", type=Path, default=Path("runs/part_whole_lanes"))
    args = parser.parse_args()
    grid = grid_of(args)
    if args.report:
        report(grid, args.out)
        return
    if args.pairs:
        compare(grid, args.out, args.pairs)
        return
    if args.prepare:
        cells = [cell for arm in grid.arms for cell in cells_of(grid, arm.name, args.rates[:1])]
        runs = [recorded_as(cell_run(grid, cell)) for cell in cells]
        record_runs(runs, args.batches, Progress(quiet=True))
        return
    until = float(os.environ.get("DEADLINE", "inf"))
    run(grid, args, min(until, time.time() + args.seconds))


if __name__ == "__main__":
    main()
