"""Records of the training data of a run folder, checked when the run is continued.

Every checkpoint holds the config of the data. The data themselves may still change: a recording is
replaced, or a text is added. Then held-out data might be trained on unnoticed.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint.config_json import decode, encode, first_difference
from counterpoint.data.source import Fingerprint
from counterpoint.errors import UserError
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.train.checkpoint import CheckpointError, checkpoint_paths
from counterpoint.train.distributed import World
from counterpoint.train.fine_tuning import without

FILE = "learned.json"
"""Name of the record in a run folder."""

_OLD_FILE = "recordings.json"  # name in speech runs before records of text existed


def keep_or_check_learned(data: Any, fingerprint: Fingerprint, folder: Path, world: World) -> None:
    """Record the data with which a run begins; refuse other data if it has checkpoints.

    If the config of the data differs, the training loop reports that.

    Args:
        data: Config of the data.
        fingerprint: Digests of the data; see `counterpoint.data.source.PreparedSource`.
        folder: The run's folder.
        world: The processes; all of them must call this.

    Raises:
        CheckpointError: The data differ, or the record cannot be read or written.
    """
    problem = None
    if world.is_first:
        try:
            if checkpoint_paths(folder) and _record(folder).exists():
                problem = _difference(data, fingerprint, folder)
            elif fingerprint:
                keep_begun(folder / FILE, {"data": _content(data), **_content(fingerprint)})
        except (ValueError, OSError) as error:  # all processes wait for the answer
            problem = str(error)
    problem = world.from_first(problem)
    if problem is not None:
        raise CheckpointError(problem)


def check_learned(data: Any, fingerprint: Fingerprint, folder: Path) -> None:
    """Refuse data that differ from the training data of a run, as far as they are read.

    Raises:
        CheckpointError: They differ, or the record cannot be read.
    """
    if not _record(folder).exists():
        return
    try:
        problem = _difference(data, fingerprint, folder, read_all=False)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem is not None:
        raise CheckpointError(problem)


def _record(folder: Path) -> Path:
    old = folder / _OLD_FILE
    return old if old.exists() and not (folder / FILE).exists() else folder / FILE


def _difference(
    data: Any, fingerprint: Fingerprint, folder: Path, *, read_all: bool = True
) -> str | None:
    """Return a message if the data differ from the record under an equal config.

    If not all data are read, entries that only the record has are ignored.
    """
    file = _record(folder)
    nouns = [*fingerprint] if file.name == FILE else ["recordings"]
    begun = read_begun(file, ("data", *nouns))
    if _with_defaults(data, begun["data"]) != _content(data):
        return None
    for noun in nouns:
        old = begun[noun]
        new = _content(fingerprint).get(noun)
        if not read_all and isinstance(old, dict) and isinstance(new, dict):
            old = {place: value for place, value in old.items() if place in new}
        changed = first_difference(old, new, noun)
        if changed is not None:
            return (
                f"A run must be continued with the {noun} it began with: {folder} has another "
                f"{changed}. Train in another folder, or change them back."
            )
    return None


def _with_defaults(data: Any, begun: Any) -> Any:
    """Return the config of an earlier version; fields added since then get their defaults."""
    with contextlib.suppress(UserError):  # another kind of data, or a field that was removed
        return _content(decode(type(data), begun))
    return begun


def _content(value: Any) -> Mapping[str, Any]:
    """Return a value as JSON restores it, without the cache folder, which does not matter."""
    return without(json.loads(json.dumps(encode(value))), ("cache_folder",))
