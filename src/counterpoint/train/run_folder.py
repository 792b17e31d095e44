"""A run folder belongs to one command at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from counterpoint.locks import LockedError, locked
from counterpoint.train.distributed import World
from counterpoint.train.manifest import CheckpointError


@contextmanager
def only_one(folder: Path, world: World, lock: str) -> Iterator[None]:
    """Keep others out of a folder; it is made where it is missing.

    Args:
        folder: Folder of a run or a study.
        world: The processes that work there together; every one must call this.
        lock: Name of a file in the folder, one for each thing that is done there.

    Raises:
        CheckpointError: Somebody else is there, or the folder cannot be written.
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
        problem = world.from_first(problem)  # told to all processes, which wait
        if problem is not None:
            raise CheckpointError(problem)
        yield
