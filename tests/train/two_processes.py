"""Runs of two processes, for `test_distributed.py`; started by `torchrun`."""

import io
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.progress import Progress
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.moshi import Moshi, MoshiConfig, two_speakers
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from counterpoint.train.config import ScheduleConfig, TrainConfig
from counterpoint.train.distributed import World, process_group, shard
from counterpoint.train.loop import train
from counterpoint.train.reporter import RunReporter
from tests.train.phased import train_kept_rounds, train_phased
from tests.train.tiny import ROWS, VOCAB, Letters, build, settings


def plan(num_steps: int, accumulation: int = 1) -> TrainConfig:
    """A constant rate, so that runs of different lengths have the same steps."""
    constant = ScheduleConfig(kind="wsd", warmup_steps=0, final_ratio=1.0)
    return settings(num_steps, schedule=constant, evaluate_every=0, accumulation=accumulation)


def bigrams() -> nn.Module:
    return build()


def transformer() -> nn.Module:
    torch.manual_seed(0)
    tower = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=8)
    return SingleStream(SingleStreamConfig(tower=tower, vocab_size=VOCAB))


def part_and_whole() -> nn.Module:
    torch.manual_seed(0)
    part = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=8)
    whole = TowerConfig(width=24, num_layers=1, num_heads=2, mlp_hidden=32, window=4)
    config = TwoStreamConfig(
        part=part,
        whole=whole,
        lower_layers=1,
        block_ticks=4,
        whole_dropout=0.5,
        vocab_size=VOCAB,
    )
    return TwoStream(config)


def shared_levels() -> nn.Module:
    """One stack of layers is called twice a step, over rows of different lengths."""
    torch.manual_seed(0)
    tower = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=8)
    config = TwoStreamConfig(
        part=tower,
        whole=tower,
        lower_layers=1,
        block_ticks=4,
        whole_dropout=0.0,
        shared_layers=True,
        vocab_size=VOCAB,
    )
    return TwoStream(config)


def moshi() -> nn.Module:
    torch.manual_seed(0)
    config = MoshiConfig(
        temporal=TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=8),
        depth=DepthConfig(width=12, num_layers=2, num_heads=2, mlp_hidden=16),
        audio=two_speakers(2),
        num_predicted=6,
        text_vocab_size=VOCAB,
        audio_vocab_size=VOCAB,
    )
    return Moshi(config)


class Frames:
    """Batches of a Moshi's frames, each a pure function of the step."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.model = moshi()

    def batch(self, step: int) -> Batch:
        assert isinstance(self.model, Moshi)
        generator = torch.Generator().manual_seed(step)
        codes = {
            stream.name: torch.randint(VOCAB, shape, generator=generator)
            for stream in self.model.layout.streams
            for shape in [(ROWS, 10) if stream.name == "text" else (ROWS, 10, stream.depth)]
        }
        # Rows are unlike: some have less to learn, and what they have weighs less.
        codes["text"][: ROWS // 2, 2:] = self.model.config.text_padding_id
        codes["agent_semantic"][: ROWS // 2, 4:] = UNSET_ID
        mine = {name: ids.chunk(self.world_size)[self.rank] for name, ids in codes.items()}
        return self.model.lay_out(mine)


def run(folder: Path, system: nn.Module, config: TrainConfig, world: World | None = None) -> None:
    world = world or World()
    loader = (Frames if isinstance(system, Moshi) else Letters)(world.rank, world.size)
    screen = io.StringIO()
    reporter = RunReporter(Progress(screen), "two")
    result = train(shard(system, world), loader, config, folder, reporter=reporter)
    assert result.finished
    if world.is_first:
        (folder / "screen.txt").write_text(screen.getvalue())


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # as in `conftest.py`: sums depend on it
    with process_group("cpu") as world:
        assert world.size == 2
        run(folder / "bigrams", bigrams(), plan(4, accumulation=2), world)
        run(folder / "begun_by_one", bigrams(), plan(5, accumulation=2), world)
        run(folder / "transformer", transformer(), plan(4), world)
        run(folder / "part_and_whole", part_and_whole(), plan(4, accumulation=2), world)
        run(folder / "shared_levels", shared_levels(), plan(4, accumulation=2), world)
        run(folder / "moshi", moshi(), plan(4, accumulation=2), world)
        train_phased(folder / "phased", world)
        whole = train_kept_rounds(folder / "rewarded", world)
        with suppress(KeyboardInterrupt):  # goes on between two steps that learn from one round
            train_kept_rounds(folder / "stopped", world, stop=whole.counters.step - 2)
        train_kept_rounds(folder / "stopped", world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
