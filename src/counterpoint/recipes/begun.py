"""What a folder has begun with: kept beside what was made of it, for whoever goes on there."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json


def read_begun(file: Path, names: Collection[str]) -> dict[str, Any]:
    """What was kept in a file.

    Args:
        file: Where.
        names: What must be in it.

    Raises:
        UserError: It cannot be read, or something is missing.
    """
    try:
        content = read_json(file)
        if not (isinstance(content, dict) and content.keys() >= set(names)):
            raise UserError(f"it needs {', '.join(names)}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} must say what its folder has begun with: {error}. Take another folder."
        ) from error
    return content


def keep_begun(file: Path, content: dict[str, Any]) -> None:
    """Keep it; the file appears whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
    except OSError as error:
        raise OSError(
            f"{str(file)!r} must be written: {error}. Make room, or take another folder."
        ) from error
