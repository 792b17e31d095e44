"""A recipe in the minutes that there are: a machine times itself and runs as many steps as fit.

The number of steps of a recipe is its reference size, and the most that a budget runs. What is
chosen is kept beside the runs in ``budget.json``, so that a run that goes on keeps its schedule.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from counterpoint.config_json import decode, encode
from counterpoint.errors import UserError
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.evaluate.units import score_units
from counterpoint.progress import Progress
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.distributed import World, shard
from counterpoint.train.fine_tuning import begun_system
from counterpoint.train.loop import Trainer
from counterpoint.train.run import Run
from counterpoint.train.stop_signal import StopSignal

FILE = "budget.json"

EVALUATION_UNITS = 64
"""Held-out units that are scored while a run learns: a few seconds on a laptop's models."""

_TRIAL_UNITS = 3
_FEWEST_UNITS = 8  # fewer give no interval
_TRIAL_SHARE = 0.03  # of the time
_LONGEST_TRIAL_S = 6.0
_MOST_MEASURED = 0.25  # of the time goes into measuring what was trained
_SLACK = 0.92  # a machine gets slower when it is warm, and checkpoints are written


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTiming:
    """How long the pieces of a run take on this machine.

    Attributes:
        step_s: Seconds of a training step, with its share of the evaluations between steps.
        unit_s: Seconds to score a held-out unit; 0 where nothing is held out.
        unit_size: Bytes or frames of a held-out unit.
        num_units: Held-out units.
    """

    step_s: float
    unit_s: float = 0.0
    unit_size: float = 1.0
    num_units: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much of a recipe is run.

    Attributes:
        minutes: Time that was given.
        num_steps: Steps of each run, by its name.
        reference_steps: Those of the recipe.
        step_seconds: Seconds that a step took when the machine timed itself.
        measured: Share of the recipe's held-out units that are scored.
    """

    minutes: float
    num_steps: Mapping[str, int]
    reference_steps: Mapping[str, int]
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    measured: float = 1.0

    def describe(self) -> str:
        """One sentence: what is run of what."""
        parts = []
        for name, steps in _once(self.num_steps).items():
            of = self.reference_steps.get(name, steps)
            share = "all" if steps >= of else f"{steps / of:.0%}"
            parts.append(f"{steps:,} of the recipe's {of:,} steps ({share})")
        seconds = ", ".join(f"{name} {s:.3g} s" for name, s in self.step_seconds.items())
        took = f"; a step takes {seconds}" if seconds else ""
        return f"{' and '.join(parts)} in about {self.minutes:g} minutes{took}"

    def measure(self, config: EvaluationConfig, num_units: int) -> EvaluationConfig:
        """An evaluation on the share of the held-out units that fits."""
        if self.measured == 1:
            return config

        def some(count: int) -> int:
            return max(round(self.measured * count), min(count, _FEWEST_UNITS))

        units = some(config.max_units or num_units)
        return replace(config, max_units=units, whole_units=some(config.whole_units))

    def fit(self, run: Run) -> Run:
        """A run with its number of steps, and a warm-up that fits to it."""
        return fitted(run, self.num_steps[run.name])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What needs time beside the steps.

    Attributes:
        begin: When the minutes began, of `time.perf_counter`; ``None`` is now.
        block_ticks: Alignment of the rows; see `counterpoint.recipes.training.train_run`.
        num_seeds: How often each run is trained and measured.
        evaluation: How every trained model is measured; ``None`` where nothing is.
        reserve_s: Seconds for all else, such as a report.
    """

    begin: float | None = None
    block_ticks: int | None = None
    num_seeds: int = 1
    evaluation: EvaluationConfig | None = None
    reserve_s: float = 0.0


def fitted(run: Run, num_steps: int) -> Run:
    """A run with another number of steps and its schedule shrunk with them.

    A tenth of the run, at most the recipe's own warm-up, is always left to warm up.
    """
    if num_steps == run.train.num_steps:
        return run
    schedule = run.train.schedule
    warmup = round(schedule.warmup_steps * num_steps / run.train.num_steps)
    warmup = min(max(warmup, num_steps // 10), schedule.warmup_steps)
    schedule = replace(schedule, warmup_steps=warmup)
    return replace(run, train=replace(run.train, num_steps=num_steps, schedule=schedule))


def find_budget(
    runs: Sequence[Run],
    minutes: float | None,
    folder: Path,
    world: World,
    progress: Progress,
    plan: Plan | None = None,
) -> Budget | None:
    """Choose how much of some runs is done, or read what was chosen; all processes must call this.

    Args:
        runs: What the minutes are for; all get the same share of their steps.
        minutes: How long all of it may take; ``None`` runs all steps.
        folder: Folder of the study or the run.
        world: The processes.
        progress: Told what was chosen.
        plan: What else needs time.

    Raises:
        UserError: The minutes are none, or ``budget.json`` cannot be read.
    """
    file = folder / FILE
    if minutes is None:
        if world.is_first:
            file.unlink(missing_ok=True)  # now the config says it
        return None
    if not minutes > 0:
        raise UserError(f"`minutes` must be > 0: got {minutes}. Leave them out to run all steps.")
    budget = _kept(file, runs) if world.is_first else None
    budget = world.from_first(budget)
    if budget is None:
        budget = _choose(runs, minutes, world, progress, plan or Plan())
        if world.is_first:
            keep_begun(file, encode(budget))
    elif budget.minutes != minutes and world.is_first:
        progress.note(
            f"{folder} keeps the steps of its first call, which had {budget.minutes:g} minutes. "
            "Take another folder to have another number."
        )
    if world.is_first:
        progress.note(budget.describe())
    return budget


def _choose(
    runs: Sequence[Run], minutes: float, world: World, progress: Progress, plan: Plan
) -> Budget:
    """Time the runs; all processes choose alike."""
    begin = time.perf_counter() if plan.begin is None else plan.begin
    budget_s = 60 * minutes
    progress.note("timing some steps")
    trial_s = min(max(_TRIAL_SHARE * budget_s / len(runs), 1.0), _LONGEST_TRIAL_S)
    timings = {run.name: time_run(run, world, progress, plan.block_ticks, trial_s) for run in runs}
    measuring_s = plan.num_seeds * sum(_measuring_s(timing, plan) for timing in timings.values())
    measured = min(_MOST_MEASURED * budget_s / max(measuring_s, 1e-9), 1.0)
    left_s = _SLACK * budget_s - (time.perf_counter() - begin) - measured * measuring_s
    left_s -= plan.reserve_s
    needed_s = plan.num_seeds * sum(run.train.num_steps * timings[run.name].step_s for run in runs)
    share = min(max(left_s, 0.0) / needed_s, 1.0)
    budget = Budget(
        minutes=minutes,
        num_steps={run.name: max(round(share * run.train.num_steps), 1) for run in runs},
        reference_steps={run.name: run.train.num_steps for run in runs},
        step_seconds={name: float(f"{timing.step_s:.3g}") for name, timing in timings.items()},
        measured=round(measured, 3),
    )
    chosen: Budget = world.from_first(budget)
    return chosen


def _measuring_s(timing: RunTiming, plan: Plan) -> float:
    """How long it takes to measure a trained model as planned."""
    if plan.evaluation is None:
        return 0.0
    num_units = plan.evaluation.max_units or timing.num_units
    # A whole is read, exchanged and left out.
    whole_ticks = 4 * plan.evaluation.whole_units * plan.evaluation.whole_ticks
    return timing.unit_s * (num_units + whole_ticks / timing.unit_size)


def time_run(
    run: Run, world: World, progress: Progress, block_ticks: int | None, seconds: float
) -> RunTiming:
    """Take some steps of a run, and forget them; all processes must call this.

    The first step, in which buffers are made and kernels compiled, does not count.

    Args:
        run: What is timed; its type of products is settled.
        world: The processes.
        progress: Shows how data are prepared.
        block_ticks: See `counterpoint.recipes.training.train_run`.
        seconds: How long steps are taken, at least three.
    """
    keep_large_buffers()
    system = begun_system(run.system, run.train.fine_tune, run.train.seed)
    system = system.to(world.device)
    data = run.data.prepare(
        system, block_ticks=block_ticks, progress=progress, rank=world.rank, world_size=world.size
    )
    batches = data.batches(run.train.batch_rows, run.train.seed, world.rank, world.size)
    trainer = Trainer(shard(system, world), batches, run.train)
    system.train()
    stop = StopSignal()
    trainer.step(stop)
    begin = time.perf_counter()
    taken = 0
    while taken < 3 or world.from_first(time.perf_counter() - begin < seconds):
        trainer.step(stop)
        taken += 1
    step_s = (time.perf_counter() - begin) / taken
    units = data.held_out_units()
    if units is None or not len(units) or world.size > 1:
        return RunTiming(step_s=step_s)
    system.eval()
    begin = time.perf_counter()
    with trainer.autocast():
        scores = score_units(system, units, _TRIAL_UNITS)
    unit_s = (time.perf_counter() - begin) / len(scores)
    if run.train.evaluate_every:
        step_s += unit_s * min(len(units), EVALUATION_UNITS) / run.train.evaluate_every
    return RunTiming(
        step_s=step_s,
        unit_s=unit_s,
        unit_size=sum(score.size for score in scores) / len(scores),
        num_units=len(units),
    )


def _kept(file: Path, runs: Iterable[Run]) -> Budget | None:
    """What was chosen for these runs before."""
    if not file.exists():
        return None
    found: Budget = decode(Budget, read_begun(file, ("minutes", "num_steps")))
    return found if all(run.name in found.num_steps for run in runs) else None


def _once(steps: Mapping[str, int]) -> dict[str, int]:
    """One run of each number of steps, which arms share."""
    return {name: count for count, name in {count: name for name, count in steps.items()}.items()}
