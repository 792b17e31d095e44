"""Reinforcement as a run: a model that has learned something learns from its own solutions."""

import copy

from counterpoint.data.source import BatchSource
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.runtime.rollouts import roll_out
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.config import FineTuneConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.phases import PhasedBatches
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.rollout_source import RolloutSource
from counterpoint.train.run import Run


def connected(source: BatchSource, system: System, world: World) -> BatchSource:
    """Return a source that can let the model write, if its batches are what the model writes.

    Training knows no sessions, so the function that runs them is handed to the source here.

    Args:
        source: The batches.
        system: The model before it is sharded, of which each of several processes needs a whole
            copy to write with.
        world: The processes.
    """
    parts = source.parts if isinstance(source, PhasedBatches) else [source]
    writing = [part for part in parts if isinstance(part, RolloutSource)]
    writer = copy.deepcopy(system).requires_grad_(False) if writing and world.size > 1 else None
    for part in writing:
        part.roll_out = roll_out
        part.writer = writer
    return source


def reinforce_run(
    name: str,
    system: SystemConfig,
    init_from: str,
    data: RewardedData | None = None,
    *,
    num_steps: int = 100,
    questions: int = 8,
    lr: float = 1e-4,
    seed: int = 0,
) -> Run:
    """Return a run that reinforces a trained model; `train_run` trains it.

    Args:
        name: Name of the run.
        system: Config of the model.
        init_from: Run folder or checkpoint with whose weights it begins.
        data: Questions and rewards.
        num_steps: Number of steps.
        questions: Number of questions of a step.
        lr: Learning rate, constant after ten steps of warm-up.
        seed: Seed of the solutions.
    """
    data = data or RewardedData(task=Reasoning())
    return Run(
        name=name,
        system=system,
        data=data,
        train=TrainConfig(
            num_steps=num_steps,
            batch_rows=questions * data.group.group_size,
            seed=seed,
            precision="float32",
            optimizer=OptimizerConfig(lr=lr, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=10, final_ratio=1.0),
            fine_tune=FineTuneConfig(init_from=init_from),
        ),
    )
