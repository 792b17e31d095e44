"""Up to which level of a random tree do arms of `part_whole` predict the next leaf?

All symbols of `hierarchy` (64 leaves, six levels, two branches) are trained. A leaf of "level 1"
shares a group of two with the leaf before it, one of "level 6" nothing below the root. Bits a leaf
are those of items that no run has learned from, each after the true leaves before it; what a leaf
costs that is drawn evenly is 3 bits. Runs that are in the file are not run again.

    python benchmarks/hierarchy_levels.py --out benchmarks/results/hierarchy_levels.json
"""

import argparse
import json
import math
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from stack_lanes import interval

from counterpoint.data.source import Preparation
from counterpoint.data.tasks.items import REPORTED_SEED
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.tasks import answer, group_nats
from counterpoint.files import write_json
from counterpoint.progress import Progress
from counterpoint.recipes.part_whole import arms
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.systems import build_system
from counterpoint.train.loop import Trainer
from counterpoint.train.stop_signal import StopSignal

ARMS = ("two_stream_fixed", "hrt", "full", "window")
NUM_ITEMS = 500


def learned(arm: str, seed: int, num_steps: int) -> dict[str, Any]:
    """Train an arm, and return bits a leaf by level and the share of right answers."""
    task = RandomHierarchy()
    config = next(one.system for one in arms(1.0) if one.name == arm)
    system = build_system(config, seed)
    data = TaskData(task=task, trained="all").prepare(system, Preparation(block_ticks=8))
    train = replace(part_whole_small().train, num_steps=num_steps, seed=seed)
    batches = data.batches(train.batch_rows, seed, 0, 1)
    trainer = Trainer(system.train(), batches, train)
    stop = StopSignal()
    begin = time.process_time()
    with Progress() as progress:
        for _ in progress.over(f"{arm}, seed {seed}", range(num_steps), num_steps):
            trainer.step(stop)
    seconds = time.process_time() - begin
    system.eval()
    items = [task.item(REPORTED_SEED, number) for number in range(NUM_ITEMS)]
    nats = group_nats(system, task, items)
    scores = task.score(items, list(answer(system, items, 100)))
    return {
        "arm": arm,
        "seed": seed,
        "steps": num_steps,
        "processor_seconds": round(seconds, 1),
        "bits": {name: value / math.log(2) for name, value in nats.items()},
        "scores": scores,
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: bits a leaf by level, and answers."""
    levels = list(found[0]["bits"])
    lines = [f"| arm | seeds | {' | '.join(levels)} | joint % |", "|---" * (len(levels) + 3) + "|"]
    for arm in dict.fromkeys(one["arm"] for one in found):
        own = [one for one in found if one["arm"] == arm]
        cells = [interval([one["bits"][level] for one in own], 2) for level in levels]
        cells.append(interval([100 * one["scores"]["joint"] for one in own], 0))
        lines.append(f"| {arm} | {len(own)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(one["arm"], one["seed"], one["steps"]) for one in found}
    for seed, arm in product(args.seeds, args.arms):
        if (arm, seed, args.num_steps) not in done:
            found.append(learned(arm, seed, args.num_steps))
            write_json(args.out, found)
    print(*table(found), sep="\n")
    print(args.out)


if __name__ == "__main__":
    main()
