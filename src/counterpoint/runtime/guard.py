"""A guard for objects that only one thread of one process may use at a time."""

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Guard:
    """Refuses calls that overlap, and calls in a forked process.

    Different threads may use the guarded object one after another. A fork copies only one of
    several threads, so anything that waits for the others (such as torch's thread pool) would wait
    for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"An engine must be used in the process that made it: {self._process} made it and "
                f"{os.getpid()} was forked off. Start processes with 'spawn', and load the model "
                "in each."
            )
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "An engine must be used by one thread at a time: another thread is using it. Let "
                "one thread call `step`, and let the other threads pass their input to it."
            )

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def guarded(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a method hold the `Guard` of its object, an attribute ``guard``, while it runs."""

    @wraps(method)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        owner: Any = args[0]
        with owner.guard:
            return method(*args, **kwargs)

    return call
