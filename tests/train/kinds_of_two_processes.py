"""Runs of two kinds of batches in two processes, for `test_kinds.py`; started by `torchrun`."""

import sys
from pathlib import Path

import torch

from counterpoint.formats.moshi.checkpoint import save_moshi
from counterpoint.systems.moshi import Moshi
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World, process_group, shard
from counterpoint.train.loop import train
from tests.train.tiny_frames import Frames, adapted, model, plan

OPTIMIZERS = {"adamw": {}, "muon": {"muon_lr": 0.01}}


def run(folder: Path, system: Moshi, config: TrainConfig, world: World) -> None:
    loader = Frames(world.rank, world.size)
    assert train(shard(system, world), loader, config, folder).finished


def everything(folder: Path, num_steps: int, world: World) -> None:
    """All weights with AdamW and with Muon, and adapters.

    A loss is a mean weighted by targets, so one process must compute the parts of two.
    """
    for name, optimizer in OPTIMIZERS.items():
        run(folder / name, model(), plan(num_steps, optimizer=optimizer, accumulation=2), world)
    system, config = adapted(folder / "base")
    run(folder / "adapters", system, plan(num_steps, fine_tune=config, accumulation=2), world)


def begin(folder: Path, num_steps: int = 2) -> None:
    """The first steps in one process: of speech, and of text."""
    save_moshi(model(), folder / "base")
    everything(folder, num_steps, World())


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # as in `conftest.py`: sums depend on it
    with process_group("cpu") as world:
        assert world.size == 2
        everything(folder, 4, world)
        everything(folder, 5, world)  # goes on from what two processes wrote


if __name__ == "__main__":
    main(Path(sys.argv[1]))
