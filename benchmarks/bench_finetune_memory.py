"""Does the memory that `info` computes for fine-tuning a 7B Moshi hold on a GPU?

The shape of Kyutai's Moshi with random weights, adapters of rank 128, rows of 100 seconds computed
one by one: two steps are trained, and the most memory that was allocated stands beside what
`counterpoint.train.memory` computes.

    python benchmarks/bench_finetune_memory.py --out benchmarks/results/finetune_memory.json
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from record import finish

from counterpoint.blocks.low_rank import FrozenType, LowRankConfig, add_low_rank
from counterpoint.data.speech.rows import SpeechData
from counterpoint.recipes.finetune_moshi import finetune_moshi
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.moshi import MoshiConfig, moshi_7b
from counterpoint.train.config import FineTuneConfig, TrainConfig
from counterpoint.train.loop import Trainer
from counterpoint.train.memory import example_batch, training_memory
from counterpoint.train.run import Run
from counterpoint.train.stop_signal import StopSignal

GB = 1e9
NUM_STEPS = 3


class OneBatch:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batch(self, step: int) -> Batch:
        """See `BatchSource.batch`."""
        return self._batch


def shape() -> MoshiConfig:
    """The published shape with checkpoints of activations."""
    config = moshi_7b()
    return replace(
        config,
        temporal=replace(config.temporal, checkpoint_activations=True),
        depth=replace(config.depth, checkpoint_activations=True),
    )


def measured(train: TrainConfig, adapters: LowRankConfig, batch: Batch) -> dict[str, Any]:
    """Most memory while two steps of one row are trained, and their time."""
    torch.set_default_dtype(torch.bfloat16)  # random weights of 7B in float32 would not fit beside
    with torch.device("cuda"):
        system = build_system(shape(), 0)
    torch.set_default_dtype(torch.float32)
    add_low_rank(system, adapters, seed=0)
    system.to("cuda")
    torch.cuda.empty_cache()
    weights = sum(one.nbytes for one in (*system.parameters(), *system.buffers()))
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(system, OneBatch(batch), train)
    begin = time.perf_counter()
    for _ in range(NUM_STEPS):
        trainer.step(StopSignal())
    torch.cuda.synchronize()
    found = {
        "weights_gb": round(weights / GB, 2),
        "allocated_gb": round(torch.cuda.max_memory_allocated() / GB, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / GB, 2),
        "seconds_a_step": round((time.perf_counter() - begin) / NUM_STEPS, 2),
    }
    del trainer, system
    torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    args = parser.parse_args()
    study = finetune_moshi()
    rows = {}
    kinds: tuple[FrozenType, ...] = ("bfloat16", "int8")
    for frozen in kinds:
        adapters = replace(study.adapters, frozen=frozen)
        train = replace(
            study.train,
            batch_rows=1,
            accumulation=1,
            precision="bfloat16",
            # Nothing is read from the folder: the weights are random.
            fine_tune=FineTuneConfig(init_from="random", low_rank=adapters),
        )
        data = SpeechData(train="", codec="", tokenizer="", row_s=study.row_s)
        run = Run(name="memory", system=shape(), data=data, train=train)
        computed = training_memory(run)
        rows[frozen] = {
            "computed_gb": round(computed.total / GB, 2),
            **measured(train, adapters, example_batch(run)),
        }
        print(frozen, rows[frozen], flush=True)
    finish(
        "Does the computed memory of fine-tuning hold on a GPU?",
        {"frozen": rows, "accelerator": torch.cuda.get_device_name()},
        args.out,
    )


if __name__ == "__main__":
    main()
