"""What a folder has begun with: kept beside what was made of it, for whoever goes on there."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


def read_begun(file: Path, names: Collection[str]) -> dict[str, Any]:
    """What was kept in a file.

    Args:
        file: Where.
        names: What must be in it.

    Raises:
        ValueError: It cannot be read, or something is missing.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(content, dict) and content.keys() >= set(names)):
            raise ValueError(f"it needs {', '.join(names)}")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} must say what its folder has begun with: {error}. Take another folder."
        ) from error
    return content


def keep_begun(file: Path, content: dict[str, Any]) -> None:
    """Keep it; the file appears whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise OSError(
            f"{str(file)!r} must be written: {error}. Make room, or take another folder."
        ) from error
