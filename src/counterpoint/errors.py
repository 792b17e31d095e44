"""Errors whose messages are meant for the user of the library or its commands."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user: an input cannot be used.

    Its message says what must hold, what came instead and what to do about it. A command prints the
    message in one line and ends with status 2. All other errors keep their traceback, because they
    are faults of the program. It is a `ValueError`, so that callers need not import this class.
    """


class NoCoarsePastError(UserError):
    """A system keeps no coarse past that could be exchanged; see `System.swap`."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what was probably meant; empty if there are no candidates."""
    found = get_close_matches(name, list(known), n=1, cutoff=0)
    return f"The nearest is {found[0]!r}." if found else ""


def nearest_file(path: str | Path) -> str:
    """Return such a sentence for a missing path, from the names in its folder; it may be empty."""
    path = Path(path)
    try:
        beside = [other.name for other in path.parent.iterdir()]
    except OSError:
        return nearest_file(path.parent) if path.parent != path else ""
    found = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    return f"The nearest is {str(path.parent / found[0])!r}." if found else ""


def check_minutes(minutes: float | None) -> None:
    """Refuse a time budget that nothing fits into; ``None`` is no budget.

    Raises:
        UserError: It is not above 0, or not finite.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError(
            f"`--minutes` must be above 0 and finite: got {minutes:g}. Give the minutes that all "
            "of it may take."
        )


def absent(what: str, path: str | Path, kind: str = "an existing file") -> str:
    """Return the message for a path that does not lead to what is needed.

    Args:
        what: What the path should be, such as "The recording" or "`--voice`".
        path: The path that was given.
        kind: What must be there.
    """
    path = Path(path)
    if path.exists():
        hint = f"It is a {'folder' if path.is_dir() else 'file'}."
    else:
        hint = nearest_file(path) or "There is nothing: check the path."
    return f"{what} must be {kind}: got {str(path)!r}. {hint}"
