"""What a folder has begun with: kept beside what was made of it, for whoever goes on there."""

import json
from pathlib import Path
from typing import Any


def read_begun(file: Path) -> Any:
    """What was kept in a file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} must say what its folder has begun with: {error}. Take another folder."
        ) from error


def keep_begun(file: Path, content: Any) -> None:
    """Keep it; the file appears whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(file)
