"""Does a whole that was trained on one task help with another, and a low rate with a high one?

Transfer: the arm "fixed 8 mean" of `counterpoint.recipes.compression` learns `logbook` and `navon`.
Then the same model learns the other task with the whole (compressor and whole tower) of the first,
which another seed has learned: frozen, frozen with random weights instead, or free; and with all
weights of the first. Ramp: blocks of 4 ticks in the first half of the training and of 8 in the
second, which begins with the weights of the first; against blocks of 8 in both halves. Schedules
begin anew with each half. Lanes are two tasks x three seeds. On a GPU:

    python benchmarks/bench_transfer.py --device cuda --seconds 40 --out runs/transfer
    python benchmarks/bench_transfer.py --table benchmarks/results/transfer.parquet
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from stack_lanes import (
    TASKS,
    TRAIN,
    Record,
    in_time,
    interval,
    learn,
    prepare_lanes,
    recorded,
    scored_items,
    stack_parser,
)
from torch import Tensor

from counterpoint.evaluate.item_whole import use_of_whole
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.compression import CompressionArm, compression_system
from counterpoint.systems import build_system, sketch, system_layout
from counterpoint.systems.contract import System
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import TrainConfig

PLAIN = compression_system(CompressionArm(ends="fixed", rate=8, compressor="mean"))
FROZEN = replace(PLAIN, whole_control="frozen")
LOW = replace(PLAIN, block_ticks=4)
PLAN = "steering.plan.weight"

Lane = tuple[str, int]
Weights = dict[str, Tensor]


class Bench:
    """Stacks of lanes on one device, and the records of what they have learned."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.train = replace(TRAIN, num_steps=args.num_steps, log_every=25)
        self.device: str = args.device
        self.folder: Path = args.batches
        self.out: Path = args.out
        self.lanes: list[Lane] = list(product(TASKS, args.seeds))
        self.records: list[Record] = []

    def run(
        self,
        config: TwoStreamConfig,
        train: TrainConfig,
        arms: dict[str, dict[Lane, Weights]],
        first_step: int = 0,
    ) -> dict[str, dict[Lane, Weights]]:
        """Train all lanes of some arms as one stack, and keep their records.

        Args:
            config: Shape of all arms.
            train: Their training.
            arms: Weights with which each lane of an arm begins in place of its random ones.
            first_step: Number of the batch that comes first.

        Returns:
            The weights that were learned, by arm and lane.
        """
        cells = [(arm, lane) for arm in arms for lane in self.lanes]
        trains = [replace(train, seed=seed) for _, (_, seed) in cells]
        systems = [build_system(config, one.seed) for one in trains]
        for (arm, lane), system in zip(cells, systems, strict=True):
            begin(system, arms[arm][lane])
        layout = systems[0].layout
        sources = [
            recorded(self.folder, task, seed, self.train, layout).after(first_step)
            for _, (task, seed) in cells
        ]
        finite, curves = learn(systems, trains, sources, self.device)
        learned: dict[str, dict[Lane, Weights]] = {arm: {} for arm in arms}
        for (arm, lane), system, curve, good in zip(cells, systems, curves, finite, strict=True):
            record = {"arm": arm, "task": lane[0], "seed": lane[1], "steps": train.num_steps}
            answers: list[Record] = []
            if good:
                use = use_of_whole(system, scored_items(self.folder, lane[0]))
                answers = [asdict(one) for one in use.answers]
                learned[arm][lane] = {
                    name: weight.detach().cpu() for name, weight in system.named_parameters()
                }
            self.records.append(record | {"curve": curve, "answers": answers})
        write_records(self.out / "transfer.parquet", self.records)
        print(*arms, f"{curves[0][-1]['at']:.1f} s", flush=True)
        return learned


def begin(system: System, weights: Weights) -> None:
    """Give a system some weights in place of its own."""
    with torch.no_grad():
        for name, weight in weights.items():
            system.get_parameter(name).copy_(weight)


def no_weights(lanes: Sequence[Lane]) -> dict[Lane, Weights]:
    """Return lanes that begin with random weights."""
    return {lane: {} for lane in lanes}


def of_other_task(learned: dict[Lane, Weights], lane: Lane, seeds: Sequence[int]) -> Weights:
    """Return what another seed has learned in the other task."""
    other = next(task for task in TASKS if task != lane[0])
    return learned[other, seeds[(seeds.index(lane[1]) + 1) % len(seeds)]]


def transfer(bench: Bench, seeds: Sequence[int]) -> list[Record]:
    """Train the tasks, and each with what the other has learned."""
    nothing = no_weights(bench.lanes)
    learned = bench.run(PLAIN, bench.train, {"all learned": nothing})["all learned"]
    whole = [name for name, w in sketch(FROZEN).named_parameters() if not w.requires_grad]
    everything = {lane: of_other_task(learned, lane, seeds) for lane in bench.lanes}
    wholes = {lane: {name: weights[name] for name in whole} for lane, weights in everything.items()}
    frozen = {"frozen, of the other task": wholes, "frozen, random": nothing}
    bench.run(FROZEN, bench.train, frozen)
    free = {"free, of the other task": wholes, "all of the other task": everything}
    bench.run(PLAIN, bench.train, free)
    return bench.records


def ramp(bench: Bench) -> list[Record]:
    """Train with a low rate and then a high one, and with the high one twice."""
    nothing = no_weights(bench.lanes)
    half = replace(bench.train, num_steps=bench.train.num_steps // 2)
    low = bench.run(LOW, half, {"first half, rate 4": nothing})["first half, rate 4"]
    high = bench.run(PLAIN, half, {"first half, rate 8": nothing})["first half, rate 8"]
    wider = {lane: raised(weights) for lane, weights in low.items()}
    second = {"rate 4, then 8": wider, "rate 8, then 8": high}
    bench.run(PLAIN, half, second, first_step=half.num_steps)
    return bench.records


def raised(weights: Weights) -> Weights:
    """Return weights for blocks of four ticks as weights for eight: each plan serves two ticks."""
    plan = weights[PLAN].unflatten(0, (LOW.block_ticks, -1))
    twice = PLAIN.block_ticks // LOW.block_ticks
    return weights | {PLAN: plan.repeat_interleave(twice, 0).flatten(0, 1)}


def table(records: Sequence[Record], task: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: one line for each arm."""
    yield "| arm | whole % | by seed | loss halfway, bits | last loss, bits |"
    yield "|---|---|---|---|---|"
    own = [one for one in records if one["task"] == task and one["answers"]]
    for arm in dict.fromkeys(one["arm"] for one in own):
        cells = sorted((one for one in own if one["arm"] == arm), key=lambda one: one["seed"])
        right = [
            100 * next(a["right"] for a in one["answers"] if a["kind"] == "whole") for one in cells
        ]
        curves = [[point["loss"] for point in one["curve"]] for one in cells]
        middle = interval([curve[len(curve) // 2 - 1] for curve in curves], 2)
        last = interval([curve[-1] for curve in curves], 2)
        by_seed = ", ".join(f"{one:.0f}" for one in right)
        yield f"| {arm} | {interval(right)} | {by_seed} | {middle} | {last} |"


def main() -> None:
    """Run both parts, or print the tables."""
    parser = stack_parser(__doc__, "transfer")
    parser.add_argument("--parts", nargs="+", default=["transfer", "ramp"])
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    if args.table:
        for task in TASKS:
            print(task, *table(read_records(args.table), task), sep="\n")
        return
    bench = Bench(args)
    prepare_lanes(args.batches, args.seeds, bench.train, system_layout(PLAIN))
    if args.prepare:
        return
    parts = {"transfer": partial(transfer, bench, args.seeds), "ramp": partial(ramp, bench)}
    for part in args.parts:
        in_time(deadline, parts[part])


if __name__ == "__main__":
    main()
