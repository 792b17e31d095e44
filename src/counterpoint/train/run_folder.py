"""Run folders: only one command may use a folder at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from counterpoint.locks import LockedError, locked
from counterpoint.train.distributed import World
from counterpoint.train.manifest import CheckpointError


@contextmanager
def only_one(folder: Path, world: World, lock: str) -> Iterator[None]:
    """Keep other commands out of a folder, which is created if it is missing.

    Args:
        folder: Folder of a run or a study.
        world: The processes that use it together; all of them must call this.
        lock: Name of a file in the folder, one for each activity.

    Raises:
        CheckpointError: Another command uses the folder, or it cannot be written.
    """
    with ExitStack() as stack:
        problem = None
        if world.is_first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / lock, wait=False))
            except LockedError as error:
                problem = (
                    f"{folder} must be used by one command at a time: {error.holder} is at it. "
                    "Wait until it has ended, or take another folder."
                )
            except OSError as error:
                problem = f"{folder} must be writable: {error.strerror}. Take another folder."
        problem = world.from_first(problem)  # all processes wait for the answer
        if problem is not None:
            raise CheckpointError(problem)
        yield
