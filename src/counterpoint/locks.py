"""Locks: one process at a time does something, and the others wait or are told who does it."""

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
    """Another process is at it.

    Attributes:
        holder: Who, in words: "process 123 on host".
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} must be free: {holder} has it. Wait until it is done.")
        self.holder = holder


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Only one process at a time, and one thread of it, is in here for the same path.

    The operating system ends a lock with the process that holds it, however that ends. The file of
    the lock is removed by who leaves. On a disk that knows no locks nobody is kept out.

    Args:
        path: File of the lock; its folder must exist.
        wait: Until it is free; otherwise it must be free.

    Raises:
        LockedError: It is not.
        OSError: The file cannot be made.
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
        # Whoever left meanwhile has removed the file: this lock keeps nobody out.
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()
