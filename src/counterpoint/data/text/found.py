"""Finding the files of a corpus below a folder; links are followed, and problems are reported."""

import os
from pathlib import Path
from typing import NoReturn

from counterpoint.errors import UserError, absent


def existing_file(path: str | Path) -> Path:
    """Return the path of an existing file.

    Raises:
        UserError: There is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(absent("The corpus", file))
    return file


def files_below(path: str | Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files below a folder with one of the endings (in upper or lower case), sorted.

    Links are followed. A folder that can be reached in several ways is read once, so circular links
    do no harm.

    Raises:
        UserError: There is no such folder or no such file, or a link is broken.
        OSError: A folder cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(absent("The corpus", folder, "an existing folder"))
    found: list[Path] = []
    seen = {_identity(folder)}
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        new = {name: _identity(Path(place, name)) for name in sorted(folders)}
        # Links come last, so that a folder keeps its own name if it lies below this folder.
        order = sorted(new, key=lambda name: (Path(place, name).is_symlink(), name))
        folders[:] = []
        for name in order:
            if new[name] not in seen:
                seen.add(new[name])
                folders.append(name)
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in endings]
    for file in found:
        if not file.exists():
            raise UserError(
                f"A file of the corpus must exist: the link {str(file)!r} is broken. Repair it, "
                "or remove it."
            )
    found = sorted(file for file in found if file.is_file())
    if not found:
        raise UserError(
            f"The corpus is empty: the folder {str(folder)!r} must hold a "
            f"{' or '.join(endings)} file and holds none."
        )
    return found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> NoReturn:
    raise error
