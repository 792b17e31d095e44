"""Which compression of the part lets the whole answer, and does the part follow the whole?

The grid is `counterpoint.recipes.compression`: compressors x rates x slots, and blocks that end
after a fixed length, at words or where a router finds an end. The tasks are `logbook` (every log
asks for its whole) and `navon`, half as long as usual. Six lanes (two tasks, three seeds) of an arm
learn as one stack; arms are run in the declared order until the time is over, and the results of
every finished arm are kept. On a GPU:

    python benchmarks/bench_compression.py --device cuda --seconds 65 --out runs/compression
    python benchmarks/bench_compression.py --table benchmarks/results/compression.parquet
"""

import argparse
import multiprocessing
import pickle
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterpoint.data.recorded import Recorded, record_once
from counterpoint.data.tasks.items import HELD_OUT_SEED, Item, ScoredTask
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.navon import Navon
from counterpoint.data.tasks.source import PreparedTask, TaskData
from counterpoint.evaluate.item_whole import use_of_whole
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.files import whole_file
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.compression import (
    RATES,
    ROW_TICKS,
    CompressionArm,
    compression_arms,
    compression_system,
)
from counterpoint.systems import build_system, sketch
from counterpoint.systems.contract import state_bytes
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.stacked import Stack

TASKS: dict[str, ScoredTask] = {
    "logbook": Logbook(num_events=24, whole_share=1.0),
    "navon": Navon(num_blocks=8, block_symbols=8),
}
TRAIN = TrainConfig(
    num_steps=400,
    batch_rows=16,
    precision="float32",
    log_every=50,
    schedule=ScheduleConfig(warmup_steps=40),
    optimizer=OptimizerConfig(lr=3e-3),
)
NUM_ITEMS = 500
ITEMS_SEED = HELD_OUT_SEED - 1
PRIMARY = "whole"


def batches(folder: Path, task: str, seed: int, train: TrainConfig) -> Recorded:
    """Return the batches of a task and seed, which all arms share; they are made once."""
    layout = sketch(compression_system(compression_arms()[0])).layout
    data = PreparedTask(TaskData(task=TASKS[task], seed=seed), layout, max(RATES))
    if data.num_ticks != ROW_TICKS:
        raise SystemExit(f"Rows must have {ROW_TICKS} ticks: {task} has {data.num_ticks}.")
    source = data.batches(train.batch_rows, seed)
    name = f"{task}-{seed}-{train.num_steps}x{train.batch_rows}.pt"
    return record_once(source, train.num_steps, folder / name)


@cache
def scored_items(folder: Path, task: str) -> tuple[Item, ...]:
    """Return the items on which a task is scored; they are made once."""
    path = folder / f"{task}-items.pickle"
    if not path.exists():
        items = tuple(TASKS[task].item(ITEMS_SEED, number) for number in range(NUM_ITEMS))
        with whole_file(path) as partial_path:
            partial_path.write_bytes(pickle.dumps(items))
    found: tuple[Item, ...] = pickle.loads(path.read_bytes())
    return found


def run_arm(
    arm: CompressionArm, seeds: Sequence[int], train: TrainConfig, device: str, folder: Path
) -> list[dict[str, Any]]:
    """Train all lanes of an arm as one stack; return the record of each."""
    begin = time.perf_counter()
    torch.set_num_threads(1)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    config = compression_system(arm)
    lanes = list(product(TASKS, seeds))
    trains = [replace(train, seed=seed) for _, seed in lanes]
    systems = [build_system(config, one.seed).to(device) for one in trains]
    curves: list[list[dict[str, float]]] = [[] for _ in lanes]

    def on_step(step: int, bits: Sequence[float]) -> None:
        for points, loss in zip(curves, bits, strict=True):
            points.append({"step": step, "loss": loss, "at": time.perf_counter() - begin})

    stack = Stack(systems, trains)
    stack.train([batches(folder, *lane, train) for lane in lanes], on_step)
    finite = stack.finish()
    trained = time.perf_counter() - begin
    costs = {
        "flops_per_tick": systems[0].flops_per_tick(ROW_TICKS, training=True),
        "parameters": sum(weight.numel() for weight in systems[0].parameters()),
        "state_bytes": state_bytes(systems[0].initial_state(1)),
    }
    records = []
    for (task, seed), system, points, good in zip(lanes, systems, curves, finite, strict=True):
        items = scored_items(folder, task)
        use = asdict(use_of_whole(system.eval(), items)) if good else {"answers": []}
        records.append(
            {"arm": arm.name, **asdict(arm), "task": task, "seed": seed, "steps": train.num_steps}
            | costs
            | use
            | {"answers": list(use["answers"]), "curve": points, "trained_seconds": trained}
        )
    seconds = time.perf_counter() - begin
    return [record | {"seconds": seconds} for record in records]


def run_in_time(
    arm: CompressionArm, deadline: float, work: partial[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Run an arm unless the time is over; an arm that fails is printed and left out."""
    if time.time() > deadline:
        return []
    try:
        return work(arm)
    except Exception:
        traceback.print_exc()
        return []


def kind_of(record: dict[str, Any], kind: str = PRIMARY) -> dict[str, Any]:
    """Return the answers of a kind in a record."""
    found: dict[str, Any] = next(one for one in record["answers"] if one["kind"] == kind)
    return found


def interval(values: Sequence[float]) -> str:
    """Return a mean over seeds with its t interval."""
    ratio = bootstrap_ratio(np.array(values)[:, None], np.ones((len(values), 1)))
    if len(values) == 1:
        return f"{ratio.value:.1f}"
    return f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]"


def table(records: Sequence[dict[str, Any]], task: str) -> Iterator[str]:
    """Yield the lines of a Markdown table, one arm a line, with the collapse probes."""
    yield "| blocks | whole % | by seed | swap-delta, bits | obeyed % | null key % | rank | FLOPs |"
    yield "|---|---|---|---|---|---|---|---|"
    own = [one for one in records if one["task"] == task and one["answers"]]
    plainest = next(one for one in records if one["arm"] == "fixed 8 mean")["flops_per_tick"]
    order = {arm.name: number for number, arm in enumerate(compression_arms())}
    for name in sorted({one["arm"] for one in own}, key=order.__getitem__):
        cells = sorted((one for one in own if one["arm"] == name), key=lambda one: one["seed"])
        whole = [kind_of(one) for one in cells]
        right = [100 * one["right"] for one in whole]
        delta = [one["other_bits"] - one["own_bits"] for one in whole]
        obeyed = [100 * one["obeyed"] for one in whole]
        null = np.mean([100 * one["null_share"] for one in cells])
        rank = np.mean([one["effective_rank"] for one in cells])
        yield (
            f"| {name} | {interval(right)} | {', '.join(f'{one:.0f}' for one in right)} | "
            f"{interval(delta)} | {np.mean(obeyed):.0f} | {null:.0f} | {rank:.1f} | "
            f"{cells[0]['flops_per_tick'] / plainest:.2f} |"
        )


def main() -> None:
    """Run the grid, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--num-steps", type=int, default=TRAIN.num_steps)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="names; all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=Path, default=Path("runs/compression/batches"))
    parser.add_argument("--prepare", action="store_true", help="only make the batches")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--table", type=Path, help="print the tables of a Parquet file")
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    if args.table:
        for task in TASKS:
            print(task, *table(read_records(args.table), task), sep="\n")
        return
    train = replace(TRAIN, num_steps=args.num_steps)
    for task, seed in product(TASKS, args.seeds):
        batches(args.batches, task, seed, train)
    for task in TASKS:
        scored_items(args.batches, task)
    if args.prepare:
        return
    arms = [one for one in compression_arms() if not args.arms or one.name in args.arms]
    work = partial(run_arm, seeds=args.seeds, train=train, device=args.device, folder=args.batches)
    spawn = multiprocessing.get_context("spawn")
    records: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.workers, spawn) as pool:
        jobs = [pool.submit(run_in_time, arm, deadline, work) for arm in arms]
        for job in as_completed(jobs):
            done = job.result()
            if not done:
                continue
            records += done
            write_records(args.out / "compression.parquet", records)
            right = ", ".join(
                f"{100 * kind_of(one)['right']:.0f}" for one in done if one["answers"]
            )
            print(
                f"{done[0]['arm']:24} whole {right} %; trained after "
                f"{done[0]['trained_seconds']:.1f} of {done[0]['seconds']:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
