"""Runs of several phases, such as pre-training, supervised fine-tuning and reinforcement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from counterpoint.data.tasks.items import Trained
from counterpoint.data.token_deal import MemberWeight
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.systems.contract import SystemConfig
from counterpoint.train.config import PhaseConfig, ScheduleConfig, TrainConfig
from counterpoint.train.phases import PhaseData, PhasedData, PhaseSource
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import Run

PLACEMENTS = {"uniform": (0.0, 1.0), "first": (0.0, 0.4), "last": (0.6, 1.0)}
"""Part of a phase in which a source stands, by name: everywhere, or the first or last 40 %."""


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase of a run: what it reads, and how it learns.

    Attributes:
        name: Its name.
        tokens: Number of tokens: it ends with the batch that reaches it.
        weights: Shares of the tokens, by source and part of the phase.
        rewarded: Questions of a phase of reinforcement, which reads nothing else.
        num_steps: Number of steps of a phase of reinforcement.
        row_ticks: Number of ticks of a row; ``None`` keeps that of each source.
        trained: Tokens that carry a loss: "all", the "answer", or the "spans" kept with each
            sample, except its prompt.
        schedule: The learning rate, which warms up anew; ``None`` continues the phase before.
        lr_factor: Factor of all learning rates.
        reset_optimizer: Whether the phase begins without moments.
    """

    name: str
    tokens: int = 0
    weights: tuple[MemberWeight, ...] = ()
    rewarded: RewardedData | None = None
    num_steps: int = 0
    row_ticks: int | None = None
    trained: Trained = "all"
    schedule: ScheduleConfig | None = None
    lr_factor: float = 1.0
    reset_optimizer: bool = False


def phased_run(
    name: str,
    system: SystemConfig,
    sources: Sequence[PhaseSource],
    phases: Sequence[Phase],
    train: TrainConfig,
    held_out: tuple[str, ...] | None = None,
) -> Run:
    """Return a run of phases.

    Args:
        name: Name of the run.
        system: The model.
        sources: Sources of the phases.
        phases: The phases, in order.
        train: Other settings. Its number of steps does not matter: it follows from the tokens.
        held_out: Sources whose held-out units are measured; ``None`` means all.

    Raises:
        UserError: A phase has no data, or a weight names no source.
    """
    data = PhasedData(
        sources=tuple(sources),
        phases=tuple(
            PhaseData(
                name=phase.name,
                tokens=phase.tokens,
                weights=phase.weights,
                row_ticks=phase.row_ticks,
                trained=phase.trained,
                rewarded=phase.rewarded,
                num_steps=phase.num_steps,
            )
            for phase in phases
        ),
        held_out=held_out,
    )
    settings = tuple(
        PhaseConfig(
            name=phase.name,
            schedule=phase.schedule,
            lr_factor=phase.lr_factor,
            reset_optimizer=phase.reset_optimizer,
        )
        for phase in phases
    )
    return Run(name=name, system=system, data=data, train=replace(train, phases=settings))


def placed(
    base: str, shares: dict[str, float], placement: str = "uniform"
) -> tuple[MemberWeight, ...]:
    """Return the weights of a phase with a base and other sources in a part of it.

    Args:
        base: Source that has the rest of the tokens.
        shares: Share of the tokens of the whole phase for each other source.
        placement: Where these stand; one of `PLACEMENTS`.

    Raises:
        UserError: The shares do not fit into the part.
    """
    if placement not in PLACEMENTS:
        raise UserError(f"`placement` must be of {', '.join(PLACEMENTS)}: got {placement!r}.")
    begin, end = PLACEMENTS[placement]
    within = {name: share / (end - begin) for name, share in shares.items()}
    rest = 1 - sum(within.values())
    if rest < -1e-9 or min(within.values(), default=0) < 0:
        raise UserError(
            f"The shares must fit into {end - begin:.0%} of the phase: got {shares}. Lower them."
        )
    found = [MemberWeight(member=base, weight=1.0, begin=0.0, end=begin)] if begin else []
    found += [MemberWeight(member=base, weight=1.0, begin=end, end=1.0)] if end < 1 else []
    found += [MemberWeight(member=base, weight=max(rest, 0.0), begin=begin, end=end)]
    found += [
        MemberWeight(member=name, weight=own, begin=begin, end=end) for name, own in within.items()
    ]
    return tuple(found)
