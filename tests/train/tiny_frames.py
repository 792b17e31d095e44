"""A tiny Moshi and its batches, of speech and of text alone."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.streams.batch import Batch
from counterpoint.systems.moshi import Moshi
from counterpoint.train.config import FineTuneConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.fine_tuning import begin_from
from counterpoint.train.loop import train
from tests.systems.tiny_moshi import CONFIGS, build, random_codes

ROWS, TICKS = 2, 6
LOW_RANK = LowRankConfig(rank=2, scaling=1.5)


def model() -> Moshi:
    torch.manual_seed(0)
    return build("both_speakers")


class Frames:
    """Random frames, or text alone at every third step (where ``text`` says so)."""

    def __init__(self, rank: int = 0, world_size: int = 1, text: str | None = "text") -> None:
        self.rank, self.world_size, self.text = rank, world_size, text
        with torch.device("meta"):
            self.layout = Moshi(CONFIGS["both_speakers"])
        self.layout.to_empty(device="cpu")

    def batch(self, step: int) -> Batch:
        with torch.random.fork_rng():
            torch.manual_seed(step)
            codes = random_codes(self.layout, ROWS, TICKS)
        own = {name: ids.chunk(self.world_size)[self.rank] for name, ids in codes.items()}
        if self.text is None or step % 3 != 1:
            return self.layout.lay_out(own)
        return replace(self.layout.lay_out({"text": own["text"]}), kind=self.text)


def plan(num_steps: int, **changes: Any) -> TrainConfig:
    """A constant rate, so that runs of different lengths have the same steps."""
    optimizer = changes.pop("optimizer", {})
    values: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_rows": ROWS,
        "precision": "float32",
        "optimizer": OptimizerConfig(
            **{"lr": 1e-2, "kind_lr_factors": (("text", 0.5),), **optimizer}
        ),
        "schedule": ScheduleConfig(kind="wsd", warmup_steps=0, final_ratio=1.0),
        **changes,
    }
    return TrainConfig(**values)


def adapted(folder: Path) -> tuple[Moshi, FineTuneConfig]:
    """A new model that begins with the weights of a folder, and has adapters."""
    config = FineTuneConfig(init_from=str(folder), low_rank=LOW_RANK)
    torch.manual_seed(9)
    system = Moshi(CONFIGS["both_speakers"])
    begin_from(system, config, seed=0)
    return system, config


def main(published: Path, folder: Path) -> None:
    """Train adapters with a compiled loss."""
    torch.set_num_threads(1)  # as in `conftest.py`: sums depend on it
    system, config = adapted(published)
    train(system, Frames(), plan(3, fine_tune=config, compile=True), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
