"""The first run: does an explicit whole pay off at equal training FLOPs, on text, on a laptop?"""

from counterpoint.data.text.corpus import DataConfig
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.recipes.study import Study
from counterpoint.systems import single_stream, two_stream
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run


def first_run() -> Study:
    """Train single_stream and two_stream on the King James Bible and compare them: five minutes.

    Eight books are held out.

    Both get the same rows in the same order and equal training FLOPs a byte. It takes about five
    minutes on any machine: a slow machine takes as many of the 1,100 steps as fit.
    """
    return Study(
        name="first_run",
        purpose=(
            "A single-stream and a two-stream language model of bytes learn from the same rows of "
            "text in the same order, with equal training FLOPs a byte. Which one predicts held-out "
            "text better, and is the whole used?"
        ),
        arms=(_arm("single_stream", control_system()), _arm("two_stream", two_stream_system())),
        evaluation=EvaluationConfig(whole_ticks=1024),
        minutes=5.0,
    )


def control_system() -> SingleStreamConfig:
    """Return the control: the best single stream that the tuning found (docs/log.md)."""
    return single_stream.tiny()


def two_stream_system() -> TwoStreamConfig:
    """Return a part tower of bytes and a whole tower of words, with the control's FLOPs."""
    return two_stream.tiny()


def _arm(name: str, system: SingleStreamConfig | TwoStreamConfig) -> Run:
    return Run(
        name=name,
        system=system,
        data=DataConfig(row_ticks=1024),
        train=TrainConfig(
            num_steps=1100,
            batch_rows=2,
            checkpoint_every=275,
            optimizer=OptimizerConfig(lr=4e-3, muon_lr=0.014, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=40, final_ratio=0.05),
        ),
    )
