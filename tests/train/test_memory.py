"""Estimates beside what a real step on the same shapes allocates."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from counterpoint.blocks.low_rank import LowRankConfig, add_low_rank
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.speech.text_rows import TextBatches
from counterpoint.recipes.first_run import first_run
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.systems.moshi import MoshiConfig, moshi_7b, tiny
from counterpoint.train.config import FineTuneConfig, OptimizerConfig, TrainConfig
from counterpoint.train.memory import TrainingMemory, example_batch, training_memory
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.run import Run

INT8 = LowRankConfig(rank=4, frozen="int8")


def with_checkpoints(config: MoshiConfig) -> MoshiConfig:
    return replace(
        config,
        temporal=replace(config.temporal, checkpoint_activations=True),
        depth=replace(config.depth, checkpoint_activations=True),
    )


def speaking(
    config: MoshiConfig | None = None, low_rank: LowRankConfig | None = None, **changes: Any
) -> Run:
    fine_tune = FineTuneConfig(init_from="base", low_rank=low_rank)
    train = TrainConfig(
        num_steps=1, batch_rows=4, accumulation=2, precision="float32", fine_tune=fine_tune
    )
    return Run(
        name="speaking",
        system=config or tiny(),
        data=SpeechData(train="list.jsonl", row_s=4.0),
        train=replace(train, **changes),
    )


RUNS = {
    "full": speaking(),
    "muon": speaking(optimizer=OptimizerConfig(muon_lr=0.01)),
    "adapters": speaking(low_rank=LowRankConfig(rank=4)),
    "bfloat16": speaking(low_rank=LowRankConfig(rank=4, frozen="bfloat16"), precision="bfloat16"),
    "int8": speaking(low_rank=INT8, precision="bfloat16"),
    "checkpoints": speaking(with_checkpoints(tiny()), low_rank=INT8, precision="bfloat16"),
}


def text() -> Run:
    arm = first_run().arms[0]
    return replace(arm, train=replace(arm.train, precision="float32"))


def measured(run: Run) -> tuple[TrainingMemory, int]:
    """What a real step has, and all bytes that a forward pass leaves allocated."""
    system: System = build_system(run.system, seed=0)
    fine_tune = run.train.fine_tune
    if fine_tune is not None and fine_tune.low_rank is not None:
        add_low_rank(system, fine_tune.low_rank, seed=0)
    batch = example_batch(run)
    half = batch.document_start.shape[1] // 2
    batch.document_start[:, half:] = half  # rows of several documents, which is the general case
    kept: dict[int, int] = {}
    own = {t.untyped_storage()._cdata for t in (*system.parameters(), *system.buffers())}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            alive.append(tensor)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    bfloat16 = run.train.precision == "bfloat16"
    with (
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiled,
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = system.combine(system.losses(batch)).total
    left = sum(event.self_cpu_memory_usage for event in profiled.events())
    loss.backward()
    optimizers = KindOptimizers(system, run.train.optimizer)
    optimizers.for_kind("").step()
    gradients = [p.grad for p in system.parameters() if p.grad is not None]
    found = TrainingMemory(
        weights=sum(t.nbytes for t in (*system.parameters(), *system.buffers())),
        gradients=sum(gradient.nbytes for gradient in gradients),
        optimizer=sum(t.nbytes for n, t in optimizers.named_state().items() if t.ndim),
        activations=sum(kept.values()),
    )
    return found, left


@pytest.mark.parametrize("name", [*RUNS, "text"])
def test_estimate_is_what_a_step_has(name: str) -> None:
    run = text() if name == "text" else RUNS[name]
    found, left = measured(run)
    estimate = training_memory(run)
    assert estimate.weights == found.weights
    assert estimate.gradients == pytest.approx(found.gradients, rel=0.001)
    assert estimate.optimizer == pytest.approx(found.optimizer, rel=0.001)
    assert estimate.activations is not None
    assert found.activations is not None
    if name != "checkpoints":
        assert estimate.activations == pytest.approx(found.activations, rel=0.001)
        assert estimate.activations == pytest.approx(left, rel=0.15)
    else:  # one layer is computed again
        plain = training_memory(RUNS["int8"]).activations or 0
        assert found.activations < estimate.activations < plain


def test_batches_of_text_have_moments_of_their_own() -> None:
    run = RUNS["full"]
    data = replace(run.speech_data, text=TextBatches(share=0.1))
    assert training_memory(replace(run, data=data)).optimizer == 2 * training_memory(run).optimizer


def test_blocks_that_end_by_their_content_are_not_guessed() -> None:
    found = training_memory(first_run().arms[1])
    assert found.activations is None
    assert found.total == found.weights + found.gradients + found.optimizer


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "most"), [("bfloat16", 80e9), ("int8", 24e9)])
def test_adapters_of_moshi_7b_fit_a_gpu(frozen: Any, most: float) -> None:
    run = speaking(
        with_checkpoints(moshi_7b()),
        LowRankConfig(frozen=frozen),
        precision="bfloat16",
        batch_rows=16,
        accumulation=16,
    )
    run = replace(run, data=replace(run.speech_data, row_s=100.0))
    found = training_memory(run)
    assert found.activations is not None
    assert found.total < 0.75 * most
    without = replace(run, system=moshi_7b())
    assert (training_memory(without).activations or 0) > 5 * found.activations
