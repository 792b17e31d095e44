"""Fine-tuning a published Moshi, or a PersonaPlex, on your own recordings."""

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.recipes.fine_tuning import FineTuning
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


def finetune_moshi() -> FineTuning:
    """Fine-tune a published Moshi or PersonaPlex on your own recordings, with adapters.

    Adapters of rank 128 over frozen bfloat16 weights, at the rates of Kyutai's moshi-finetune.

    ``counterpoint train finetune_moshi --base FOLDER --data FOLDER``. Rows are computed one by one,
    so that a model of 7B fits a GPU of 80 GB; with ``--adapters.frozen int8`` it fits 24 GB.
    """
    return FineTuning(
        name="finetune_moshi",
        adapters=LowRankConfig(rank=128, scaling=2.0, frozen="bfloat16"),
        train=TrainConfig(
            num_steps=2000,
            batch_rows=16,
            accumulation=16,
            evaluate_every=100,
            checkpoint_every=100,
            optimizer=OptimizerConfig(lr=2e-6, weight_decay=0.1),
            schedule=ScheduleConfig(warmup_steps=100, final_ratio=0.0),
        ),
    )
