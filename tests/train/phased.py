"""A small run of three phases over items of tasks, for `test_phases.py` and two processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.plain import PlainText
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.tasks.verify import Verified
from counterpoint.data.token_deal import MemberWeight
from counterpoint.progress import Progress
from counterpoint.recipes.phased import Phase, phased_run, placed
from counterpoint.recipes.training import train_run
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train import rewarded
from counterpoint.train.checkpoint import read_manifest
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.loop import TrainResult
from counterpoint.train.phases import PhaseSource
from counterpoint.train.record import Record, StepNumbers, TrainState
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import Run


def sources(**changes: Any) -> list[PhaseSource]:
    """The third one is half of the second by another name."""
    plain = TaskData(task=PlainText(num_symbols=20), num_items=40, num_held_out=4)
    reasoning = TaskData(
        task=Reasoning(families=("arithmetic",), operations=(2, 3), most_symbols=120, unique=9),
        num_items=9,
        num_held_out=4,
    )
    return [
        PhaseSource(name="plain", data=plain),
        PhaseSource(name="reasoning", data=reasoning, **changes),
        PhaseSource(name="again", data=replace(reasoning, num_items=5)),
    ]


def phases() -> list[Phase]:
    """The second goes on with the moments and the schedule of the first, with longer rows."""
    return [
        Phase(name="pre", tokens=2500, weights=placed("plain", {"reasoning": 0.2}, "last")),
        Phase(
            name="longer",
            tokens=1500,
            weights=placed("plain", {"reasoning": 0.5}),
            row_ticks=256,
        ),
        Phase(
            name="sft",
            tokens=1200,
            weights=(
                MemberWeight(member="reasoning", weight=0.5),
                MemberWeight(member="again", weight=0.5),
            ),
            trained="spans",
            schedule=ScheduleConfig(warmup_steps=2),
            lr_factor=0.5,
            reset_optimizer=True,
        ),
    ]


def phased(**changes: Any) -> Run:
    """The whole has dropout, so that noise is in the model."""
    part = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=16)
    system = TwoStreamConfig(
        part=part,
        whole=replace(part, num_layers=1),
        lower_layers=1,
        block_ticks=4,
        whole_dropout=0.5,
    )
    train = TrainConfig(
        num_steps=1,
        batch_rows=4,
        accumulation=2,
        precision="float32",
        checkpoint_every=2,
        optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
    )
    values: dict[str, Any] = {"sources": sources(), "phases": phases(), "train": train, **changes}
    rows = [replace(phase, row_ticks=phase.row_ticks or 160) for phase in values.pop("phases")]
    return phased_run("phased", system, phases=rows, **values)


def train_phased(folder: Path, world: World | None = None, **changes: Any) -> TrainResult:
    run = phased(**changes)
    return train_run(run, folder, world or World(), progress=Progress(quiet=True), loggers=())


def rewarded_phases(folder: str = "", **group: Any) -> list[Phase]:
    """Pre-training, and reinforcement whose reward is never certain."""
    task = Reasoning(families=("listops",), operations=(1, 1), most_symbols=80)
    settings = {"group_size": 4, "most_ticks": 40, "kl_weight": 0.1, "patience": 50, **group}
    questions = RewardedData(task=task, group=GroupConfig(**settings), folder=folder)
    return [
        replace(phases()[0], tokens=1300),
        Phase(
            name="rl",
            rewarded=questions,
            num_steps=4,
            schedule=ScheduleConfig(warmup_steps=0, final_ratio=1.0),
            reset_optimizer=True,
        ),
    ]


class Lenient:
    """Rewards odd lengths, so that a model without knowledge has something to learn."""

    def __call__(self, item: Item, text: str) -> Verified:
        return Verified(reward=float(len(text) % 2))


def train_rewarded(
    folder: Path, world: World | None = None, *, stop: int = 0, **changes: Any
) -> TrainResult:
    """Train the run of `rewarded_phases`; after step ``stop`` it is stopped from outside."""
    old = Record.step

    def step(self: Record, state: TrainState, numbers: StepNumbers) -> None:
        old(self, state, numbers)
        if state.counters.step == stop:
            raise KeyboardInterrupt

    lenient = patch.object(rewarded, "TimedVerifier", lambda verify, limit_s: Lenient())
    with lenient, patch.object(Record, "step", step):
        return train_phased(folder, world, **{"phases": rewarded_phases(), **changes})


def train_kept_rounds(folder: Path, world: World | None = None, *, stop: int = 0) -> TrainResult:
    """Reinforce with two groups, so that two processes write one each.

    Two steps learn from a round, so it is kept, and all its rewards have one scale. With this seed
    the first round teaches, and the second one does not.
    """
    rounds = rewarded_phases(str(folder / "rounds"), most_ticks=30, num_updates=2, scale="batch")
    train = replace(phased().train, seed=3, batch_rows=8, checkpoint_every=1)
    return train_rewarded(folder, world, stop=stop, phases=rounds, train=train)


def ledger_of(result: TrainResult) -> list[dict[str, Any]]:
    found = read_manifest(result.checkpoint)["ledger"]
    assert isinstance(found, list)
    return found
