"""A small run of three phases over items of tasks, for `test_phases.py` and two processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.plain import PlainText
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.token_deal import MemberWeight
from counterpoint.progress import Progress
from counterpoint.recipes.phased import Phase, phased_run, placed
from counterpoint.recipes.training import train_run
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.checkpoint import read_manifest
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.loop import TrainResult
from counterpoint.train.phases import PhaseSource
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


def ledger_of(result: TrainResult) -> list[dict[str, Any]]:
    found = read_manifest(result.checkpoint)["ledger"]
    assert isinstance(found, list)
    return found
