"""SIGINT and SIGTERM during training: the current step is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignal:
    """Remembers SIGINT and SIGTERM until the end of a step."""

    def __init__(self) -> None:
        self.requested = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        # A second signal stops at once; the last checkpoint is complete in any case.
        signal.signal(signal.SIGINT, signal.default_int_handler)

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
