"""One attempt of a tool call, whatever the tool does: fail, hang, or give what cannot be used."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


class ToolError(Exception):
    """A tool did not give a usable result."""


@dataclass(slots=True, eq=False)
class CallAttempt:
    """One attempt of a call, in a thread that can be left behind if the tool hangs.

    Attributes:
        action: Calls the tool.
        limit_s: Longest time that it may take.
        most_bytes: Longest result, in bytes of JSON.
        late: Undoes the effect if the tool ends after it was undone.
        found: Result as JSON text, if there is one.
        fault: Why there is none.
        is_alive: Whether the tool may still run, or begin.
        has_begun: Whether the tool was called.
    """

    action: Callable[[], Any]
    limit_s: float
    most_bytes: int
    late: Callable[[], Any] | None = None
    found: str | None = None
    fault: str = ""
    is_alive: bool = True
    has_begun: bool = False
    _is_abandoned: bool = False
    _is_left: bool = False
    _undoes_late: bool = False
    _begin_s: float = 0.0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def result(self) -> Iterator[str]:
        """Run the tool, and yield its result as JSON text.

        Raises:
            ToolError: The tool raised, took too long, or gave what cannot be used; or the call was
                cancelled.
        """
        with self._changed:
            if self._is_abandoned:
                self.is_alive = False
                raise ToolError("cancelled before it began")
            self.has_begun = True
            self._begin_s = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()
        with self._changed:
            ended = self._changed.wait_for(self._is_settled, self.limit_s)
            if not ended:
                raise ToolError(f"no result within {self.limit_s:g} s")
            if self.is_alive:
                raise ToolError("cancelled while it ran")
        if self.found is None:
            raise ToolError(self.fault)
        yield self.found

    def _is_settled(self) -> bool:
        return self._is_abandoned or not self.is_alive

    def abandon(self) -> None:
        """Do not begin any more, and wait no longer for a result."""
        with self._changed:
            self._is_abandoned = True
            self.is_alive = self.is_alive and self.has_begun  # what had not begun never will
            self._changed.notify_all()

    def leave(self) -> None:
        """Abandon it, and let `settle` wait no longer either."""
        with self._changed:
            self._is_left = True
        self.abandon()

    def shorten(self, limit_s: float) -> None:
        """Let it take so many seconds at most from its beginning, if it had longer."""
        self.limit_s = min(self.limit_s, max(limit_s, 0.0))

    def finish(self, wait_s: float) -> str:
        """Wait until it has ended, or abandon it; return why it gave no result, if it did not."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.is_alive, max(wait_s, 0.0)):
                self.fault = "no result when the conversation was closed"
            why = self.fault
        self.abandon()
        return why

    def settle(self) -> None:
        """Wait until the tool has ended, or has taken its longest time, or is left.

        If it ends later, it may have an effect after it was undone; then the effect is undone when
        it ends.
        """
        with self._changed:
            if self.has_begun:
                rest_s = max(self._begin_s + self.limit_s - time.monotonic(), 0.0)
                self._changed.wait_for(lambda: not self.is_alive or self._is_left, rest_s)
            self._undoes_late = self.is_alive

    def _run(self) -> None:
        try:
            self.found = self._checked(self.action())
        except BaseException as error:  # a tool may raise anything, even SystemExit
            self.fault = _one_line(error)
        with self._changed:
            self.is_alive = False
            is_late = self._undoes_late
            self._changed.notify_all()
        if is_late and self.late is not None:
            with suppress(Exception):  # the undo that was asked for has told of its own fault
                self.late()

    def _checked(self, result: Any) -> str:
        try:
            text = json.dumps(result, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"the result is no JSON: {error}"[:200]) from None
        num_bytes = len(text.encode(errors="surrogatepass"))
        if num_bytes > self.most_bytes:
            raise ToolError(f"the result has {num_bytes} bytes, at most {self.most_bytes}")
        return text


def _one_line(error: BaseException) -> str:
    """Return what a tool raised as one short line."""
    name = "" if isinstance(error, ToolError) else f"{type(error).__name__}: "
    try:
        text = str(error)
    except Exception:  # its text is code of the tool as well
        text = "it has no text"
    return " ".join(f"{name}{text}".split())[:200]
