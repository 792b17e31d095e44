"""Trained models that come with the package: exported checkpoints, each with a model card."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "models"
"""Folder with one folder for each model: a checkpoint of `export_checkpoint`, and its README.md."""

TALKS = Path("duplex_small")
"""The model that hears and speaks."""

WRITES = Path("two_stream_bible")
"""The text model."""


def find_shipped(path: Path) -> Path:
    """Return the folder of a model that comes with the package if its name is given, else ``path``.

    Args:
        path: The name or path that a user gives. An existing path takes precedence.
    """
    shipped = FOLDER / path
    return shipped if path.name == str(path) and not path.exists() and shipped.is_dir() else path
