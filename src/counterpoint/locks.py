"""Locks: only one process at a time does something; others wait or are told who does it."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from counterpoint.errors import UserError

_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class LockedError(UserError):
    """Another process holds the lock.

    Attributes:
        holder: That process, in words: "process 123 on host".
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} must be free: {holder} has it. Wait until it is done.")
        self.holder = holder


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Let only one process at a time, and one of its threads, enter this block for a path.

    The operating system releases the lock of a process that ends in any way. The process that
    leaves the block removes the lock's file. On a disk without support for locks the block is not
    protected.

    Args:
        path: File of the lock; its folder must exist.
        wait: Whether to wait until the lock is free.

    Raises:
        LockedError: The lock is not free, and ``wait`` is False.
        OSError: The file cannot be created.
    """
    file = _taken(path, wait)
    with file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def _taken(path: Path, wait: bool) -> TextIO:
    import fcntl

    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise LockedError(path, holder) from None
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                file.close()
                raise
            return file
        # A process that left meanwhile has removed the file, and then this lock protects nothing.
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()
