"""What a run folder has learned from: kept beside its checkpoints, and checked by who goes on.

The config of the data is in every checkpoint. What that config leads to may change all the same: a
recording is replaced, a text is added. Then what was held out might be trained on unseen.
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

_OLD_FILE = "recordings.json"  # of speech runs before records of text were kept


def keep_or_check_learned(data: Any, fingerprint: Fingerprint, folder: Path, world: World) -> None:
    """Keep what a run begins to learn from; refuse other content where it has checkpoints.

    Where the config of the data differs the training loop names that.

    Args:
        data: Config of the data.
        fingerprint: What its content is; see `counterpoint.data.source.PreparedSource`.
        folder: The run's folder.
        world: The processes; every one must call this.

    Raises:
        CheckpointError: The content is another, or the record cannot be read or written.
    """
    problem = None
    if world.is_first:
        try:
            if checkpoint_paths(folder) and _record(folder).exists():
                problem = _difference(data, fingerprint, folder)
            elif fingerprint:
                keep_begun(folder / FILE, {"data": _content(data), **_content(fingerprint)})
        except (ValueError, OSError) as error:  # told to all processes, which wait
            problem = str(error)
    problem = world.from_first(problem)
    if problem is not None:
        raise CheckpointError(problem)


def check_learned(data: Any, fingerprint: Fingerprint, folder: Path) -> None:
    """Refuse data whose content is not what a run has learned from, as far as it is read.

    Raises:
        CheckpointError: It is not, or the record cannot be read.
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
    """What is said where the content differs from the record under an equal config.

    Unless all of the content is read, what is in the record alone is left out.
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
                f"A run must go on with the {noun} it began with: {folder} has another {changed}. "
                "Train in another folder, or change them back."
            )
    return None


def _with_defaults(data: Any, begun: Any) -> Any:
    """The config of an earlier version: fields that it has got since then have their defaults."""
    with contextlib.suppress(UserError):  # another kind of data, or a field that is gone
        return _content(decode(type(data), begun))
    return begun


def _content(value: Any) -> Mapping[str, Any]:
    """As JSON gives it back, without where the cache lies, which changes nothing."""
    return without(json.loads(json.dumps(encode(value))), ("cache_folder",))
