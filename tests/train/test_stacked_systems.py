"""Lanes of every kind of system learn what they learn alone, from batches of unlike lengths."""

import copy
from dataclasses import replace

import pytest
import torch

from counterpoint.data.recorded import Recorded, record
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.loop import Trainer
from counterpoint.train.stacked import Stack
from counterpoint.train.stop_signal import StopSignal
from tests.systems.contract_models import batch_of, build, random_ticks

ROWS = 2
LENGTHS = ((24, 36, 12), (12, 24))
"""Ticks of the steps of each lane."""
MODELS = (
    ("shanks", "features"),
    ("shanks", "parallel"),
    ("lslm", "middle"),
    ("moshi", "late_text"),
    ("hnet", "two_stages"),
    ("hrt", "learned"),
    ("two_stream", "learned"),
    ("single_stream", "multi_token"),
)


class Drawn:
    """Random batches of given lengths; a `BatchSource`."""

    def __init__(self, model: System, lengths: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        ticks = [random_ticks(model, ROWS, length) for length in lengths]
        self.batches = [batch_of(model, one) for one in ticks]

    def batch(self, step: int) -> Batch:
        return self.batches[step]


def config(lane: int) -> TrainConfig:
    return TrainConfig(
        num_steps=len(LENGTHS[lane]),
        batch_rows=ROWS,
        precision="float32",
        optimizer=OptimizerConfig(lr=1e-3 * (lane + 1)),
    )


@pytest.mark.parametrize(("system", "name"), MODELS)
def test_lanes_learn_what_they_learn_alone(system: str, name: str) -> None:
    models = [build(system, name) for _ in LENGTHS]
    if hasattr(models[0].config, "whole_dropout"):  # noise of a stack is its own
        quiet = replace(models[0].config, whole_dropout=0.0)
        models = [build_system(quiet, seed) for seed in range(len(LENGTHS))]
    sources = [
        Drawn(model, lengths, lane)
        for lane, (model, lengths) in enumerate(zip(models, LENGTHS, strict=True))
    ]
    recorded = [
        record(source, len(lengths)) for source, lengths in zip(sources, LENGTHS, strict=True)
    ]
    alone = [copy.deepcopy(model).train() for model in models]
    curves: list[list[float]] = []
    stack = Stack(models, [config(lane) for lane in range(len(models))])
    stack.train(recorded, lambda step, bits: curves.append(bits))
    assert stack.finish() == [True, True]
    for lane, model in enumerate(alone):
        trainer = Trainer(model, sources[lane], config(lane))
        steps = [trainer.step(StopSignal()) for _ in LENGTHS[lane]]
        found = [bits[lane] for bits in curves[: len(steps)]]
        assert found == pytest.approx([step.loss for step in steps], rel=2e-6)
        changed = [
            (own - stacked).abs().max() < 2e-5
            for own, stacked in zip(model.parameters(), models[lane].parameters(), strict=True)
        ]
        assert sum(changed) >= 0.9 * len(changed)  # Adam moves weights whose gradient is rounding


def test_recorded_batches_have_their_own_lengths_and_features_may_be_halved() -> None:
    model = build("shanks", "features")
    source = Drawn(model, LENGTHS[0], 0)
    whole: Recorded = record(source, 3)
    half = record(source, 3, half_features=True)
    for step, length in enumerate(LENGTHS[0]):
        batch = whole.batch(step)
        assert batch.document_start.shape == (ROWS, length)
        for name, ticks in source.batch(step).ticks.items():
            assert torch.equal(batch.ticks[name], ticks)
            torch.testing.assert_close(half.batch(step).ticks[name], ticks, rtol=1e-3, atol=1e-3)
    stored = [ticks.dtype for ticks in half.ticks.values()]
    assert torch.float16 in stored
    assert torch.int16 in stored
