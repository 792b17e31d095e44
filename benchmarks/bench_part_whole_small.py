"""Which arms of `part_whole` find what only a whole text tells, within a minute or two of one core?

The tasks are those of the recipe, half as long; every log asks for its whole. All arms take the
same number of steps on rows of the same items, with one learning rate. `two_stream_before` is the
arm that the first run on a GPU had: blocks of eight ticks, and a loss on its plan alone. A cell
that is in the results is not run again, so that the script can be stopped and started.

    python benchmarks/bench_part_whole_small.py --tasks logbook --seeds 0 1 2 3 4 \
        --out benchmarks/results/part_whole_small.parquet
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from counterpoint.data.tasks.items import HELD_OUT_SEED, ScoredTask, floors
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.navon import Navon
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.statistics import Ratio, bootstrap_difference, bootstrap_ratio
from counterpoint.evaluate.tasks import answer
from counterpoint.packages import optional_module
from counterpoint.progress import Progress
from counterpoint.recipes.budget import Plan
from counterpoint.recipes.cells import curve, write_records
from counterpoint.recipes.part_whole import TRAINED_SHARE, part_whole
from counterpoint.recipes.training import train_run
from counterpoint.systems import SystemConfig
from counterpoint.systems.contract import System, state_bytes
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.checkpoint import load_system
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

TASKS: dict[str, ScoredTask] = {
    "logbook": Logbook(num_events=24, whole_share=1.0),
    "navon": Navon(num_blocks=8, block_symbols=8),
}
ARMS = (
    "full",
    "hrt",
    "hrt_aligned",
    "two_stream_before",
    "two_stream",
    "two_stream_fixed",
    "shuffled_whole",
    "same_rate",
    "window_summary",
)
TRAIN = TrainConfig(
    num_steps=400,
    batch_rows=16,
    precision="float32",
    log_every=20,
    evaluate_every=100,
    schedule=ScheduleConfig(warmup_steps=50),
)
NUM_ITEMS = 1000
CURVE_ITEMS = 200


def systems() -> dict[str, SystemConfig]:
    """Return the arms of the recipe, and variants that differ in one thing each."""
    found = {arm.name: arm.system for arm in part_whole().arms}
    ours = cast("TwoStreamConfig", found["two_stream"])
    fixed = cast("TwoStreamConfig", found["two_stream_fixed"])
    hrt = cast("HRTConfig", found["hrt"])
    part = replace(fixed.part, mlp_hidden=fixed.part.width * 8 // 3 // 4 * 4)
    before = replace(fixed, part=part, predict_weight=0.3)
    return found | {
        "two_stream_before": before,
        "before_mean": replace(before, compressor="mean"),
        "before_attention": replace(before, compressor="attention"),
        "before_lower_2": replace(before, lower_layers=2),
        "before_no_predict": replace(before, predict_weight=0.0),
        "words_predict": replace(ours, predict_weight=0.3),
        "words_attention": replace(ours, compressor="attention"),
        "words_rebuild": replace(ours, reconstruct_weight=0.1),
        "fixed_rebuild": replace(fixed, reconstruct_weight=0.1),
        # Every step of level 1 has one event of a log: what words give to two_stream.
        "hrt_aligned": replace(hrt, strides=(3, 4), compressor="mean"),
        "hrt_weak_rebuild": replace(hrt, reconstruct_weight=hrt.reconstruct_weight * TRAINED_SHARE),
    }


def trained(
    task_name: str, arm: str, seed: int, learning_rate: float, num_steps: int = TRAIN.num_steps
) -> tuple[System, list[dict[str, float | None]]]:
    """Train one arm; return it and its learning curve."""
    task = TASKS[task_name]
    run = Run(
        name=arm,
        system=systems()[arm],
        data=TaskData(task=task, seed=seed, num_held_out=1),
        train=replace(
            TRAIN, num_steps=num_steps, seed=seed, optimizer=OptimizerConfig(lr=learning_rate)
        ),
    )

    def on_the_way(system: nn.Module) -> dict[str, float]:
        """Return the share of right answers about the whole, on items that are not reported."""
        items = [task.item(HELD_OUT_SEED - 3, number) for number in range(CURVE_ITEMS)]
        return {"score": task.score(items, list(answer(system, items)))["whole"]}

    with TemporaryDirectory() as folder:
        result = train_run(
            run,
            Path(folder) / "run",
            World(),
            plan=Plan(also=on_the_way),
            measure_end=False,
            progress=Progress(quiet=True),
            loggers=(),
        )
        if not result.finished:
            raise SystemExit("Stopped: run it again to continue.")
        system = load_system(result.checkpoint)
        return system, curve(read_metrics(Path(folder) / "run" / "metrics.jsonl"))


def run_cell(task_name: str, arm: str, seed: int, learning_rate: float) -> dict[str, Any]:
    """Train one arm, let it answer, and return its record."""
    task = TASKS[task_name]
    begin = time.perf_counter()
    system, points = trained(task_name, arm, seed, learning_rate)
    items = [task.item(HELD_OUT_SEED - 1, number) for number in range(NUM_ITEMS)]
    scores = task.score(items, list(answer(system, items)))
    num_ticks = TaskData(task=task).num_ticks(system.layout)
    return {
        "task": task_name,
        "arm": arm,
        "seed": seed,
        "learning_rate": learning_rate,
        "scores": [{"name": name, "value": value} for name, value in scores.items()],
        "curve": points,
        "parameters": sum(w.numel() for w in system.parameters() if w.requires_grad),
        "flops_per_tick": system.flops_per_tick(num_ticks, training=True),
        "state_bytes": state_bytes(system.initial_state(1)),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def whole_score(record: Mapping[str, Any]) -> float:
    """Return the share of right answers about the whole."""
    return float(next(one["value"] for one in record["scores"] if one["name"] == "whole"))


def table(records: list[dict[str, Any]], task: str) -> str:
    """Return a Markdown table: the share of right answers about the whole, over seeds.

    Intervals and p-values (Welch, not corrected) are over seeds alone; the 1,000 items are the same
    for all cells, and add a standard error of at most 1.6 points to a score.
    """
    lines = [
        "| arm | whole % | by seed | halfway | two_stream minus it | FLOPs | state, kB |",
        "|---|---|---|---|---|---|---|",
    ]
    own = [record for record in records if record["task"] == task]
    ours = sorted((one for one in own if one["arm"] == "two_stream"), key=lambda one: one["seed"])
    for arm in dict.fromkeys(record["arm"] for record in own):
        cells = sorted((one for one in own if one["arm"] == arm), key=lambda one: one["seed"])
        mean = bootstrap_ratio(*percents(cells))
        ahead = "" if len(cells) > 1 else "one seed"
        if not ahead and arm != "two_stream":
            found, p_value = bootstrap_difference(percents(ours), percents(cells))
            p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
            ahead = f"{found.value:+.1f} [{found.low:.1f}, {found.high:.1f}], {p_text}"
        midway = [
            f"{100 * point['score']:.0f}"
            for one in cells
            for point in one["curve"]
            if point["score"] is not None and point["step"] == TRAIN.num_steps // 2
        ]
        ends = f" [{mean.low:.1f}, {mean.high:.1f}]" if len(cells) > 1 else ""
        by_seed = ", ".join(f"{100 * whole_score(one):.0f}" for one in cells)
        flops = cells[0]["flops_per_tick"] / ours[0]["flops_per_tick"]
        lines.append(
            f"| {arm} | {mean.value:.1f}{ends} | {by_seed} | {', '.join(midway)} | {ahead} | "
            f"{flops:.2f} | {cells[0]['state_bytes'] / 1000:.0f} |"
        )
    return "\n".join(lines)


def percents(cells: list[dict[str, Any]]) -> Ratio:
    """Return the scores of seeds as numerators over ones."""
    scores = np.array([[100 * whole_score(one)] for one in cells])
    return scores, np.ones_like(scores)


def main() -> None:
    """Run the cells that are missing, seed by seed, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/part_whole_small.parquet"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    if args.out.exists():
        records = optional_module("pyarrow.parquet").read_table(args.out).to_pylist()
    keys = ("task", "arm", "seed", "learning_rate")
    for seed in args.seeds:
        for task in args.tasks:
            for arm in args.arms:
                cell = (task, arm, seed, args.learning_rate)
                if any(tuple(record[key] for key in keys) == cell for record in records):
                    continue
                records.append(run_cell(*cell))
                write_records(args.out, records)
                record = records[-1]
                print(
                    f"{task:8} {arm:18} seed {seed}: {whole_score(record):6.1%} of the whole, "
                    f"{record['flops_per_tick'] / 1e6:.2f} MFLOPs a tick, {record['seconds']} s",
                    flush=True,
                )
    for task in args.tasks:
        print(table(records, task))
        policies = floors(TASKS[task], NUM_ITEMS, HELD_OUT_SEED - 1)
        print({name: round(100 * scores["whole"], 1) for name, scores in policies.items()})


if __name__ == "__main__":
    main()
