"""Runs of tasks as lanes of a stack, with their scores along the way; for other benchmarks."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint.data.recorded import Recorded
from counterpoint.data.tasks.items import HELD_OUT_SEED, accuracy
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.lanes import answer_lanes
from counterpoint.recipes.stacks import build_stack, recorded_run
from counterpoint.train.run import Run


def train_task_lanes(
    runs: Sequence[Run], batches: Path, device: str, num_items: int, deadline: float
) -> list[dict[str, Any]]:
    """Train runs of one system config on tasks; return scores and losses of each by step.

    Args:
        runs: The runs; scores are taken every ``evaluate_every`` steps of the first one.
        batches: Folder of their recorded batches.
        device: Device on which they learn.
        num_items: Number of held-out items.
        deadline: Time at which the training ends even if steps are left.
    """
    items = [held_out(run, num_items) for run in runs]
    stack = build_stack(runs, device)
    lanes: list[dict[str, Any]] = [{"run": run.name, "bits": [], "scores": []} for run in runs]
    begin = time.time()
    every = runs[0].train.evaluate_every
    last = runs[0].train.num_steps

    def on_step(step: int, bits: list[float]) -> bool:
        is_over = time.time() > deadline
        for lane, value in zip(lanes, bits, strict=True):
            lane["bits"].append((step, round(value, 4)))
        if is_over or step == last or (every and step % every == 0):
            for lane, own, given in zip(lanes, items, answer_lanes(stack, items), strict=True):
                lane["scores"].append((step, accuracy(own, given)))
            shown = [list(lane["scores"][-1][1].values()) for lane in lanes]
            print(runs[0].name, step, round(time.time() - begin, 1), shown, flush=True)
        return is_over

    stack.train(_sources(runs, batches), on_step)
    for lane in lanes:
        lane["steps"] = lane["bits"][-1][0]
        lane["stack_seconds"] = round(time.time() - begin, 1)
    return lanes


def held_out(run: Run, number: int) -> list[Any]:
    """Return items that are never learned from, the same for all seeds."""
    assert isinstance(run.data, TaskData)
    return [run.data.task.item(HELD_OUT_SEED, index) for index in range(number)]


def _sources(runs: Sequence[Run], batches: Path) -> list[Recorded]:
    found: dict[str, Recorded] = {}
    keys = [json.dumps([str(run.data), run.train.seed]) for run in runs]
    for key, run in zip(keys, runs, strict=True):
        if key not in found:
            found[key] = recorded_run(run, batches)
    return [found[key] for key in keys]
