"""A study: runs on equal data with equal training FLOPs are trained, measured and reported."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import torch

from counterpoint.config_json import encode
from counterpoint.data.source import Preparation, PreparedSource
from counterpoint.errors import UserError, check_minutes
from counterpoint.evaluate.report.report import STUDY, write_report
from counterpoint.evaluate.report.summary import Summary, rich_table
from counterpoint.evaluate.results import (
    EvaluationConfig,
    evaluate,
    load_evaluation,
    save_evaluation,
)
from counterpoint.files import check_name
from counterpoint.progress import Output, Progress
from counterpoint.recipes.budget import Budget, Plan, find_budget
from counterpoint.recipes.machine import machine_facts
from counterpoint.recipes.training import train_run
from counterpoint.systems import sketch, system_layout
from counterpoint.systems.contract import System, mean_training_flops
from counterpoint.train.checkpoint import WEIGHTS, load_system, read_manifest
from counterpoint.train.distributed import World
from counterpoint.train.metrics import MetricLogger
from counterpoint.train.optimizer import optimizer_flops
from counterpoint.train.precision import settle_precision
from counterpoint.train.run import Run
from counterpoint.train.run_folder import only_one
from counterpoint.train.threads import computing, in_one_line, settle_threads

_REPORT_S = 10.0  # continuations, a passage, pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Runs that are compared: each with the first one, and further declared pairs.

    Attributes:
        name: Name of the study and of its folder.
        arms: Runs on the same rows, of text or of speech, in the same order; systems, optimisers
            and initial weights may differ.
        purpose: One sentence for the report.
        evaluation: Amount of evaluation.
        seeds: Training seeds; every arm is trained once with each. If empty, each arm is trained
            with the seed in its config.
        minutes: Time for the whole study: every arm takes as many of its steps as fit on this
            machine, the same number (`counterpoint.recipes.budget`). ``None`` takes all steps.
        max_flops_difference: Largest share by which training FLOPs a tick may differ.
        unmatched: Names of arms whose training FLOPs may differ by more, as the report then says.
        contrasts: Further pairs of arms that are compared; the second of a pair is the reference.
    """

    name: str
    arms: tuple[Run, ...]
    purpose: str = ""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seeds: tuple[int, ...] = ()
    minutes: float | None = None
    max_flops_difference: float = 0.02
    unmatched: tuple[str, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_minutes(self.minutes)
        names = [run.name for run in self.arms]
        if not names or len(set(names)) != len(names):
            raise UserError(
                f"A study must have at least one arm and no name twice: got {names}. Rename one."
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"`seeds` must name no seed twice: got {self.seeds}. Leave one out.")
        if not set(self.unmatched) <= set(names):
            raise UserError(
                f"`unmatched` must name arms of {', '.join(names)}: got "
                f"{', '.join(self.unmatched)}. Name some of them."
            )
        for pair in self.contrasts:
            if len(set(pair)) != 2 or not set(pair) <= set(names):
                raise UserError(
                    f"`contrasts` must be pairs of two arms of {', '.join(names)}: got "
                    f"{' and '.join(pair)}. Name two of them."
                )
        timed = [run.name for run in self.arms if run.minutes is not None]
        if timed:
            raise UserError(
                f"`minutes` must be left out for an arm: got some for {timed[0]!r}. Give them to "
                "the study, whose arms share them."
            )
        first = self.arms[0]
        for run in self.arms[1:]:
            for place in ("data", "train.num_steps", "train.batch_rows", "train.seed"):
                expected = _field(first, place)
                got = _field(run, place)
                if expected != got:
                    raise UserError(
                        f"Arms must learn from equal data: `{place}` is {expected!r} for "
                        f"{first.name!r} and {got!r} for {run.name!r}. Make them equal."
                    )

    def described_runs(self) -> tuple[Run, ...]:
        """Return the arms; see `HasRuns`."""
        return self.arms

    @property
    def block_ticks(self) -> int:
        """Alignment of the rows that all arms share."""
        return math.lcm(*(system_layout(run.system).block_ticks for run in self.arms))

    def runs(self, arm: Run) -> dict[str, Run]:
        """Return the runs of an arm by the names of their folders: one, or one for each seed."""
        if not self.seeds:
            return {arm.name: arm}
        return {
            f"{arm.name}-seed{seed}": replace(arm, train=replace(arm.train, seed=seed))
            for seed in self.seeds
        }


def training_flops(study: Study) -> dict[str, float]:
    """Return the training FLOPs a tick of every arm.

    Raises:
        UserError: The FLOPs differ by more than the study allows.
    """
    flops = {}
    for run in study.arms:
        system = sketch(run.system)
        num_ticks = run.data.num_ticks(system.layout)
        flops[run.name] = mean_training_flops(system, num_ticks, run.train.num_steps)
    first = flops[study.arms[0].name]
    for name, found in flops.items():
        if name not in study.unmatched and abs(found / first - 1) > study.max_flops_difference:
            raise UserError(
                f"Arms must have equal training FLOPs within {study.max_flops_difference:.0%}: "
                f"{study.arms[0].name!r} needs {first:.4g} a tick and {name!r} {found:.4g} "
                f"({found / first - 1:+.1%}). Change widths, layers or windows."
            )
    return flops


def optimizer_shares(study: Study) -> dict[str, float]:
    """Return what the optimiser's own products add to the training FLOPs of every arm, as a share.

    They belong to a step, whatever its number of ticks, so larger batches have smaller shares.
    """
    found = {}
    for run in study.arms:
        system = sketch(run.system)
        num_ticks = run.data.num_ticks(system.layout)
        model = mean_training_flops(system, num_ticks, run.train.num_steps)
        own = optimizer_flops(system, run.train.optimizer)
        found[run.name] = own / (model * num_ticks * run.train.batch_rows)
    return found


def run_study(
    study: Study,
    folder: Path,
    *,
    command: str = "",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    output: Output | None = None,
    loggers: Callable[[Path], Sequence[MetricLogger]] = lambda folder: (),
) -> Summary | None:
    """Train and measure all arms one after another, then write the report.

    Finished work is kept: a study that was stopped or killed is continued, and for a finished study
    only the report is written again.

    Args:
        study: Study to run.
        folder: Study folder (see `counterpoint.evaluate.report.report`).
        command: Command that starts the study again, for the report.
        device: Device of the systems.
        progress: Shows how far the study is; on stderr by default.
        output: Output for the table; stdout by default.
        loggers: Function that makes the loggers of an arm's training numbers, from its folder.

    Returns:
        The results, or ``None`` if a signal stopped the training.

    Raises:
        UserError: The arms are not comparable, the data or the folder cannot be used, or another
            command is at work in the folder.
    """
    world = World(device=torch.device(device))
    with only_one(folder, world, ".study.lock"):
        return _run(study, folder, world, command, progress, output, loggers)


def _run(
    study: Study,
    folder: Path,
    world: World,
    command: str,
    progress: Progress | None,
    output: Output | None,
    loggers: Callable[[Path], Sequence[MetricLogger]],
) -> Summary | None:
    """Run a study in a folder that no other command uses; see `run_study`."""
    begin = time.perf_counter()
    progress = Progress() if progress is None else progress
    flops = training_flops(study)
    progress.note(f"{study.name}: preparing the data")
    data = _prepared(study, study.arms[0], progress)
    progress.note(f"{data.describe()}; {len(study.arms)} arms")
    study, world = _settled(study, folder, world, progress)
    with computing(world.num_threads):
        budget = _budget(study, folder, world, progress, begin)
        if budget is not None:
            study = _within(study, budget, data)
        for arm in study.arms:
            for name, run in study.runs(arm).items():
                followers = loggers(folder / name)
                if not _run_arm(study, run, folder / name, world, progress, followers):
                    return None
        facts = _facts(study, folder, world.device)
    progress.note("drawing the report")
    about = facts | {
        "command": command,
        "training_flops_per_tick": flops,
        "optimizer_shares": optimizer_shares(study),
        "budget": encode(budget),
        "seconds_of_last_call": round(time.perf_counter() - begin, 1),
    }
    (folder / STUDY).write_text(json.dumps(about, indent=1), encoding="utf-8")
    summary = write_report(folder)
    show(summary, folder, sys.stdout if output is None else output)
    return summary


def show(summary: Summary, folder: Path, output: Output) -> None:
    """Print the table, the verdict and the paths of the files.

    Raises:
        UserError: The package ``rich`` is missing.
    """
    table = rich_table(summary)
    from rich.console import Console

    console = Console(
        file=cast("IO[str]", output),
        width=None if output.isatty() else 140,
        markup=False,
        emoji=False,
    )
    console.print(table)
    console.print(summary.verdict, highlight=False)
    for name in ("report.html", "summary.json", *sorted(p.name for p in folder.glob("*.png"))):
        console.print(str(folder / name), highlight=False, soft_wrap=True)


def _run_arm(
    study: Study,
    run: Run,
    folder: Path,
    world: World,
    progress: Progress,
    loggers: Sequence[MetricLogger],
) -> bool:
    """Train and measure the unfinished rest of one arm; return False if a signal stopped it."""
    result = train_run(
        run,
        folder,
        world,
        plan=Plan(block_ticks=study.block_ticks),
        measure_end=False,
        progress=progress,
        loggers=loggers,
    )
    if not result.finished:
        return False
    weights = read_manifest(result.checkpoint)["files"][WEIGHTS]["sha256"]
    known = load_evaluation(folder)
    if known is not None and (known.weights, known.config) == (weights, study.evaluation):
        return True
    found = evaluate(
        # The checkpoint is read from the disk: it may be older than this call.
        load_system(result.checkpoint).to(world.device),
        _prepared(study, run, None),
        study.evaluation,
        precision=run.train.precision,
        world=world,
        weights=weights,
        progress=progress,
        title=folder.name,
    )
    save_evaluation(found, folder)
    return True


def _budget(
    study: Study, folder: Path, world: World, progress: Progress, begin: float
) -> Budget | None:
    """Return the part of a study that fits into its minutes, which began at ``begin``."""
    plan = Plan(
        begin=begin,
        block_ticks=study.block_ticks,
        num_seeds=max(len(study.seeds), 1),
        evaluation=study.evaluation,
        reserve_s=_REPORT_S,
    )
    return find_budget(study.arms, study.minutes, folder, world, progress, plan)


def _within(study: Study, budget: Budget, data: PreparedSource) -> Study:
    """Return the study reduced to its budget."""
    units = data.held_out_units()
    return replace(
        study,
        arms=tuple(budget.fit(arm) for arm in study.arms),
        evaluation=budget.measure(study.evaluation, 0 if units is None else len(units)),
    )


def _settled(study: Study, folder: Path, world: World, progress: Progress) -> tuple[Study, World]:
    """Return the study with one type for all arms that leave it open, and one number of threads."""
    left_open = [arm for arm in study.arms if arm.train.precision == "auto"]
    why = ""
    if left_open:
        choice = settle_precision("auto", *_systems_and_folders(study, left_open, folder), world)
        why = choice.why
        arms = tuple(
            replace(arm, train=replace(arm.train, precision=choice.precision))
            if arm in left_open
            else arm
            for arm in study.arms
        )
        study = replace(study, arms=arms)
    world, threads = settle_threads(*_systems_and_folders(study, study.arms, folder), world)
    told = in_one_line(why, threads)
    if told:
        progress.note(told)
    return study, world


def _systems_and_folders(
    study: Study, arms: Sequence[Run], folder: Path
) -> tuple[list[System], list[Path]]:
    systems = [sketch(arm.system) for arm in arms]
    return systems, [folder / name for arm in arms for name in study.runs(arm)]


def _prepared(study: Study, run: Run, progress: Progress | None) -> PreparedSource:
    """Return the data of an arm: the rows that all arms share, laid out for its own system."""
    how = Preparation(block_ticks=study.block_ticks, progress=progress)
    return run.data.prepare(sketch(run.system), how)


def _facts(study: Study, folder: Path, device: torch.device | str) -> dict[str, Any]:
    """Return the facts about a study, its evaluations and the machine for the report."""
    folders = {arm.name: [*study.runs(arm)] for arm in study.arms}
    return {
        "name": study.name,
        "purpose": study.purpose,
        "arms": [run.name for run in study.arms],
        "folders": folders,
        "contrasts": [list(pair) for pair in study.contrasts],
        "evaluation_seconds": {
            name: round(found.seconds, 1)
            for own in folders.values()
            for name in own
            if (found := load_evaluation(folder / name)) is not None
        },
        **machine_facts(device),
        "study": encode(study),
    }


def _field(run: Run, place: str) -> Any:
    value: Any = run
    for name in place.split("."):
        value = getattr(value, name)
    return value
