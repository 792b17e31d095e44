"""The size of `counterpoint.recipes.front_loading` that a CPU finishes in some minutes."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.config_json import decode
from counterpoint.errors import UserError
from counterpoint.progress import Progress, spell_minutes
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.recipes.budget import FILE, Plan, time_run
from counterpoint.recipes.front_loading import (
    ITEM_TOKENS,
    FrontLoading,
    chains,
    corpora,
    front_loading,
)
from counterpoint.recipes.front_loading_lanes import chain_run, segments
from counterpoint.recipes.front_loading_run import STUDY, answered
from counterpoint.recipes.front_loading_small import front_loading_small
from counterpoint.systems import build_system
from counterpoint.train.distributed import World
from counterpoint.train.run import Run

_TRIAL_S = 2.0
_TIMED_SHARE = 0.25  # of the scored items
_SLACK = 0.92


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainBudget:
    """The size that was chosen.

    Attributes:
        minutes: Time budget.
        size: Name of the declared size.
        left_out: Sentence that says what is left out for lack of time; empty if nothing is.
    """

    minutes: float
    size: str
    left_out: str = ""


def fit_front_loading(
    study: FrontLoading,
    minutes: float | None,
    folder: Path,
    device: str,
    progress: Progress,
    *,
    may_time: bool = True,
) -> tuple[FrontLoading, str]:
    """Return the declared size that fits, or the one that was chosen before in its folder.

    On a GPU all lanes of a stack are trained together and the time of one says little about it, so
    the study is returned as it is. Without minutes, the time that it takes is told.

    Args:
        study: The declared study.
        minutes: Time for all of it; ``None`` runs all, or the size that was chosen before.
        folder: Its folder.
        device: Device of the models.
        progress: Is told the choice.
        may_time: Whether a size may be timed; a report of what is there needs none.

    Returns:
        The study to run, and a sentence that says what is left out for lack of time.

    Raises:
        UserError: Not even the smallest size fits, or the earlier choice cannot be read.
    """
    sizes = _declared_sizes(study)
    file = folder / FILE
    if file.exists():
        kept: ChainBudget = decode(ChainBudget, read_begun(file, ("minutes", "size")))
        known = {size.name: size for size in sizes}
        if kept.size not in known:
            raise UserError(
                f"The folder must be one of {study.name}: {FILE} there names its size "
                f"{kept.size!r}. Take another folder."
            )
        return known[kept.size], kept.left_out
    is_begun = (folder / STUDY).exists()
    if device != "cpu" or is_begun or not may_time or (minutes is None and len(sizes) == 1):
        return study, ""
    progress.note("timing some steps")
    times = {size.name: expected_minutes(size) for size in sizes}
    told = ", ".join(f"{name} takes about {spell_minutes(took)}" for name, took in times.items())
    if minutes is None:
        progress.note(f"On this CPU {told}. `--minutes N` runs the largest that fits.")
        return study, ""
    for size in sizes:
        if times[size.name] <= minutes:
            left_out = _without(study, size)
            progress.note(f"{left_out} About {spell_minutes(times[size.name])}.".lstrip())
            budget = ChainBudget(minutes=minutes, size=size.name, left_out=left_out)
            keep_begun(file, asdict(budget))
            return size, left_out
    raise UserError(
        f"`--minutes` must be larger for {study.name} here: {told}; got {minutes:g}. "
        "Give more, or another `--groups`, `--seeds` or `--pretrain-tokens`."
    )


def expected_minutes(study: FrontLoading) -> float:
    """Return the minutes that a study is expected to take on this CPU, from some steps of it."""
    run = Run(
        name="timed",
        system=study.system,
        data=corpora(study)["small"],
        train=study.train,
    )
    step_s = time_run(run, World(), Progress(quiet=True), Plan(), _TRIAL_S).step_s
    few = replace(study, num_items=max(round(_TIMED_SHARE * study.num_items), 2))
    begin = time.perf_counter()
    answered(few, [build_system(study.system, 0).eval()], sampled=False)
    answering_s = (time.perf_counter() - begin) * study.num_items / few.num_items
    steps = sum(_num_steps(study, seed) for seed in study.seeds)
    num_models = len(chains(study.groups)) * len(study.seeds)
    return (step_s * steps + answering_s * num_models) / _SLACK / 60


def _num_steps(study: FrontLoading, seed: int) -> float:
    """Return the steps of all chains with a seed; chains share their pre-training."""
    tokens = 0
    for one in segments(replace(study, seeds=(seed,))):
        data: Any = chain_run(study, one.chain, seed).data
        tokens += data.phases[one.phase].tokens or 0
    return tokens / ITEM_TOKENS / study.train.batch_rows


def _declared_sizes(study: FrontLoading) -> list[FrontLoading]:
    """Return the study and what is declared as its smaller size, unless options changed it."""
    return [study, front_loading_small()] if study == front_loading() else [study]


def _without(study: FrontLoading, size: FrontLoading) -> str:
    """Return the sentence that says what is left out; empty if nothing is."""
    if size is study:
        return ""
    return (
        f"Left out for lack of time: {study.name} ({study.size}). "
        f"Run instead: its declared size {size.name} ({size.size})."
    )
