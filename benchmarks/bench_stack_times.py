"""How long does a training step of a stack take, and what does a stack cost before its first step?

The lanes are cells of `part_whole_small`: all its tasks, with different seeds. Batches are made
here, so the tool needs nothing but a device. Memory is the largest that was allocated.

    python benchmarks/bench_stack_times.py --device cuda --arms two_stream hrt --lanes 1 5 25 50 \
        --out benchmarks/results/stack_times.json
"""

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from counterpoint.data.recorded import Recorded, record
from counterpoint.files import write_json
from counterpoint.recipes.cells import Cell, cell_run
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.recipes.stacks import build_stack
from counterpoint.systems import sketch
from counterpoint.train.run import Run

STEPS = 16
FIRST = 4  # steps that are slower: libraries are prepared, and a graph is made


def runs_of(arm: str, rows: int, lanes: int) -> list[Run]:
    """Return the runs of as many cells of an arm."""
    grid = part_whole_small()
    train = replace(grid.train, num_steps=STEPS, batch_rows=rows, log_every=1, evaluate_every=0)
    grid = replace(grid, train=train, tuning_seeds=())
    cells = [
        Cell(task=task, arm=arm, learning_rate=grid.learning_rates[0], seed=seed)
        for seed in range(lanes)
        for task in grid.tasks
    ]
    return [cell_run(grid, cell) for cell in cells[:lanes]]


def recorded(run: Run) -> Recorded:
    """Return the batches of a run."""
    prepared = run.data.prepare(sketch(run.system))
    return record(prepared.batches(run.train.batch_rows, run.train.seed), STEPS)


def timed(arm: str, runs: list[Run], sources: list[Recorded], device: str) -> dict[str, Any]:
    """Train a stack for a few steps; return its times."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    stack = build_stack(runs, device)
    moments = [time.perf_counter()]
    stack.train(sources, lambda step, bits: moments.append(time.perf_counter()))
    steps = [1000 * (b - a) for a, b in zip(moments[:-1], moments[1:], strict=True)]
    step_ms = median(steps[FIRST:])
    return {
        "arm": arm,
        "lanes": len(runs),
        "rows": runs[0].train.batch_rows,
        "ticks": max(source.num_ticks for source in sources),
        "build_ms": round(1000 * (moments[0] - begin)),
        "first_steps_ms": [round(step) for step in steps[:FIRST]],
        "step_ms": round(step_ms, 2),
        "lane_ms": round(step_ms / len(runs), 3),
        "gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else device,
    }


def main() -> None:
    """Print one line for every size of every arm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arms", nargs="+", default=["two_stream", "hrt"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 5, 25, 50])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("runs/stack_times.json"))
    args = parser.parse_args()
    begin = time.perf_counter()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    made: dict[int, Recorded] = {}
    for lanes, arm in product(args.lanes, args.arms):
        if time.perf_counter() - begin > args.seconds:
            print("No time left.", flush=True)
            break
        runs = runs_of(arm, args.rows, lanes)
        num_tasks = len(part_whole_small().tasks)
        for number in range(min(lanes, num_tasks)):
            made.setdefault(number, recorded(runs[number]))
        sources = [made[number % num_tasks] for number in range(lanes)]
        rows.append(timed(arm, runs, sources, args.device))
        print(rows[-1], flush=True)
        write_json(args.out, rows)


if __name__ == "__main__":
    main()
