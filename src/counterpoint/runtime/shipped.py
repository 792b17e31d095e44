"""Trained models that come with the package: exported checkpoints, each with a model card."""

from difflib import get_close_matches
from pathlib import Path

from counterpoint.errors import UserError
from counterpoint.files import shown

FOLDER = Path(__file__).parents[1] / "models"
"""Folder with one folder for each model: a checkpoint of `export_checkpoint`, and its README.md."""

TALKS = Path("duplex_small")
"""The model that hears and speaks."""

READS = Path("lslm_alexa")
"""The model that says a given text and stops when it is interrupted."""

CALLS = Path("shanks_orders")
"""The model that hears an order and calls a tool while somebody still speaks."""

WRITES = Path("two_stream_bible")
"""The text model."""


def shipped_names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def model_name(path: Path) -> str:
    """Return the name of a model for a reader: its path, or its name if it comes with us."""
    return path.name if path.parent == FOLDER else shown(path)


def find_shipped(path: Path) -> Path:
    """Return the folder of a model that comes with the package if its name is given, else ``path``.

    Args:
        path: The name or path that a user gives. An existing path takes precedence.

    Raises:
        UserError: It is nearly the name of such a model.
    """
    if path.name != str(path) or path.exists():
        return path
    names = shipped_names()
    if path.name in names:
        return FOLDER / path
    if found := get_close_matches(path.name, names, n=1, cutoff=0.8):
        raise UserError(
            "A model must be a path that exists, or one that comes with the package: got "
            f"{str(path)!r}. The nearest is {found[0]!r}."
        )
    return path
