"""SIGINT and SIGTERM during training: a step is finished first, an evaluation is interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopNow(BaseException):
    """A signal has come within `StopSignal.obeyed_at_once`; no handler of errors may catch it."""


class StopSignal:
    """Remembers SIGINT and SIGTERM until the end of a step."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        # A second signal stops at once; the last checkpoint is complete in any case.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._at_once:
            self._at_once = False  # a second SIGTERM must not interrupt what ends the block
            raise StopNow

    @contextmanager
    def obeyed_at_once(self) -> Iterator[None]:
        """Let a signal interrupt the block, also one that has come before it.

        Raises:
            StopNow: A signal has come.
        """
        self._at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._at_once = False

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Listen for the signals until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # signals reach only the main thread
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._request) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
