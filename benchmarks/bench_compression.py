"""Which compression of the part lets the whole answer, and does the part follow the whole?

The grid is `counterpoint.recipes.compression`: compressors x rates x slots, and blocks that end
after a fixed length, at words or where a router finds an end. The tasks are `logbook` (every log
asks for its whole) and `navon`, half as long as usual. Six lanes (two tasks, three seeds) of an arm
learn as one stack; arms are run in the declared order until the time is over, and the results of
every finished arm are kept: the same command goes on with the others. On a GPU:

    python benchmarks/bench_compression.py --device cuda --seconds 65 --out runs/compression
    python benchmarks/bench_compression.py --table benchmarks/results/compression.parquet
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from stack_lanes import (
    TASKS,
    TRAIN,
    Record,
    in_time,
    interval,
    learn,
    prepare_lanes,
    recorded,
    run_arms,
    scored_items,
    stack_parser,
)

from counterpoint.evaluate.item_whole import use_of_whole
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.compression import (
    ROW_TICKS,
    CompressionArm,
    compression_arms,
    compression_system,
)
from counterpoint.systems import build_system, sketch
from counterpoint.systems.contract import state_bytes
from counterpoint.train.config import TrainConfig

PRIMARY = "whole"
"""Kind of the answers that decide, declared before the runs: they need the whole text."""


def run_arm(
    arm: CompressionArm, seeds: Sequence[int], train: TrainConfig, device: str, folder: Path
) -> list[Record]:
    """Train all lanes of an arm as one stack; return the record of each."""
    begin = time.perf_counter()
    lanes = list(product(TASKS, seeds))
    trains = [replace(train, seed=seed) for _, seed in lanes]
    systems = [build_system(compression_system(arm), one.seed) for one in trains]
    layout = systems[0].layout
    sources = [recorded(folder, *lane, train, layout) for lane in lanes]
    finite, curves = learn(systems, trains, sources, device)
    facts = {
        "arm": arm.name,
        **asdict(arm),
        "steps": train.num_steps,
        "flops_per_tick": systems[0].flops_per_tick(ROW_TICKS, training=True),
        "parameters": sum(weight.numel() for weight in systems[0].parameters()),
        "state_bytes": state_bytes(systems[0].initial_state(1)),
        "trained_seconds": time.perf_counter() - begin,
    }
    records = []
    for (task, seed), system, curve, good in zip(lanes, systems, curves, finite, strict=True):
        record = facts | {"task": task, "seed": seed, "curve": curve, "answers": []}
        if good:
            use = asdict(use_of_whole(system, scored_items(folder, task)))
            record |= use | {"answers": list(use["answers"])}
        records.append(record)
    seconds = time.perf_counter() - begin
    return [record | {"seconds": seconds} for record in records]


def run_in_time(
    arm: CompressionArm,
    deadline: float,
    seeds: Sequence[int],
    train: TrainConfig,
    device: str,
    folder: Path,
) -> list[Record]:
    """Run an arm unless the time is over."""
    return in_time(deadline, partial(run_arm, arm, seeds, train, device, folder))


def kind_of(record: Record, kind: str = PRIMARY) -> Record:
    """Return the answers of a kind in a record."""
    found: Record = next(one for one in record["answers"] if one["kind"] == kind)
    return found


def table(records: Sequence[Record], task: str) -> Iterator[str]:
    """Yield the lines of a Markdown table, one arm a line, with the collapse probes."""
    yield (
        "| blocks | whole % | by seed | swap-delta, bits | obeyed % | null key % | rank | FLOPs | "
        "state of a session today, kB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    own = [one for one in records if one["task"] == task and one["answers"]]
    arms = {arm.name: arm for arm in compression_arms()}
    plain = sketch(compression_system(arms["fixed 8 mean"]))
    plainest = plain.flops_per_tick(ROW_TICKS, training=True)
    order = [*arms]
    for name in sorted({one["arm"] for one in own}, key=order.index):
        cells = sorted((one for one in own if one["arm"] == name), key=lambda one: one["seed"])
        whole = [kind_of(one) for one in cells]
        right = [100 * one["right"] for one in whole]
        delta = [one["other_bits"] - one["own_bits"] for one in whole]
        obeyed = np.mean([100 * one["obeyed"] for one in whole])
        null = np.mean([100 * one["null_share"] for one in cells])
        rank = np.mean([one["effective_rank"] for one in cells])
        state = state_bytes(sketch(compression_system(arms[name])).initial_state(1))
        yield (
            f"| {name} | {interval(right)} | {', '.join(f'{one:.0f}' for one in right)} | "
            f"{interval(delta)} | {obeyed:.0f} | {null:.0f} | {rank:.1f} | "
            f"{cells[0]['flops_per_tick'] / plainest:.2f} | {state / 1000:.0f} |"
        )


def main() -> None:
    """Run the grid, or print its tables."""
    parser = stack_parser(__doc__, "compression")
    parser.add_argument("--arms", nargs="+", help="names; all by default")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    if args.table:
        for task in TASKS:
            print(task, *table(read_records(args.table), task), sep="\n")
        return
    train = replace(TRAIN, num_steps=args.num_steps)
    layout = sketch(compression_system(compression_arms()[0])).layout
    prepare_lanes(args.batches, args.seeds, train, layout)
    if args.prepare:
        return
    arms = [one for one in compression_arms() if not args.arms or one.name in args.arms]
    shared = (deadline, args.seeds, train, args.device, args.batches)
    works = {arm.name: partial(run_in_time, arm, *shared) for arm in arms}
    begun = {"seeds": args.seeds, "steps": args.num_steps, "device": args.device}
    path = args.out / "compression.parquet"
    for done in run_arms(works, begun, args.workers, path):
        right = ", ".join(f"{100 * kind_of(one)['right']:.0f}" for one in done if one["answers"])
        print(
            f"{done[0]['arm']:24} whole {right} %; trained after "
            f"{done[0]['trained_seconds']:.1f} of {done[0]['seconds']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
