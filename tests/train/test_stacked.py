"""Lanes of a stack learn what each would learn alone."""

import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.data.recorded import Recorded, record
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from counterpoint.recipes.part_whole import part_whole
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train import stacked as stacked_module
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.lane_batches import LaneBatches
from counterpoint.train.loop import Trainer
from counterpoint.train.record import StepNumbers
from counterpoint.train.stacked import Stack
from counterpoint.train.stop_signal import StopSignal

NUM_STEPS = 4
ROWS = 2
SEEDS = (0, 1)
ARMS = {arm.name: arm.system for arm in part_whole().arms}
for name in ("two_stream", "hrt_words"):
    config = ARMS[name]
    assert isinstance(config, HRTConfig | TwoStreamConfig)
    ARMS[f"{name}_with_room"] = replace(config, graph_blocks=24)
PLAIN = ARMS["two_stream_fixed"]
assert isinstance(PLAIN, TwoStreamConfig)
ARMS["two_stream_with_options"] = replace(
    PLAIN,
    compressor="attention",
    slots_apart=True,
    code_levels=(5, 5),
    recall=RecallConfig(),
    text=NotesConfig(depth=4, padding_id=0),
)


FAST = ("full", "two_stream", "hrt", "hdlm", "two_stream_with_options")
"""Arms that are tried by default; `test_stacked_systems.py` has tiny models of all systems."""

LANE_TASKS = (TASKS["hierarchy"], Logbook(num_events=9))


def lane_config(seed: int) -> TrainConfig:
    """Lanes differ in seed, learning rate, warm-up, schedule and number of steps."""
    return TrainConfig(
        num_steps=NUM_STEPS - seed,
        batch_rows=ROWS,
        seed=seed,
        precision="float32",
        optimizer=OptimizerConfig(lr=1e-3 * (seed + 1)),
        schedule=ScheduleConfig(kind="wsd" if seed else "cosine", warmup_steps=2 - seed),
    )


def lane_batches(system: System, seed: int) -> Recorded:
    """Lanes also differ in task, and so in the number of ticks."""
    prepared = TaskData(task=LANE_TASKS[seed], seed=seed).prepare(system)
    return record(prepared.batches(ROWS, seed), NUM_STEPS - seed)


@pytest.mark.parametrize(
    "arm", [arm if arm in FAST else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS]
)
def test_a_lane_learns_what_it_learns_alone(arm: str) -> None:
    systems = [build_system(ARMS[arm], seed) for seed in SEEDS]
    sources = [lane_batches(system, seed) for system, seed in zip(systems, SEEDS, strict=True)]
    assert sources[0].num_ticks != sources[1].num_ticks
    configs = [lane_config(seed) for seed in SEEDS]
    stack = Stack(systems, configs)
    curves: list[list[float]] = []
    stack.train(sources, lambda step, bits: curves.append(bits))
    assert stack.finish() == [True, True]
    for lane, seed in enumerate(SEEDS):
        alone = build_system(ARMS[arm], seed)
        alone.train()
        trainer = Trainer(alone, sources[lane], configs[lane])
        losses = [part_bits(trainer.step(StopSignal())) for _ in range(NUM_STEPS - lane)]
        own = [bits[lane] for bits in curves[: len(losses)]]
        assert own == pytest.approx(losses, rel=1e-6, abs=1e-5)
        for name, weight in alone.named_parameters():
            found = systems[lane].get_parameter(name)
            near = torch.isclose(found, weight, rtol=1e-3, atol=1e-5)
            # Adam makes whole steps of gradients that are nothing but rounding.
            assert near.float().mean() > 0.999, name


def part_bits(step: StepNumbers) -> float:
    """The loss without the labels that some arms learn too."""
    nats = step.terms.get("part_nats")
    return step.loss if nats is None else nats / math.log(2)


def test_a_stack_multiplies_in_tf32_on_a_gpu_and_only_in_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The setting belongs to the whole process, so it is as before after every step."""
    found: list[str] = []

    def loss(system: System, batch: Batch) -> tuple[Tensor, Tensor]:
        found.append(torch.get_float32_matmul_precision())
        return own_loss(system, batch)

    own_loss = stacked_module._loss
    monkeypatch.setattr(stacked_module, "_loss", loss)
    system = build_system(ARMS["window"], 0)
    stack = Stack([system], [lane_config(0)])
    with closing(LaneBatches([lane_batches(system, 0)], stack.device)) as batches:
        batches.load(0)
        for device in ("cpu", "cuda"):
            stack.device = torch.device(device)  # what it asks for; the tensors stay on the CPU
            stack.step(batches.content, stack._numbers[0])
            assert torch.get_float32_matmul_precision() == "highest"
    assert found == ["highest", "high"]


def test_recorded_batches_are_those_of_the_source() -> None:
    system = build_system(ARMS["window"], 0)
    source = TaskData(task=TASKS["hierarchy"]).prepare(system).batches(ROWS, 0)
    kept = record(source, NUM_STEPS)
    for step in range(NUM_STEPS):
        batch = source.batch(step)
        assert torch.equal(kept.batch(step).ticks["part"], batch.ticks["part"])
        assert torch.equal(kept.batch(step).targets["part"], batch.targets["part"])
        assert kept.batch(step).size == batch.size
    with pytest.raises(UserError, match="recorded"):
        kept.batch(NUM_STEPS)


def test_batches_that_follow_others_keep_their_own_lengths() -> None:
    class Growing:
        def batch(self, step: int) -> Batch:
            ids = torch.full((2, 3 + step), step)
            start = torch.zeros_like(ids)
            return Batch(
                ticks={"part": ids}, targets={"part": ids}, document_start=start, size=step
            )

    kept = record(Growing(), 4)
    for step, batch in enumerate(map(kept.after(2).batch, range(2)), 2):
        assert batch.size == step
        assert torch.equal(batch.ticks["part"], Growing().batch(step).ticks["part"])
    with pytest.raises(UserError, match="recorded"):
        kept.after(2).batch(2)


def test_lanes_must_be_alike() -> None:
    systems = [build_system(ARMS["window"], seed) for seed in SEEDS]
    configs = [lane_config(seed) for seed in SEEDS]
    with pytest.raises(UserError, match="batch_rows"):
        Stack(systems, [configs[0], replace(configs[1], batch_rows=9)])
    longer = replace(configs[0], num_steps=9)
    with pytest.raises(UserError, match="9 steps"):
        Stack(systems[:1], [longer]).train([lane_batches(systems[0], 0)])
    with pytest.raises(UserError, match="system"):
        Stack([systems[0], build_system(ARMS["full"], 0)], configs)
    muon = replace(configs[0], optimizer=OptimizerConfig(muon_lr=0.02))
    with pytest.raises(UserError, match="AdamW"):
        Stack(systems, [muon, muon])
    with pytest.raises(UserError, match="config"):
        Stack([], [])
