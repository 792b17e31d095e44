"""SHANKS on spoken maths that sounds: from log-mels to the interruption of a speaker."""

from dataclasses import replace
from typing import cast

from counterpoint.data.tasks.spoken_maths.bank import BankConfig
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.run import Run


def shanks_small_sound() -> Run:
    """Train a SHANKS that hears spoken maths as sound, and interrupts who is wrong.

    Problems are joined from words that the voices of the extra `voices` speak, once; ``evaluate``
    lets a voice speak that training never hears. ``--train.fine-tune.init-from runs/shanks_small``
    begins with a model of words, of which only the ears are new.
    """
    bank = BankConfig(overlap_frames=6, transcribed=True)
    run = spoken_maths_run("interleaved", bank=bank)
    data = cast("SpokenMathsData", run.data)
    return replace(
        run,
        name="shanks_small_sound",
        # One or two problems fit into a row; the attention of longer ones costs more than it saves.
        data=replace(data, row_ticks=704),
        train=replace(run.train, num_steps=5000, batch_rows=4, fine_tune=FineTuneConfig()),
        minutes=60.0,
    )
