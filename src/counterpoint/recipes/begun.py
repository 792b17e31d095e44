"""Records of what a folder was begun with, for calls that continue there."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from counterpoint.config_json import decode, encode, first_difference
from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json


def read_begun(file: Path, names: Collection[str]) -> dict[str, Any]:
    """Read a record.

    Raises:
        UserError: The file cannot be read, or a key is missing.
    """
    try:
        content = read_json(file)
        if not (isinstance(content, dict) and content.keys() >= set(names)):
            raise UserError(f"it needs {', '.join(names)}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} must say what its folder was begun with: {error}. Take another folder."
        ) from error
    return content


def keep_begun(file: Path, content: dict[str, Any]) -> None:
    """Write a record; the file appears complete or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
    except OSError as error:
        raise OSError(
            f"{str(file)!r} must be writable: {error}. Free space, or take another folder."
        ) from error


def keep_or_check_begun(file: Path, content: dict[str, Any], noun: str) -> None:
    """Write what a folder is begun with, or refuse to go on there with anything else.

    Args:
        file: The record in the folder.
        content: JSON values on which everything in the folder depends.
        noun: What is continued, for the message: "training" or the like.

    Raises:
        UserError: The folder was begun with something else, or the record cannot be read.
        OSError: The record cannot be written.
    """
    if not file.exists():
        keep_begun(file, content)
        return
    changed = first_difference(read_begun(file, content), content, noun)
    if changed is not None:
        raise UserError(
            f"A {noun} must be continued with what it began with: {file.parent} has another "
            f"{changed}. Take another folder, or change it back."
        )


def keep_or_check_study(file: Path, study: Any, free: Collection[str]) -> None:
    """Write what study a folder belongs to, or refuse the folder of another study.

    Fields that the record does not know, because it is older than they are, have their defaults.

    Args:
        file: The record in the folder.
        study: The study, a dataclass.
        free: Fields that may change, because what is finished does not depend on them.

    Raises:
        UserError: The folder was begun with another study.
    """
    new = {key: own for key, own in encode(study).items() if key not in free}
    if file.exists():
        changed = first_difference(_filled(read_begun(file, ()), study, new), new, "study")
        if changed is not None:
            raise UserError(
                f"{file.parent} must belong to this study: it was begun with another {changed}. "
                "Name another folder."
            )
    write_json(file, new)


def _filled(old: Any, study: Any, new: Mapping[str, Any]) -> Any:
    """Return an older record with the fields of today; as it is if they do not fit."""
    free = {key: own for key, own in encode(study).items() if key not in new}
    try:
        today = encode(decode(type(study), {**free, **old}))
    except (TypeError, UserError):
        return old
    return {key: own for key, own in today.items() if key in new}
