"""SHANKS on spoken maths: does thinking while listening find the errors of a speaker?

Runs from the same problems: thoughts interleaved with what is heard, the same without thoughts, and
thoughts in parallel to what is heard.
"""

from dataclasses import replace
from pathlib import Path

from counterpoint.data.tasks.spoken_maths.bank import VOICES, BankConfig, read_bank
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import Arrangement, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import Style
from counterpoint.systems import shanks
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run


def shanks_small() -> Run:
    """Train a SHANKS that thinks while it hears spoken maths, and interrupts who is wrong.

    ``--data.arrangement silent`` trains the baseline that only decides whether to interrupt, and
    the recipe `shanks_small_parallel` has thoughts in a stream of their own. ``counterpoint
    evaluate`` says how many of the wrong speakers the model finds.
    """
    return replace(spoken_maths_run("interleaved"), name="shanks_small")


def spoken_maths_run(
    arrangement: Arrangement,
    style: Style = "recalled",
    bank: BankConfig | str = "",
) -> Run:
    """Return the run of an arrangement; benchmarks/shanks_stacks.py trains several as one stack.

    Args:
        arrangement: What a row looks like; see `SpokenMathsData`.
        style: How thoughts are written; see `counterpoint.data.tasks.spoken_maths.thoughts`.
        bank: Words that are spoken, or their file, for a model that hears sound; the third voice,
            or the last of fewer, says held-out problems only. Empty for words without sound.
    """
    sounds = bool(bank)
    is_parallel = arrangement == "parallel"
    words = shanks.small_parallel() if is_parallel else shanks.small()
    file = bank if isinstance(bank, str) else bank.file
    voices = [*read_bank(Path(file)).takes] if file else [voice.label for voice in VOICES]
    return Run(
        name=f"{'sound' if sounds else arrangement}-{style}",
        system=shanks.small_sound() if sounds else words,
        data=SpokenMathsData(
            task=SpokenMaths(style=style),
            arrangement=arrangement,
            row_ticks=576 if is_parallel or sounds else 320,
            num_rows=1_000_000,
            bank=bank,
            held_out_voice=voices[:3][-1] if sounds else "",
        ),
        train=TrainConfig(
            num_steps=2200,
            batch_rows=8,
            precision="float32",
            checkpoint_every=200,
            log_every=20,
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=100, final_ratio=0.02),
        ),
    )
