"""A small two-stream model on a folder of text."""

from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.systems import two_stream
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.run import Run


def books() -> Run:
    """Train `two_stream.small` on the .txt and .md files below ``books/``.

    For another folder use ``--data.source folder:PATH``. It takes at most an hour (``--minutes``).
    """
    return Run(
        name="books",
        system=two_stream.small(),
        minutes=60.0,
        data=DataConfig(source=Folder(path="books"), row_ticks=2048),
        train=TrainConfig(
            num_steps=5000,
            batch_rows=16,
            accumulation=4,
            evaluate_every=500,
            checkpoint_every=500,
            optimizer=OptimizerConfig(lr=1e-3),
        ),
    )
