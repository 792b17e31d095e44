"""Calls of packages written in Rust, whose code may panic."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

_STDERR = threading.Lock()  # a process has one stderr, and threads may tokenise at the same time


class PanicError(RuntimeError):
    """A call has panicked; the message is that of the panic."""


def without_panic(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the result of a call; a panic becomes an ordinary error and prints nothing.

    Rust prints a panic and its backtrace before Python is told, so everything that is written to
    stderr during the call is held back. Other output is written afterwards.

    Raises:
        PanicError: The call has panicked.
    """
    with _STDERR, _held_back() as lines:
        try:
            return call(*arguments, **options)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # its class cannot be imported
                raise
            if lines is not None:
                lines.truncate(0)
            raise PanicError(" ".join(str(error).split())[:200]) from None


@contextmanager
def _held_back() -> Iterator[BinaryIO | None]:
    """Hold back what this process writes to stderr; give ``None`` if it has no stderr.

    The content of the file at the end is written to stderr then.
    """
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
    except (AttributeError, OSError, ValueError):
        yield None
        return
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            lines.seek(0)
            if others := lines.read():
                os.write(2, others)
