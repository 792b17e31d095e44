"""Runs of one system trained together, as lanes of a stack, which is faster on a GPU.

A lane learns what its run would learn alone, up to rounding; see `counterpoint.train.stacked`.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from counterpoint.config_json import encode
from counterpoint.data.recorded import Recorded, record_once
from counterpoint.data.source import PreparedSource
from counterpoint.digests import json_digest
from counterpoint.evaluate.lanes import answer_lanes, respond_lanes
from counterpoint.evaluate.tasks import may_be_told
from counterpoint.files import whole_file
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.cells import (
    Cell,
    CellOutcome,
    cell_items,
    cell_outcome,
    cell_run,
    curve_items,
    primary_score,
)
from counterpoint.recipes.grid import Grid
from counterpoint.runtime.save import write_checkpoint
from counterpoint.streams.schedule import lead_ticks
from counterpoint.streams.spec import Role
from counterpoint.systems import build_system, sketch, system_layout
from counterpoint.systems.contract import System, SystemConfig, mean_training_flops
from counterpoint.train.config import TrainConfig
from counterpoint.train.loop import DivergedError
from counterpoint.train.optimizer import warm_up_note
from counterpoint.train.run import Run
from counterpoint.train.stacked import OnStep, Stack

BATCHES = "batches"
MOST_TICKS = 160_000
"""Number of ticks of a step of all lanes that one stack may have, for the memory of a GPU."""


Visit = Callable[[int, Sequence[System]], bool | None]
"""Function that gets the number of steps taken and the models with the weights after them, on the
CPU and in evaluation mode. If it returns True, the training ends."""


def train_lanes(
    runs: Sequence[Run],
    sources: Sequence[Recorded],
    device: torch.device | str,
    on_step: OnStep | None = None,
    *,
    visit: Visit | None = None,
) -> list[System | None]:
    """Train runs of one system config together, from random weights.

    Seeds, data, learning rates, schedules and numbers of steps of the runs may differ. `minutes`,
    checkpoints and evaluations of the runs are not looked at.

    Args:
        runs: The runs.
        sources: Their recorded batches, such as those of `recorded_run`; the same object may stand
            for several runs.
        device: Device on which they learn.
        on_step: See `OnStep`; called every ``train.log_every`` steps of the first run and at the
            end.
        visit: See `Visit`; called every ``train.evaluate_every`` steps of the first run.

    Returns:
        The trained models on the CPU in evaluation mode, in the order of the runs; ``None`` where
        weights are not finite.

    Raises:
        UserError: The runs cannot be lanes of a stack; see `Stack`.
    """
    stack = build_stack(runs, device)
    every = runs[0].train.evaluate_every

    def report(step: int, bits: list[float]) -> bool:
        stop = False
        if visit is not None and every and step % every == 0:
            stack.finish()
            stop = bool(visit(step, stack.systems))
        return bool(on_step is not None and on_step(step, bits)) or stop

    stack.train(sources, report)
    finite = stack.finish()
    return [system if good else None for system, good in zip(stack.systems, finite, strict=True)]


def build_stack(runs: Sequence[Run], device: torch.device | str) -> Stack:
    """Return a stack of the systems of runs, with random weights; see `train_lanes`."""
    systems = [build_system(run.system, run.train.seed).eval() for run in runs]
    return Stack(systems, [run.train for run in runs], device)


def train_further(
    systems: Sequence[System],
    configs: Sequence[TrainConfig],
    sources: Sequence[Recorded],
    device: torch.device | str,
    names: Sequence[str],
    progress: Progress | None = None,
) -> None:
    """Train systems of one config together, from the weights that they have.

    Args:
        systems: The systems; they get the new weights.
        configs: Training of each system.
        sources: See `train_lanes`.
        device: Device on which they learn.
        names: Name of each system, for errors.
        progress: Shows the steps; ``None`` shows nothing.

    Raises:
        DivergedError: Weights of a system are not finite.
        UserError: The systems cannot be lanes of a stack; see `Stack`.
    """
    stack = Stack(systems, configs, device)
    shown = Progress(quiet=True) if progress is None else progress
    for config in configs:
        warm_up = warm_up_note(config.schedule, config.num_steps)
        if warm_up is not None:
            shown.note_once(warm_up)
    what = names[0] if len(names) == 1 else f"{len(names)} lanes from {names[0]}"
    task = shown.task(what, "steps")

    def report(step: int, bits: list[float]) -> None:
        task(step, stack.num_steps, figures=f"{sum(bits) / len(bits):.3f} bits")

    stack.train(sources, report)
    for name, is_finite in zip(names, stack.finish(), strict=True):
        if not is_finite:
            raise DivergedError(
                f"Weights must be finite: those of {name} are not. Lower `train.optimizer.lr`."
            )


def keep_weights(path: Path, system: System) -> None:
    """Store the weights with which other runs begin; see `begun_system`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial_path:
        save_file({name: own.cpu() for name, own in system.state_dict().items()}, partial_path)


def begun_system(config: SystemConfig, seed: int, path: Path | None) -> System:
    """Return a system with random weights, or with those that `keep_weights` stored."""
    system = build_system(config, seed)
    if path is not None:
        system.load_state_dict(load_file(path))
    return system


def save_lane(system: System, run: Run, folder: Path) -> None:
    """Write a trained model as a checkpoint for inference, which `counterpoint.load` reads.

    Args:
        system: The model.
        run: Its run.
        folder: A new or empty folder.
    """
    name = type(system).__name__
    write_checkpoint(folder, name, encode(system.config), system.state_dict(), run)


def stacks(grid: Grid, cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Return groups of cells that can be trained together, in the order of their first cells.

    A group has cells of one arm, of any rate and seed, and of all tasks that are learned from items
    or from text. Cells with longer rows have groups of their own once a group is full, so that
    little is padded.
    """
    groups: dict[tuple[str, bool, str], list[Cell]] = {}
    for cell in cells:
        kind = type(cell_run(grid, cell).data).__name__
        groups.setdefault((cell.arm, cell.seed in grid.tuning_seeds, kind), []).append(cell)
    found: list[tuple[Cell, ...]] = []
    for own in groups.values():
        group: list[Cell] = []
        ticks_of = {cell.task: _row_ticks(grid, cell) for cell in own}
        for cell in sorted(own, key=lambda cell: ticks_of[cell.task]):
            ticks = (len(group) + 1) * grid.train.batch_rows * ticks_of[cell.task]
            if group and ticks > MOST_TICKS:
                found.append(tuple(group))
                group = []
            group.append(cell)
        found.append(tuple(group))
    return found


def _row_ticks(grid: Grid, cell: Cell) -> int:
    run = cell_run(grid, cell)
    return run.data.num_ticks(system_layout(run.system))


class StackOutcome(NamedTuple):
    """Result of a stack.

    Attributes:
        cells: Outcomes of its cells.
        diverged: Keys of those reported cells whose weights are not finite; see `cell_outcome`.
    """

    cells: list[CellOutcome]
    diverged: list[str]


Watch = Callable[[int, list[dict[str, float]]], bool | None]
"""Function that gets the number of steps taken and, every ``evaluate_every`` steps, all scores of
each cell on items that are not reported; otherwise nothing. If it returns True, training ends."""


def run_stack(
    grid: Grid,
    batches: Callable[[Run], Recorded],
    device: str,
    cells: Sequence[Cell],
    watch: Watch | None = None,
) -> StackOutcome:
    """Train cells of one arm together, and let each answer.

    Args:
        grid: Grid of the cells.
        batches: Function that returns the recorded batches of a run, such as `recorded_run`.
        device: Device on which they are trained.
        cells: The cells.
        watch: See `Watch`.
    """
    begin = time.perf_counter()
    runs = [cell_run(grid, cell) for cell in cells]
    flops = [flops_per_step(run) for run in runs]
    curves: list[list[dict[str, float | None]]] = [[] for _ in cells]
    stack = build_stack(runs, device)
    asked = [curve_items(grid, cell) for cell in cells] if grid.train.evaluate_every else []

    def on_step(step: int, bits: Sequence[float]) -> bool:
        scores: list[dict[str, float]] = []
        if asked and step % grid.train.evaluate_every == 0:
            given = respond_lanes(stack, asked)
            scores = [
                grid.task(cell.task).score(*own)
                for cell, *own in zip(cells, asked, given, strict=True)
            ]
        for lane, points in enumerate(curves):
            point: dict[str, float | None] = {"step": step, "flops": flops[lane] * step}
            score = primary_score(grid, cells[lane], scores[lane]) if scores else None
            points.append(point | {"loss": bits[lane], "score": score})
        return watch is not None and bool(watch(step, scores))

    stack.train([batches(run) for run in runs], on_step)
    finite = stack.finish()
    items = [cell_items(grid, cell) for cell in cells]
    answers = respond_lanes(stack, items)
    told: Sequence[Sequence[Any] | None] = [None] * len(cells)
    if all(may_be_told(stack.systems[0].layout, own) for own in items):
        told = answer_lanes(stack, items, true_whole=True)
    seconds = (time.perf_counter() - begin) / len(cells)
    facts = {"seconds": seconds, "lanes": len(cells), "device": device}
    outcomes = []
    diverged = []
    for cell, given, also, points, good in zip(cells, answers, told, curves, finite, strict=True):
        outcomes.append(cell_outcome(grid, cell, given if good else None, points, facts, also))
        if not good and cell.seed not in grid.tuning_seeds:
            diverged.append(cell.key)
    return StackOutcome(outcomes, diverged)


def flops_per_step(run: Run) -> float:
    """Return the training FLOPs of a step of a run alone, without the optimiser."""
    system = sketch(run.system)
    num_ticks = run.data.num_ticks(system.layout)
    flops = mean_training_flops(system, num_ticks, run.train.num_steps)
    return flops * num_ticks * run.train.batch_rows


def record_batches(grid: Grid, batches: Path, cells: Sequence[Cell], progress: Progress) -> None:
    """Make the batches of cells, in as many processes as there are cores."""
    record_runs([cell_run(grid, cell) for cell in cells], batches, progress)


def record_runs(
    runs: Sequence[Run], folder: Path, progress: Progress, *, half_features: bool = False
) -> None:
    """Make the batches of runs, in as many processes as there are cores.

    ``half_features`` stores features of continuous streams in 16 bits; see `recorded_run`.
    """
    by_path = {_data_and_path(run, folder, half_features)[1]: run for run in runs}
    missing = [run for path, run in by_path.items() if not path.exists()]
    task = progress.task("making batches")
    work = partial(_record, folder, half_features)
    with closing(work_in_processes(work, missing, os.cpu_count() or 1)) as done:
        for number, name in enumerate(done, 1):
            task(number, len(missing), figures=name)


def _record(folder: Path, half_features: bool, run: Run) -> str:
    recorded_run(run, folder, half_features=half_features)
    return run.name


def recorded_run(run: Run, folder: Path, *, half_features: bool = False) -> Recorded:
    """Return the batches of a run, which are made once and kept in a file.

    Args:
        run: The run.
        folder: Folder of recorded batches.
        half_features: Store features of continuous streams in 16 bits.
    """
    data, path = _data_and_path(run, folder, half_features)
    source = data.batches(run.train.batch_rows, run.train.seed)
    return record_once(source, run.train.num_steps, path, half_features=half_features)


def _data_and_path(run: Run, folder: Path, half_features: bool) -> tuple[PreparedSource, Path]:
    """Return the data of a run and the file of its batches, which the same batches share.

    Wholes that a model computes itself stand in no batch, but their blocks decide where documents
    begin in a row. The fingerprint tells files of other content that have the same names.
    """
    system = sketch(run.system)
    layout = system.layout
    data = run.data.prepare(system)
    given = [stream for stream in layout.streams if stream.predicted or stream.role != Role.WHOLE]
    facts: dict[str, Any] = {
        "data": encode(run.data),
        "fingerprint": encode(data.fingerprint),
        "streams": [encode(stream) for stream in given],
        "lead_ticks": lead_ticks(layout),
        "block_ticks": layout.block_ticks,
        "tick_hz": layout.tick_hz,
        "rows": run.train.batch_rows,
        "steps": run.train.num_steps,
        "seed": run.train.seed,
        "half_features": half_features,
    }
    return data, folder / f"{json_digest(facts)}.pt"
