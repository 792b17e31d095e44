"""The time of a conversation, and tools that take some of it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """The time of a conversation, in seconds since its start."""

    def now(self) -> float:
        """Return the time."""

    def reach(self, time_s: float) -> None:
        """Let the time be at least ``time_s``; a real clock is there by itself."""

    def write_token(self) -> None:
        """Let the time of one token pass; on a real clock it has passed already."""


class SimulatedClock:
    """A clock on which each token takes equally long, and nothing else takes time."""

    def __init__(self, tokens_per_s: float) -> None:
        self._token_s = 1 / tokens_per_s
        self._now_s = 0.0

    def now(self) -> float:
        """Return the time; see `Clock.now`."""
        return self._now_s

    def reach(self, time_s: float) -> None:
        """Go forward to a time; see `Clock.reach`."""
        self._now_s = max(self._now_s, time_s)

    def write_token(self) -> None:
        """Go forward by a token; see `Clock.write_token`."""
        self._now_s += self._token_s


class Response(NamedTuple):
    """The response of a tool to a call.

    Attributes:
        call: Number of the call, counted from 0.
        text: The response; why there is none if the call has failed.
        ok: Whether the call succeeded.
        is_repeated: Whether it is that of an equal call, which was not made a second time.
    """

    call: int
    text: str
    ok: bool = True
    is_repeated: bool = False


@runtime_checkable
class Tools(Protocol):
    """Tools that a model may call while it listens."""

    def start(self, call: int, text: str, now_s: float) -> None:
        """Begin a call, unless it is none: then its response is not ``ok``, and says why.

        Args:
            call: Number of the call.
            text: What stands between `Marks.call` and `Marks.call_end`.
            now_s: Time of the conversation.
        """

    def cancel(self, call: int, now_s: float) -> str:
        """Take a call back, whether it was made or not; a response that has not come never comes.

        Args:
            call: Number of a call that was begun.
            now_s: Time of the conversation.

        Returns:
            Why it stands all the same; empty if it does not.
        """

    def end_speech(self, now_s: float) -> None:
        """Learn that the user has finished; all later calls are made after the speech."""

    def wait(self, until_s: float) -> float:
        """Return when the next response of any call arrives, or ``until_s`` if none does by then.

        If one is there already, or ``until_s`` has passed, it returns at once.
        """

    def arrived(self, now_s: float) -> Sequence[Response]:
        """Return the responses that have arrived by now; each is returned once."""
