"""The folder of a grid that was never run: invented scores of real tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from counterpoint.config_json import encode
from counterpoint.evaluate.latency import TickLatency
from counterpoint.evaluate.report.grid_findings import (
    ABOUT,
    LATENCY,
    RESULTS,
    ArmCost,
    GridAbout,
    GridFindings,
    findings,
)
from counterpoint.files import write_json

NUM_ITEMS = 100


def record(task: str, arm: str, seed: int, share: float) -> dict[str, Any]:
    """A cell that answers a share of its items, with a curve that reaches it."""
    rng = np.random.default_rng([len(arm), seed, len(task), int(1000 * share)])
    right = (rng.random(NUM_ITEMS) < share).astype(int)
    steps = np.arange(100, 3001, 100)
    losses = 4 - 3.5 * share * (1 - np.exp(-steps / 900)) + rng.normal(0, 0.1, len(steps))
    return {
        "cell": f"{task}-{arm}-lr0.002-seed{seed}",
        "task": task,
        "arm": arm,
        "learning_rate": 2e-3,
        "seed": seed,
        "score": float(right.mean()),
        "numerators": right.tolist(),
        "denominators": [1] * NUM_ITEMS,
        "curve": [
            {"step": int(step), "flops": 2e8 * step, "loss": float(loss), "score": None}
            for step, loss in zip(steps, losses, strict=True)
        ],
    }


def about(arms: tuple[str, ...], tasks: tuple[str, ...]) -> GridAbout:
    costs = {
        arm: ArmCost(parameters=300_000 + 9000 * i, flops=1.8e6 * (1 + i / 50), state=40_000 * 2**i)
        for i, arm in enumerate(arms)
    }
    return GridAbout(
        name="example",
        arms=arms,
        costs=dict.fromkeys(tasks, costs),
        num_items=NUM_ITEMS,
        items_seed=999_999,
        purpose="Which arm answers best?",
        unmatched={arms[-1]: "a ceiling: it attends to everything"},
        left_out="Left out for lack of time: 2 of 5 seeds.",
        command="counterpoint study example",
        machine={"versions": {"torch": "2"}, "machine": "x86_64, 1 threads, cpu"},
    )


def example(
    arms: tuple[str, ...] = ("ours", "rival", "full"),
    tasks: tuple[str, ...] = ("navon", "hierarchy"),
    seeds: int = 3,
) -> GridFindings:
    """What it showed: the first arm answers most, and the others are alike."""
    records = [
        record(task, arm, seed, 0.9 if arm == arms[0] else 0.5)
        for task in tasks
        for arm in arms
        for seed in range(seeds)
    ]
    latency = {
        arm: TickLatency(p50_ms=2.0 + i, p95_ms=3.0 + i, num_ticks=300)
        for i, arm in enumerate(arms)
    }
    return findings(about(arms, tasks), records, latency)


def write_example(folder: Path, found: GridFindings) -> None:
    """The folder that a run would have left."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ABOUT, encode(found.about))
    write_json(folder / LATENCY, encode(found.latency))
    parquet.write_table(pyarrow.Table.from_pylist(list(found.records)), folder / RESULTS)
