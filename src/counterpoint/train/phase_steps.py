"""Which settings hold at a step of a run of phases: its phase, and its learning rate."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from counterpoint.errors import UserError
from counterpoint.train.config import TrainConfig
from counterpoint.train.optimizer import lr_ratio


def phase_at(ends: Sequence[int], step: int) -> int:
    """Return the number of the phase of a step, given the first step after each phase."""
    return int(np.searchsorted(ends, step, side="right"))


def phase_ends(config: TrainConfig) -> list[int]:
    """Return the first step after each phase; empty if a run has no phases."""
    return list(accumulate(phase.num_steps for phase in config.phases))


def phase_name(config: TrainConfig, step: int) -> str:
    """Return the name of the phase of a step; empty if a run has no phases."""
    return config.phases[phase_at(phase_ends(config), step)].name if config.phases else ""


def begins_anew(config: TrainConfig, step: int) -> bool:
    """Return whether the moments of the optimiser are dropped before a step."""
    ends = phase_ends(config)
    starts = [0, *ends[:-1]]
    return any(
        step == start and phase.reset_optimizer and phase.num_steps
        for start, phase in zip(starts, config.phases, strict=False)
    )


def step_lr_ratio(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step as a share of the highest one.

    A schedule spans its own phase and the phases after it that continue it.
    """
    if not config.phases:
        return lr_ratio(config.schedule, step, config.num_steps)
    ends = phase_ends(config)
    number = phase_at(ends, step)
    first = max((i for i in range(number + 1) if config.phases[i].schedule), default=0)
    others = range(number + 1, len(config.phases))
    last = next((i for i in others if config.phases[i].schedule), len(config.phases)) - 1
    begin = ends[first] - config.phases[first].num_steps
    schedule = config.phases[first].schedule or config.schedule
    ratio = lr_ratio(schedule, step - begin, ends[last] - begin)
    return ratio * config.phases[number].lr_factor


def with_phase_steps(config: TrainConfig, num_steps: Sequence[int]) -> TrainConfig:
    """Return settings with the steps of each phase, which the data decide.

    Raises:
        UserError: The settings have other phases than the data.
    """
    if len(num_steps) != len(config.phases):
        raise UserError(
            f"Data and training must have the same phases: got {len(num_steps)} and "
            f"{len(config.phases)}. Make the run with `counterpoint.recipes.phased`."
        )
    phases = [
        replace(phase, num_steps=own) for phase, own in zip(config.phases, num_steps, strict=True)
    ]
    return replace(config, phases=tuple(phases), num_steps=sum(num_steps))
