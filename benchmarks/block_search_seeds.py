"""How many seeds learn to find the block? The toy task of Multi-Token Attention.

Plain attention is bimodal over seeds, so the result is a rate: the share of seeds whose model
answers at least 9 of 10 held-out items rightly, with Wilson's interval. Lanes of one
stack are seeds, rates and tasks; every kind of attention has a stack of its own. Floors are printed
beside it. `record` makes the batches, on CPUs; `train` reads them.

    python benchmarks/block_search_seeds.py record train --letters 5 --blocks 50 --seeds 0 1 2 3 4
"""

import argparse
import itertools
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from record import finish
from task_lanes import train_task_lanes

from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.data.tasks.block_search import BlockSearch
from counterpoint.data.tasks.items import HELD_OUT_SEED, floors
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.statistics import wilson
from counterpoint.progress import Progress
from counterpoint.recipes.block_search import block_study
from counterpoint.recipes.stacks import record_runs
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import TrainConfig
from counterpoint.train.run import Run

LEARNED = 0.9


def all_runs(arguments: argparse.Namespace) -> dict[tuple[str, int], list[Run]]:
    """Return the lanes of every kind of attention and length of blocks."""
    found: dict[tuple[str, int], list[Run]] = {}
    for letters in arguments.letters:
        longest = block_study(letters, max(arguments.blocks), arguments.width)
        for arm in longest.arms:
            if arm.name not in arguments.arms:
                continue
            for options in itertools.product(
                arguments.blocks, arguments.asked, arguments.rates, arguments.seeds
            ):
                run = _lane(arm, arguments, letters, *options)
                found.setdefault((arm.name, letters), []).append(run)
    return found


def _lane(
    arm: Run,
    arguments: argparse.Namespace,
    letters: int,
    blocks: int,
    asked: Any,
    rate: float,
    seed: int,
) -> Run:
    task = BlockSearch(num_blocks=blocks, block_letters=letters, asked=asked)
    train: TrainConfig = replace(
        arm.train,
        seed=seed,
        num_steps=arguments.steps,
        batch_rows=arguments.rows,
        log_every=max(arguments.steps // 50, 1),
        evaluate_every=max(arguments.steps // arguments.evaluations, 1),
        optimizer=replace(arm.train.optimizer, lr=rate),
    )
    name = f"{arm.name}-{letters}-{blocks}-{asked}-{rate}-{seed}"
    assert isinstance(arm.data, TaskData)
    data = replace(arm.data, task=task, seed=seed)
    return replace(arm, name=name, data=data, system=in_form(arm, arguments.form), train=train)


def in_form(arm: Run, form: Any) -> SingleStreamConfig:
    """Return the config of the arm's system, with another form of whole rows."""
    config = arm.system
    assert isinstance(config, SingleStreamConfig)
    mixer = config.tower.mixer
    if not isinstance(mixer, MultiTokenConfig):
        return config
    return replace(config, tower=replace(config.tower, mixer=replace(mixer, form=form)))


def rates(lanes: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of lanes that learned, by everything but the seed."""
    groups: dict[str, list[float]] = {}
    for lane in lanes:
        score = lane["scores"][-1][1]["block"]
        groups.setdefault(lane["run"].rpartition("-")[0], []).append(score)
    found = {}
    for name, scores in groups.items():
        hits = sum(score >= LEARNED for score in scores)
        found[name] = {"scores": scores, "hits": hits, "rate": asdict(wilson(hits, len(scores)))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("record", "train"))
    parser.add_argument("--letters", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--blocks", type=int, nargs="+", default=[50])
    parser.add_argument("--asked", nargs="+", default=["all"])
    parser.add_argument("--arms", nargs="+", default=["multi_token", "plain"])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("runs/block_search"))
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all stacks together")
    parser.add_argument("--form", default="chunked", help="how whole rows are computed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="file for the record")
    arguments = parser.parse_args()
    stop = min(time.time() + arguments.seconds, float(os.environ.get("DEADLINE", "inf")))
    stacks = all_runs(arguments)
    if "record" in arguments.parts:
        every = [run for runs in stacks.values() for run in runs]
        record_runs(every, arguments.folder, Progress(quiet=True))
    if "train" not in arguments.parts:
        return
    results: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(arguments).items()}}
    for number, ((arm, letters), runs) in enumerate(stacks.items()):
        share = (stop - time.time()) / (len(stacks) - number)
        lanes = train_task_lanes(
            runs, arguments.folder, arguments.device, arguments.items, time.time() + share - 2
        )
        results[f"{arm} {letters}"] = {"rates": rates(lanes), "lanes": lanes}
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(results))
    for letters in arguments.letters:
        task = BlockSearch(num_blocks=max(arguments.blocks), block_letters=letters)
        results[f"floors {letters}"] = floors(task, 300, HELD_OUT_SEED)
    finish("How many seeds learn to find the block?", results, arguments.out)


if __name__ == "__main__":
    main()
