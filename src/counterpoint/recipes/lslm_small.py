"""A small LSLM that speaks sentences made here, and stops when it hears a keyword."""

from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.systems import lslm
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run


def lslm_small() -> Run:
    """Train an LSLM with middle fusion on Codec2, interrupted by the word "alexa".

    It needs the extras `speech` and `voices`. Real recordings of words and noises are used if
    ``--data.sounds.folder`` names a folder with them.
    """
    return Run(
        name="lslm_small",
        system=lslm.small(),
        # With 2,000 phrases, or without misread frames, it learns phrases by heart and does not
        # read its text (docs/results/lslm.md).
        data=InterruptedSpeech(num_phrases=6000, misread=0.2),
        train=TrainConfig(
            num_steps=6000,
            batch_rows=32,
            evaluate_every=500,
            checkpoint_every=250,
            log_every=10,
            # As published: AdamW without decay, a warm-up, and a cosine. The model is smaller than
            # the published one, so its learning rate is higher than 5e-4.
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=150, final_ratio=0.05),
        ),
        minutes=90.0,
    )
