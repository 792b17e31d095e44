"""Training one run, or several in turn: prepare data, build the model, train and measure it."""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from counterpoint.config_json import encode
from counterpoint.data.source import BatchSource, KeepsFiles, Preparation, PreparedSource
from counterpoint.evaluate.units import evaluator
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.budget import EVALUATION_UNITS, Plan, find_budget, prepared_by
from counterpoint.recipes.learned import keep_or_check_learned
from counterpoint.recipes.reinforcement import connected
from counterpoint.runtime.load import with_kept_files
from counterpoint.runtime.save import names_beside
from counterpoint.systems import sketch
from counterpoint.systems.contract import System
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import World, shard
from counterpoint.train.fine_tuning import begun_system
from counterpoint.train.loop import Evaluate, TrainResult, train
from counterpoint.train.metrics import MetricLogger, TensorBoardLogger
from counterpoint.train.phase_steps import with_phase_steps
from counterpoint.train.phases import PhasedBatches
from counterpoint.train.precision import settle_precision
from counterpoint.train.reporter import RunReporter, peak_flops
from counterpoint.train.run import Run
from counterpoint.train.run_folder import only_one
from counterpoint.train.threads import computing, in_one_line, settle_threads

REPORT_S = 3.0
"""Seconds that are kept for the report of a run."""


def train_run(
    run: Run,
    folder: Path,
    world: World,
    *,
    plan: Plan | None = None,
    measure_end: bool = True,
    progress: Progress | None = None,
    loggers: Sequence[MetricLogger] | None = None,
) -> TrainResult:
    """Train one run on all processes, or continue it.

    Args:
        run: The run.
        folder: Its folder; see `counterpoint.train.loop.train`.
        world: The processes; all of them must call this.
        plan: Alignment of rows, more measurements, and when the minutes began: by default now.
        measure_end: Whether held-out units are measured at the end even without `evaluate_every`.
        progress: Shows the progress; on stderr by default.
        loggers: Receive the numbers; by default TensorBoard, in ``tensorboard/``.

    Returns:
        How the training ended.

    Raises:
        UserError: The data, or the checkpoints of the folder, cannot be used.
    """
    plan = Plan(begin=time.perf_counter(), reserve_s=REPORT_S) if plan is None else plan
    progress = Progress() if progress is None else progress
    keep_large_buffers()
    begin = partial(begun_system, run.system, run.train.fine_tune, run.train.seed)
    system = begin(note=progress.note if world.is_first else None).to(world.device)
    # The engines of its voices may be newer than the run, which goes on with the words it has kept.
    kept = with_kept_files(run.data, folder)
    data = kept.prepare(system, prepared_by(world, progress, plan.block_ticks))
    run, world = _settled(run, system, folder, world, progress)
    with computing(world.num_threads):
        if run.minutes is not None:
            del system  # steps are timed with another one, and both may not fit into memory
        timed = replace(run, data=kept)
        budget = find_budget([timed], run.minutes, folder, world, progress, plan)
        if budget is not None:
            run = budget.fit(run)
            system = begin().to(world.device)
        run, batches = _with_batches(run, data, system, world)
        measures = measure_end or run.train.evaluate_every > 0
        # Bars are removed in any case, so that an error is printed below them.
        with only_one(folder, world, ".run.lock"), closing(progress):
            keep_or_check_learned(run.data, data.fingerprint, folder, world)
            _keep_files(run.data, folder, world)
            return train(
                shard(system, world),
                batches,
                run.train,
                folder,
                evaluate=_measurement(data, plan.also) if measures else None,
                reporter=_reporter(run, world, progress),
                loggers=_loggers(folder, world) if loggers is None else loggers,
                run=encode(run),
            )


def _settled(
    run: Run, system: nn.Module, folder: Path, world: World, progress: Progress
) -> tuple[Run, World]:
    """Return the run with the type of its products, and the processes with their threads.

    Both are measured when the run begins. By then errors in the data have been reported.
    """
    choice = settle_precision(run.train.precision, [system], [folder], world)
    world, threads = settle_threads([system], [folder], world)
    told = in_one_line(choice.why, threads)
    if told and world.is_first:
        progress.note(told)
    return replace(run, train=replace(run.train, precision=choice.precision)), world


def _with_batches(
    run: Run, data: PreparedSource, system: System, world: World
) -> tuple[Run, BatchSource]:
    """Return the training batches, and the run with the steps of its phases."""
    batches = data.batches(run.train.batch_rows, run.train.seed, world.rank, world.size)
    batches = connected(batches, system, world)
    if isinstance(batches, PhasedBatches):
        run = replace(run, train=with_phase_steps(run.train, batches.num_steps))
    return run, batches


def _reporter(run: Run, world: World, progress: Progress) -> RunReporter:
    return RunReporter(progress, run.name, peak_flops(world.device, run.train.precision))


def _loggers(folder: Path, world: World) -> list[MetricLogger]:
    return [TensorBoardLogger(folder / "tensorboard")] if world.is_first else []


def _measurement(data: PreparedSource, also: Evaluate | None) -> Evaluate | None:
    """Return what measures a model: on held-out units, in another way, in both, or not at all."""
    first = evaluator(data.held_out_units(), EVALUATION_UNITS)
    if first is None or also is None:
        return first or also
    return lambda system: {**first(system), **also(system)}


def train_in_turn(
    stages: Sequence[tuple[Run, Path]], world: World, progress: Progress | None = None
) -> TrainResult:
    """Train runs one after another; each begins with the weights of the run before it.

    Args:
        stages: Runs and their folders, at least one; finished ones are kept.
        world: The processes; all of them must call this.
        progress: Shows the progress; on stderr by default.

    Returns:
        How the last training ended; it is not finished if a signal stopped it.

    Raises:
        UserError: See `train_run`.
    """
    before: Path | None = None
    for run, folder in stages:
        if before is not None:
            begin = FineTuneConfig(init_from=str(before))
            run = replace(run, train=replace(run.train, fine_tune=begin))
        result = train_run(run, folder, world, progress=progress)
        if not result.finished:
            break
        before = folder
    return result


def _keep_files(data: object, folder: Path, world: World) -> None:
    """Copy what was learned from the data, such as a tokeniser, to the folder of the run."""
    if not isinstance(data, KeepsFiles) or world.rank:
        return
    names = data.file_names()
    files = data.find_files()
    for key, copy in names_beside(files).items():
        if names[key] == copy and not (folder / copy).exists():
            shutil.copyfile(files[key], folder / copy)


def prepare_together(run: Run, workers: int) -> None:
    """Prepare the data of a run in several processes; data in the cache are kept."""
    share = partial(prepare_share, run, workers)
    with closing(work_in_processes(share, range(workers), workers)) as done:
        for _ in done:
            pass


def prepare_share(run: Run, workers: int, rank: int) -> None:
    """Do the share of process ``rank`` of ``workers`` processes.

    Each begins elsewhere, and finds what the others have made.
    """
    how = Preparation(progress=Progress(bar=False), rank=rank, world_size=workers)
    run.data.prepare(sketch(run.system), how)
