"""A model that changes while it is trained is the same however often the training is stopped."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from counterpoint.blocks.loss_sums import Losses
from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import mean_training_flops
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.loop import TrainResult, train
from counterpoint.train.stacked import Stack
from tests.train.tiny import ROWS, TICKS, VOCAB, Letters, rows, settings, states_equal

STEPS = 8
RAMP = RampConfig(start_ticks=1, share=0.75)
LONGEST = [1, 1, 1, 2, 2, 2, 4, 4]
"""Ticks of the longest block in every step."""


def config(ramp: RampConfig) -> TwoStreamConfig:
    return TwoStreamConfig(
        part=TowerConfig(width=8, num_layers=2, num_heads=2, mlp_hidden=12, window=4),
        whole=TowerConfig(width=8, num_layers=1, num_heads=2, mlp_hidden=12, window=8),
        lower_layers=1,
        block_ticks=4,
        whole_dropout=0.3,
        vocab_size=VOCAB,
        ramp=ramp,
    )


class Watched(Letters):
    """Notes the lengths of blocks when the batch of a step is read; may raise a signal in one."""

    def __init__(self, stops: int | None = None) -> None:
        super().__init__()
        self.stops = stops
        self.longest: list[int] = []
        self.model: Any = None

    def attach(self, model: nn.Module) -> None:
        self.model = model

    def batch(self, step: int) -> Batch:
        self.longest.append(self.model.step_lengths.longest)
        if step == self.stops:
            signal.raise_signal(signal.SIGTERM)
        return super().batch(step)


class Rewarding(Watched):
    """Data with a loss of their own."""

    @property
    def objective(self) -> "Rewarding":
        return self

    def losses(self, batch: Batch) -> Losses:
        found: Losses = self.model.losses(batch)
        return found

    def loss_weights(self, batch: Batch) -> Any:
        return self.model.loss_weights(batch)

    def combine(self, losses: Losses, weights: Any = None) -> Any:
        return self.model.combine(losses, weights)

    def flops_per_tick(self, num_ticks: int, **options: Any) -> Any:
        return self.model.flops_per_tick(num_ticks, **options)


def learn(folder: Path, ramp: RampConfig, loader: Watched | None = None) -> TrainResult:
    system = build_system(config(ramp), 0)
    assert isinstance(system, TwoStream)
    told = settings(STEPS, accumulation=2, evaluate_every=0)
    return train(system, loader or Watched(), told, folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    loader = Watched()
    assert learn(folder, RAMP, loader).finished
    assert loader.longest == LONGEST
    return folder


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_that_is_stopped_in_a_ramp_goes_on_bit_for_bit(
    step: int, tmp_path: Path, straight: Path
) -> None:
    """In the middle of a stage, and in the last steps of two of them."""
    assert not learn(tmp_path, RAMP, Watched(step)).finished
    loader = Watched()
    assert learn(tmp_path, RAMP, loader).finished
    assert loader.longest == LONGEST[step + 1 :]
    assert rows(tmp_path) == rows(straight)
    assert states_equal(load_weights(tmp_path), load_weights(straight))


@pytest.mark.parametrize("ramp", [RampConfig(start_ticks=4), replace(RAMP, share=0.01)])
def test_a_ramp_that_ends_at_once_is_none(ramp: RampConfig, tmp_path: Path, straight: Path) -> None:
    learn(tmp_path / "none", RampConfig())
    learn(tmp_path / "short", ramp)
    assert rows(tmp_path / "short") == rows(tmp_path / "none") != rows(straight)
    ours, theirs = (load_weights(tmp_path / name) for name in ("short", "none"))
    assert states_equal(ours, theirs)
    assert not states_equal(ours, load_weights(straight))


def test_a_run_counts_the_flops_of_every_stage(straight: Path) -> None:
    system = build_system(config(RAMP), 0)
    total = rows(straight)[-1]["flops"]
    ticks = STEPS * ROWS * TICKS
    assert total == pytest.approx(ticks * mean_training_flops(system, TICKS, STEPS))
    assert total > 1.2 * ticks * system.flops_per_tick(TICKS, training=True)


def test_a_loss_of_the_data_is_that_of_the_finished_model(tmp_path: Path) -> None:
    loader = Rewarding()
    learn(tmp_path, RAMP, loader)
    assert loader.longest == [4] * STEPS


def test_a_stack_refuses_a_ramp() -> None:
    systems = [build_system(config(RAMP), seed) for seed in (0, 1)]
    with pytest.raises(UserError, match="trains in 3 stages, such as those of a `ramp`") as error:
        Stack(systems, [settings(STEPS)] * 2)
    assert "\n" not in str(error.value)
    at_once = [build_system(config(replace(RAMP, share=0.01)), seed) for seed in (0, 1)]
    Stack(at_once, [settings(STEPS)] * 2)
