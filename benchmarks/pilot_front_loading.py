"""What the study of front-loading costs on this machine, and how much its models learn.

Trains the backbones "both" and "base" with tuning seeds and several learning rates, fine-tunes them
on "small", and prints right answers and complete solutions by family. Then times steps of stacks.

Usage: python benchmarks/pilot_front_loading.py --out FOLDER [--device cuda] [--prepare]
[--pretrain-tokens N] [--factors 0.5,1,2]
"""

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from counterpoint.data.recorded import read_recorded
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.progress import Progress
from counterpoint.recipes.front_loading import FrontLoading, chains, front_loading
from counterpoint.recipes.front_loading_lanes import (
    ChainPhase,
    batches_path,
    record_segments,
    segment_config,
)
from counterpoint.recipes.front_loading_run import answered, scored_items
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train.config import TrainConfig
from counterpoint.train.stacked import Stack

SEEDS = (100, 101)
CHAINS = ("base > small", "both > small")


def pilot(options: argparse.Namespace, study: FrontLoading) -> None:
    """Train, and print what is learned."""
    own = [
        ChainPhase(chain=chain, seed=seed, phase=phase)
        for phase in (0, 1)
        for chain in chains(study.groups)
        if chain.name in CHAINS
        for seed in study.seeds
    ]
    record_segments(study, options.out, own, Progress())
    if options.prepare:
        return
    for part in (learn, time_steps):
        try:
            part(options, study, own)
        except Exception:
            traceback.print_exc()


def learn(options: argparse.Namespace, study: FrontLoading, own: Sequence[ChainPhase]) -> None:
    """Train the backbones and fine-tune them; print scores after both."""
    factors = [float(one) for one in options.factors.split(",")]
    roots = [one for one in own if not one.phase]
    lanes = [(root, factor) for factor in factors for root in roots]
    systems = [build_system(study.system, root.seed).to(options.device) for root, _ in lanes]
    for phase in (0, 1):
        begin = time.perf_counter()
        some = [
            next(one for one in own if one.phase == phase and same_root(one, root))
            for root, _ in lanes
        ]
        configs = [
            scaled(segment_config(study, options.out, one), factor)
            for one, (_, factor) in zip(some, lanes, strict=True)
        ]
        stack = Stack(systems, configs)
        stack.train([read_recorded(batches_path(options.out, one)) for one in some])
        stack.finish()
        trained = time.perf_counter()
        names = [(one.key, factor) for one, (_, factor) in zip(some, lanes, strict=True)]
        tell(options, study, names, systems)
        told = {
            "phase": phase,
            "lanes": len(lanes),
            "steps": max(config.num_steps for config in configs),
            "training_s": trained - begin,
            "answering_s": time.perf_counter() - trained,
        }
        say(options, told)


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """Return settings with another learning rate."""
    return replace(config, optimizer=replace(config.optimizer, lr=config.optimizer.lr * factor))


def same_root(one: ChainPhase, other: ChainPhase) -> bool:
    """Return whether two segments have one backbone and seed."""
    return (one.chain.backbone, one.seed) == (other.chain.backbone, other.seed)


def tell(
    options: argparse.Namespace,
    study: FrontLoading,
    names: Sequence[tuple[str, float]],
    systems: Sequence[System],
) -> None:
    """Print right answers and complete solutions by split and family."""
    answers = answered(study, [system.eval() for system in systems], sampled=False)
    for (key, factor), own in zip(names, answers, strict=True):
        found: dict[str, Any] = {"key": key, "factor": factor, "plain": own[0]["base_bits"]}
        for record in own:
            items = scored_items(study, record["split"])
            both = zip(items, record["texts"], strict=True)
            verdicts = [judge(item, text) for item, text in both]
            for family in dict.fromkeys(item.family for item in items):
                some = [n for n, item in enumerate(items) if item.family == family]
                found[f"{record['split']}, {family}"] = [
                    sum(verdicts[n].is_right for n in some) / len(some),
                    sum(verdicts[n].is_complete for n in some) / len(some),
                    sum(record["bits"][n] / len(items[n].solution) for n in some) / len(some),
                    next(record["texts"][n] for n in some),
                ]
        say(options, found)
    for system in systems:
        system.train()


def time_steps(options: argparse.Namespace, study: FrontLoading, own: Sequence[ChainPhase]) -> None:
    """Print the time of a step of stacks of many lanes."""
    source = read_recorded(batches_path(options.out, own[0]))
    is_cuda = options.device == "cuda"
    for precision in ("float32", "bfloat16"):
        for num_lanes in (8, options.lanes):
            systems = [build_system(study.system, 0).to(options.device) for _ in range(num_lanes)]
            took = []
            for num_steps in (10, 10 + options.timed_steps):
                train = replace(study.train, precision=precision, num_steps=num_steps)
                begin = time.perf_counter()
                Stack(systems, [train] * num_lanes).train([source] * num_lanes)
                if is_cuda:
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - begin)
            step_s = (took[1] - took[0]) / options.timed_steps
            ticks = num_lanes * study.train.batch_rows * study.row_ticks
            told = {
                "precision": precision,
                "lanes": num_lanes,
                "step_ms": 1000 * step_s,
                "start_s": took[0],
                "ticks_a_second": ticks / step_s,
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if is_cuda else None,
            }
            say(options, told)


def say(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print an object and add it to the file of results."""
    line = json.dumps(found)
    print(line, flush=True)
    with (options.out / "pilot.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def main() -> None:
    """Read the options and run the pilot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepare", action="store_true", help="only record the batches")
    parser.add_argument("--pretrain-tokens", type=int, default=front_loading().pretrain_tokens)
    parser.add_argument("--factors", default="0.5,1,2", help="factors of the learning rate")
    parser.add_argument("--num-items", type=int, default=front_loading().num_items)
    parser.add_argument("--lanes", type=int, default=35, help="lanes of the timed stack")
    parser.add_argument("--timed-steps", type=int, default=30)
    options = parser.parse_args()
    study = replace(
        front_loading(),
        groups=("cross",),
        seeds=SEEDS,
        pretrain_tokens=options.pretrain_tokens,
        num_items=options.num_items,
    )
    pilot(options, study)


if __name__ == "__main__":
    main()
