"""Does GRPO raise the share of right solutions on questions that were never asked?

A small model learns to close brackets from solutions of which a quarter of the steps is wrong, and
then from its own. Scores are right answers at temperature 1 to held-out items, whose statements
occur in no training item: before, during and after, several seeds. Two systems: one stream; and a
text whole, that is two written streams, in which the reward trains both.
Bar: in every system, the lower end of the 95 % interval of the gain over seeds is above 0.

    python benchmarks/bench_reinforce.py --systems "one stream" \\
        --out benchmarks/results/reinforce.json
    python benchmarks/bench_reinforce.py --systems "text whole" \\
        --out benchmarks/results/reinforce_text_whole.json
"""

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import finish

from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.reasoning.corpus import LABEL_SYMBOLS, Reasoning
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.attempts import attempt, solution_scores
from counterpoint.evaluate.statistics import student_quantile
from counterpoint.recipes.reinforcement import reinforce_run
from counterpoint.recipes.training import train_run
from counterpoint.systems import build_system
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.checkpoint import load_weights, resolve
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import Run

TASK = Reasoning(
    families=("dyck",),
    operations=(2, 3),
    templates=(0,),
    step_errors=0.25,
    most_symbols=64,
)
NUM_ITEMS = 100
NUM_SAMPLES = 4


def tower(width: int, layers: int, window: int) -> TowerConfig:
    return TowerConfig(
        width=width, num_layers=layers, num_heads=4, mlp_hidden=3 * width, window=window
    )


SYSTEMS: dict[str, SystemConfig] = {
    "one stream": SingleStreamConfig(tower=tower(48, 2, 64)),
    "text whole": TwoStreamConfig(
        part=tower(48, 2, 64),
        whole=tower(48, 1, 64),
        lower_layers=1,
        block_ticks=8,
        num_links=1,
        whole_dropout=0.0,
        predict_weight=0.0,
        reconstruct_weight=0.0,
        text=NotesConfig(depth=LABEL_SYMBOLS, vocab_size=128, padding_id=0),
    ),
}


def scores_of(system: SystemConfig, folder: Path) -> dict[str, float]:
    model = build_system(system, seed=0)
    model.load_state_dict(load_weights(resolve(folder)))
    items = [TASK.item(HELD_OUT_SEED, number) for number in range(NUM_ITEMS)]
    found = attempt(model, items, NUM_SAMPLES, most_ticks=32, seed=5, batch_rows=400)
    return {name: round(value, 4) for name, value in solution_scores(found).items()}


def pretrain(system: SystemConfig, folder: Path, steps: int, seed: int) -> None:
    run = Run(
        name="pretrain",
        system=system,
        data=TaskData(task=TASK, num_held_out=0, seed=seed, trained="all"),
        train=TrainConfig(
            num_steps=steps,
            batch_rows=32,
            seed=seed,
            precision="float32",
            optimizer=OptimizerConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_steps=20),
            log_every=50,
        ),
    )
    train_run(run, folder, World(), measure_end=False, loggers=[])


def reinforce(
    system: SystemConfig, begun: Path, folder: Path, steps: int, seed: int, lr: float
) -> dict[str, Any]:
    """Reinforce in pieces of equal length, with scores after each."""
    data = RewardedData(
        task=TASK, seed=seed + 100, group=GroupConfig(group_size=8, most_ticks=32, kl_weight=0.001)
    )
    run = reinforce_run(
        "reinforce", system, str(begun), data, num_steps=steps, questions=8, lr=lr, seed=seed
    )
    before = scores_of(system, begun)
    curve = [before["right"]]
    begin = time.perf_counter()
    for part in (1, 2, 3, 4):
        piece = replace(run, train=replace(run.train, num_steps=steps * part // 4))
        train_run(piece, folder, World(), measure_end=False, loggers=[])
        curve.append(scores_of(system, folder)["right"])
    seconds = time.perf_counter() - begin
    return {
        "before": before,
        "after": scores_of(system, folder),
        "right over steps": curve,
        "seconds with scoring": round(seconds, 1),
    }


def one_run(system: SystemConfig, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        begun = Path(place) / "begun"
        pretrain(system, begun, options.pretrain_steps, seed)
        return reinforce(system, begun, Path(place) / "end", options.steps, seed, options.lr)


def gain_interval(gains: list[float]) -> list[float]:
    """Mean and 95 % interval of the gain, by Student's t over seeds; no interval of one seed."""
    count = len(gains)
    if count == 1:
        return [round(gains[0], 4), -1.0, 1.0]
    mean = sum(gains) / count
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (count - 1))
    half = student_quantile(count - 1) * deviation / math.sqrt(count)
    return [round(value, 4) for value in (mean, mean - half, mean + half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pretrain-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    results: dict[str, Any] = {}
    for name in options.systems:
        runs: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            runs.append(one_run(SYSTEMS[name], seed, options))
            gains = [run["after"]["right"] - run["before"]["right"] for run in runs]
            interval = gain_interval(gains)
            results[name] = {"runs": runs, "gain": interval, "passes": interval[1] > 0}
            # Written after every seed, so that a benchmark that is stopped keeps what it has.
            told = {"settings": settings, "systems": results}
            finish(str(__doc__).splitlines()[0], told, options.out)


if __name__ == "__main__":
    main()
