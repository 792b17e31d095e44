"""Time budgets: a machine times itself and runs as many steps of a recipe as fit.

The number of steps of a recipe is its reference size, and the largest that a budget runs. The
choice is stored with the runs in ``budget.json``, so that a run that is resumed keeps its schedule.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from counterpoint.config_json import decode, encode
from counterpoint.data.source import Preparation
from counterpoint.errors import UserError, check_minutes
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.evaluate.units import score_units
from counterpoint.progress import Progress, spell_minutes
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.recipes.reinforcement import connected
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World, shard
from counterpoint.train.fine_tuning import begun_system
from counterpoint.train.loop import Evaluate, Trainer
from counterpoint.train.run import Run
from counterpoint.train.stop_signal import StopSignal

FILE = "budget.json"

EVALUATION_UNITS = 64
"""Number of held-out units that are scored during training: a few seconds for a laptop's models."""

_TRIAL_UNITS = 3
_FEWEST_UNITS = 8  # fewer units give no interval
_TRIAL_SHARE = 0.03  # share of the time
_LONGEST_TRIAL_S = 6.0
_MOST_MEASURED = 0.25  # largest share of the time for measuring the trained models
_LEAST_TRAINING = 0.1  # share of the time for steps, even if all time is gone before them
_SLACK = 0.92  # share of the time that is used; a warm machine is slower, and checkpoints take time


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTiming:
    """Times of the pieces of a run on this machine.

    Attributes:
        step_s: Seconds of a training step, including its share of the evaluations between steps.
        unit_s: Seconds to score a held-out unit; 0 if nothing is held out.
        unit_size: Bytes or frames of a held-out unit.
        num_units: Number of held-out units.
        end_s: Seconds of what else is measured at the end; without a plan of measurements, of the
            last evaluation.
    """

    step_s: float
    unit_s: float = 0.0
    unit_size: float = 1.0
    num_units: int = 0
    end_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The part of a recipe that is run.

    Attributes:
        minutes: Time budget.
        num_steps: Steps of each run, by its name.
        reference_steps: Steps of the recipe.
        step_seconds: Seconds of a step when the machine timed itself.
        measured: Share of the recipe's measurements, such as held-out units, that are made.
        before_s: Seconds that were gone before the first step, such as those for making data.
        after_s: Seconds that are kept for measuring and for the report.
    """

    minutes: float
    num_steps: Mapping[str, int]
    reference_steps: Mapping[str, int]
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    measured: float = 1.0
    before_s: float = 0.0
    after_s: float = 0.0

    @property
    def is_late(self) -> bool:
        """True if so little time was left for the steps that the minutes are exceeded."""
        left_s = _SLACK * 60 * self.minutes - self.before_s - self.after_s
        return left_s < _LEAST_TRAINING * 60 * self.minutes

    def describe(self) -> str:
        """Return what is run of the recipe, and what is left out, in one line."""
        parts = []
        for name, steps in _once(self.num_steps).items():
            of = self.reference_steps.get(name, steps)
            share = "all" if steps >= of else f"{steps / of:.0%}"
            parts.append(f"{steps:,} of the recipe's {of:,} steps ({share})")
        seconds = ", ".join(f"{name} {s:.3g} s" for name, s in self.step_seconds.items())
        took = f"; a step takes {seconds}" if seconds else ""
        if self.measured < 1:
            took += f"; {self.measured:.0%} of the recipe's measurements are made"
        if self.is_late:
            took += (
                f"; it takes longer, because {self.before_s:.0f} s were gone before the first step "
                f"and measuring takes {self.after_s:.0f} s"
            )
        return f"{' and '.join(parts)} in about {spell_minutes(self.minutes)}{took}"

    def measure(self, config: EvaluationConfig, num_units: int) -> EvaluationConfig:
        """Return an evaluation of the share of the held-out units that fits."""
        if self.measured == 1:
            return config
        units = self.some(config.max_units or num_units)
        return replace(config, max_units=units, whole_units=self.some(config.whole_units))

    def some(self, count: int) -> int:
        """Return how many of the recipe's units or trials are measured."""
        return max(round(self.measured * count), min(count, _FEWEST_UNITS))

    def fit(self, run: Run) -> Run:
        """Return a run with its number of steps, and a warm-up that fits it."""
        return fitted(run, self.num_steps[run.name])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Work that needs time in addition to the steps.

    Attributes:
        begin: Time of `time.perf_counter` at which the minutes began; ``None`` means now.
        block_ticks: Alignment of the rows; see `counterpoint.recipes.training.train_run`.
        num_seeds: Number of times that each run is trained and measured.
        evaluation: Measurements of every trained model; ``None`` for none.
        also: Measures a model in addition to the held-out units, whenever these are measured.
        measuring_s: Seconds of all other measurements of the trained models, of which a share is
            made if they take too long.
        reserve_s: Seconds for everything else, such as a report.
    """

    begin: float | None = None
    block_ticks: int | None = None
    num_seeds: int = 1
    evaluation: EvaluationConfig | None = None
    also: Evaluate | None = None
    measuring_s: float = 0.0
    reserve_s: float = 0.0


def fitted(run: Run, num_steps: int) -> Run:
    """Return a run with another number of steps, and the schedule of `fitted_train`."""
    return replace(run, train=fitted_train(run.train, num_steps))


def fitted_train(train: TrainConfig, num_steps: int) -> TrainConfig:
    """Return a training config with another number of steps and a schedule that shrinks with it.

    The warm-up keeps at least a tenth of the run, but not more than the recipe's own warm-up.
    """
    if num_steps == train.num_steps:
        return train
    schedule = train.schedule
    warmup = round(schedule.warmup_steps * num_steps / train.num_steps)
    warmup = min(max(warmup, num_steps // 10), schedule.warmup_steps)
    return replace(train, num_steps=num_steps, schedule=replace(schedule, warmup_steps=warmup))


def find_budget(
    runs: Sequence[Run],
    minutes: float | None,
    folder: Path,
    world: World,
    progress: Progress,
    plan: Plan | None = None,
) -> Budget | None:
    """Choose how much of some runs is done, or read the earlier choice; all processes must call it.

    Args:
        runs: Runs that share the minutes; all get the same share of their steps.
        minutes: Time for everything; ``None`` runs all steps.
        folder: Folder of the study or the run.
        world: The processes.
        progress: Is told the choice.
        plan: Other work that needs time.

    Returns:
        The budget, or ``None`` if all steps are run.

    Raises:
        UserError: ``minutes`` is no time, or ``budget.json`` cannot be read.
    """
    file = folder / FILE
    if minutes is None:
        # The config decides from now on. The last run of a study may have the study's folder.
        if world.is_first and file.exists() and not _is_of_others(file, runs):
            file.unlink()
        return None
    check_minutes(minutes)
    budget = _kept(file, runs) if world.is_first else None
    budget = world.from_first(budget)
    if budget is None:
        budget = _choose(runs, minutes, world, progress, plan or Plan())
        if world.is_first:
            keep_begun(file, encode(budget))
    elif budget.minutes != minutes and world.is_first:
        progress.note(
            f"{folder} keeps the steps of its first call, which had "
            f"{spell_minutes(budget.minutes)}. Take another folder for another number."
        )
    if world.is_first:
        progress.note(budget.describe())
    return budget


def _choose(
    runs: Sequence[Run], minutes: float, world: World, progress: Progress, plan: Plan
) -> Budget:
    """Time the runs and choose; all processes make the same choice."""
    begin = time.perf_counter() if plan.begin is None else plan.begin
    budget_s = 60 * minutes
    progress.note("timing some steps")
    trial_s = min(max(_TRIAL_SHARE * budget_s / len(runs), 1.0), _LONGEST_TRIAL_S)
    timings = {run.name: time_run(run, world, progress, plan, trial_s) for run in runs}
    measuring_s = plan.measuring_s
    measuring_s += plan.num_seeds * sum(_measuring_s(timing, plan) for timing in timings.values())
    measured = min(_MOST_MEASURED * budget_s / max(measuring_s, 1e-9), 1.0)
    before_s = time.perf_counter() - begin
    after_s = plan.reserve_s + measured * measuring_s
    after_s += plan.num_seeds * sum(timing.end_s for timing in timings.values())
    left_s = max(_SLACK * budget_s - before_s - after_s, _LEAST_TRAINING * budget_s)
    needed_s = plan.num_seeds * sum(run.train.num_steps * timings[run.name].step_s for run in runs)
    share = min(left_s / needed_s, 1.0)
    budget = Budget(
        minutes=minutes,
        num_steps={run.name: max(round(share * run.train.num_steps), 1) for run in runs},
        reference_steps={run.name: run.train.num_steps for run in runs},
        step_seconds={name: float(f"{timing.step_s:.3g}") for name, timing in timings.items()},
        measured=round(measured, 3),
        before_s=round(before_s, 1),
        after_s=round(after_s, 1),
    )
    chosen: Budget = world.from_first(budget)
    return chosen


def _measuring_s(timing: RunTiming, plan: Plan) -> float:
    """Return the seconds that the planned measurements of a trained model take."""
    if plan.evaluation is None:
        return 0.0
    num_units = plan.evaluation.max_units or timing.num_units
    # Each whole is read, replaced and left out.
    whole_ticks = 4 * plan.evaluation.whole_units * plan.evaluation.whole_ticks
    return timing.unit_s * (num_units + whole_ticks / timing.unit_size)


def prepared_by(world: World, progress: Progress, block_ticks: int | None) -> Preparation:
    """Return how some processes prepare data together.

    Args:
        world: The processes.
        progress: Shows the progress, in the first process only.
        block_ticks: The length of a row is a multiple of this; ``None`` leaves it to the system.
    """
    return Preparation(
        block_ticks=block_ticks, progress=progress, rank=world.rank, world_size=world.size
    )


def time_run(run: Run, world: World, progress: Progress, plan: Plan, seconds: float) -> RunTiming:
    """Compute some steps of a run without learning from them; all processes must call this.

    The first step, in which buffers are allocated and kernels compiled, does not count.

    Args:
        run: Run to time; its type of products has been chosen.
        world: The processes.
        progress: Shows how data are prepared.
        plan: Measurements in addition to the steps.
        seconds: Time for the steps, of which at least three are taken.
    """
    keep_large_buffers()
    system = begun_system(run.system, run.train.fine_tune, run.train.seed)
    system = system.to(world.device)
    data = run.data.prepare(system, prepared_by(world, progress, plan.block_ticks))
    batches = data.batches(run.train.batch_rows, run.train.seed, world.rank, world.size)
    batches = connected(batches, system, world)
    trainer = Trainer(shard(system, world), batches, run.train)
    system.train()
    step_s = _step_seconds(trainer, world, seconds)
    units = data.held_out_units()
    if units is None or not len(units) or world.size > 1:
        return RunTiming(step_s=step_s)
    system.eval()
    begin = time.perf_counter()
    with trainer.autocast():
        scores = score_units(system, units, _TRIAL_UNITS)
    unit_s = (time.perf_counter() - begin) / len(scores)
    end_s = 0.0
    if plan.also is not None:
        begin = time.perf_counter()
        trainer.evaluate(plan.also)
        end_s = time.perf_counter() - begin
    evaluation_s = unit_s * min(len(units), EVALUATION_UNITS) + end_s
    if run.train.evaluate_every:
        step_s += evaluation_s / run.train.evaluate_every
    if plan.evaluation is None:
        end_s = evaluation_s  # the last evaluation of the training
    return RunTiming(
        step_s=step_s,
        unit_s=unit_s,
        unit_size=sum(score.size for score in scores) / len(scores),
        num_units=len(units),
        end_s=end_s,
    )


def _step_seconds(trainer: Trainer, world: World, seconds: float) -> float:
    """Return the mean seconds of a step over the stages of a training, each of which is timed.

    Nothing is learned: the first steps of a later stage have the highest learning rate, with which
    a model without the steps before them may diverge.
    """
    stop = StopSignal()
    num_steps = trainer.config.num_steps
    starts = trainer.contract.stages(num_steps)
    total_s = 0.0
    for start, end in pairwise((*starts, num_steps)):
        trainer.state.counters.step = start
        trainer.step(stop, learns=False)
        begin = time.perf_counter()
        taken = 0
        while taken < 3 or world.from_first(time.perf_counter() - begin < seconds / len(starts)):
            trainer.state.counters.step = start + (taken + 1) % (end - start)
            trainer.step(stop, learns=False)
            taken += 1
        total_s += (end - start) * (time.perf_counter() - begin) / taken
    return total_s / num_steps


def _kept(file: Path, runs: Iterable[Run]) -> Budget | None:
    """Return the earlier choice for these runs, if there is one."""
    if not file.exists():
        return None
    found: Budget = decode(Budget, read_begun(file, ("minutes", "num_steps")))
    return found if all(run.name in found.num_steps for run in runs) else None


def _is_of_others(file: Path, runs: Sequence[Run]) -> bool:
    """Return whether a choice is one for more runs than these."""
    try:
        names = set(read_begun(file, ("num_steps",))["num_steps"])
    except UserError:
        return False
    return names > {run.name for run in runs}


def _once(steps: Mapping[str, int]) -> dict[str, int]:
    """Keep one of the runs with the same number of steps; arms share their numbers."""
    return {name: count for count, name in {count: name for name, count in steps.items()}.items()}
