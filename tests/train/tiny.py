"""A small system with noise inside, its data, and runs of it, in this process or another."""

import json
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterpoint.blocks.loss_sums import LossSums, stream_loss
from counterpoint.config_json import decode
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Logits, System, SystemConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.distributed import process_group, shard
from counterpoint.train.loop import TrainResult, train

VOCAB = 17
ROWS = 4
TICKS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyConfig(SystemConfig):
    width: int = 8
    num_layers: int = 2
    dropout: float = 0.2


class Noisy(System):
    """Bigrams through residual layers with dropout: each step consumes random numbers.

    It is only trained: it neither reads nor writes live.
    """

    Config = NoisyConfig
    layout = Layout(
        streams=(Stream(name="part", role=Role.PART, vocab_size=VOCAB, predicted=True),)
    )
    window_ticks = 1

    def __init__(self, config: NoisyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCAB, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(config.width, config.width), nn.GELU())
            for _ in range(config.num_layers)
        )
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(config.width, VOCAB, bias=False)

    def _hidden(self, batch: Batch) -> Tensor:
        x: Tensor = self.embedding(batch.ticks["part"])
        for layer in self.layers:
            x = x + F.dropout(layer(x), self.config.dropout, self.training)
        return x

    def forward(self, batch: Batch) -> Logits:
        return {"part": self.head(self._hidden(batch) * self.scale)}

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        x = self._hidden(batch)
        part = stream_loss(self.head(x * self.scale), batch.targets["part"])
        size = x.square().mean()
        nothing = torch.zeros_like(size)
        ticks = part.weight
        return {"part": part, "size": LossSums(ticks, nothing, size * ticks, ticks)}

    def loss_factor(self, group: str) -> float:
        return 0.01 if group == "size" else 1.0

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def initial_state(self, batch_size: int) -> Tensor:
        raise AssertionError("only trained")

    def read(self, ticks: Ticks, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        raise AssertionError("only trained")

    def write(self, hidden: Tensor, choose: Any, state: Any = None) -> dict[str, Tensor]:
        raise AssertionError("only trained")

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        return 100.0 * (3 if training else 1)

    def shard_units(self) -> list[nn.Module]:
        return list(self.layers)


class Letters:
    """Batches of a noisy cycle, each a pure function of the step."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, delay: float = 0.0, broken_step: int = -1
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.delay = delay
        self.broken_step = broken_step

    def batch(self, step: int) -> Batch:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(step)
        jumps = torch.randint(1, 3, (ROWS, TICKS + 1), generator=generator)
        ids = (jumps.cumsum(1) % VOCAB).chunk(self.world_size)[self.rank]
        targets = ids[:, 1:]
        if step == self.broken_step:
            targets = torch.full_like(targets, VOCAB)  # out of range: see `Poisoned`
        return Batch(
            ticks={"part": ids[:, :-1]},
            targets={"part": targets},
            document_start=torch.zeros_like(targets),
            size=targets.numel(),
        )


def build(width: int = 8, dropout: float = 0.2) -> Noisy:
    torch.manual_seed(0)
    return Noisy(NoisyConfig(width=width, dropout=dropout))


def settings(num_steps: int = 8, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_rows": ROWS,
        "checkpoint_every": 3,
        "precision": "float32",
        "evaluate_every": 2,
        "optimizer": OptimizerConfig(lr=1e-2),
        "schedule": ScheduleConfig(warmup_steps=2),
        **changes,
    }
    return TrainConfig(**values)


def measure(system: nn.Module) -> dict[str, float]:
    """An evaluation that consumes random numbers, which must not change the training."""
    torch.rand(7)
    assert isinstance(system, Noisy)
    with torch.no_grad():
        batch = Letters().batch(10_000)
        return {"nats": float(system.loss(batch).nats)}


def run_here(folder: Path, config: TrainConfig, **changes: Any) -> TrainResult:
    values: dict[str, Any] = {"evaluate": measure, **changes}
    width = values.pop("width", 8)
    return train(build(width), values.pop("loader", Letters()), config, folder, **values)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Lines of the metrics, without the one thing that no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") > 0
    return lines


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main(folder: str, width: str, dropout: str, config: str, delay: str) -> None:
    """Train in a process of its own, under `torchrun` or not."""
    torch.set_num_threads(1)  # as in `conftest.py`: sums depend on it
    with process_group("cpu") as world:
        system = shard(build(int(width), float(dropout)), world)
        loader = Letters(world.rank, world.size, delay=float(delay))
        result = train(system, loader, decode(TrainConfig, json.loads(config)), Path(folder))
    if world.is_first:
        sys.stdout.write(json.dumps({"finished": result.finished}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
