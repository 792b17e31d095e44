"""Trained models that come with the package: folders like any exported checkpoint, with a card."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "models"
"""Holds a folder for each model: a checkpoint of `export_checkpoint`, and README.md, its card."""

TALKS = Path("duplex_small")
"""The model that hears and speaks."""

WRITES = Path("two_stream_bible")
"""The model of text."""


def find_shipped(path: Path) -> Path:
    """The folder of a model that comes with the package, if its name is given, else the path.

    Args:
        path: What a user names. Whatever exists there comes first.
    """
    shipped = FOLDER / path
    return shipped if path.name == str(path) and not path.exists() and shipped.is_dir() else path
