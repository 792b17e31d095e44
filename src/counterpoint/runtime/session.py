"""One session, and the interface of a model that a batch of sessions uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.choices import FrameSampling
from counterpoint.streams.spec import Layout, Ticks
from counterpoint.systems.contract import Choose, State, System

Frame = dict[str, Int[Tensor, " _K"]]
"""Ids of one frame by predicted stream: one for each codebook; a text stream has one.

A stream whose steps cover several ticks is only in the frame of the last of these ticks.
"""


@runtime_checkable
class Streaming(Protocol):
    """The interface that sessions need; every `System` has it, and so has `Simultaneous`."""

    layout: Layout

    @property
    def writes_with_tower(self) -> bool:
        """See `System.writes_with_tower`."""

    @property
    def device(self) -> torch.device:
        """See `System.device`."""

    @property
    def window_ticks(self) -> int:
        """See `System.window_ticks`."""

    def initial_state(self, batch_size: int) -> State:
        """See `System.initial_state`."""

    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """See `System.read`."""

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """See `System.write`."""

    def wait(self) -> None:
        """See `System.wait`."""

    def plain(self) -> System:
        """See `System.plain`."""


class Ended(StrEnum):
    """The reason why a session has ended."""

    END_ID = "end id"
    LIMIT = "limit"
    STOPPED = "stopped"
    NO_ID = "no id"


class NoIdError(UserError):
    """The scores of some rows allow no id. These rows have ended; the others have gone on.

    Attributes:
        ended: Numbers of the rows that have ended, or of the sessions of an engine.
        frames: Frames that the call would have returned for the other sessions.
    """

    ended: Sequence[int]
    frames: Mapping[int, Frame]

    @classmethod
    def of(cls, noun: str, ended: Sequence[int], frames: Mapping[int, Frame]) -> "NoIdError":
        """Make the error for the rows that have ended; ``noun`` is what they are called.

        The other arguments become attributes.
        """
        numbers = ", ".join(map(str, ended))
        error = cls(
            f"The model must give scores that allow an id: for {noun} {numbers} all are minus "
            f"infinity, or one is infinite or not a number. This {noun} has ended. Check the "
            "model's weights and what it was given."
        )
        error.ended = ended
        error.frames = frames
        return error


@dataclass(kw_only=True, slots=True)
class Session:
    """State and settings of one row. Read it only: `Sessions` writes it.

    Attributes:
        sampling: How its ids are chosen.
        end_id: Id after which it ends, in models that write one id a tick.
        max_sampled: Number of ids after which it ends, in models that write one id a tick.
        num_prompt: Number of ticks of content in its prompt.
        num_ticks: Number of ticks of content so far: prompted, fed, heard or sampled.
        first_said: The first tick of content that it says completely.
        num_fed: Number of ticks that it was fed.
        sampled: Ids that it has chosen, including an end id, in models that write one id a tick.
        opening: What it said before it heard anything; only models without delay do so.
        twin: The row that hears the same without the prompt, for guidance.
        ended: Why it has ended; ``None`` while it runs.
        has_read: Whether the model has read anything, so that a column can be written.
        is_written: Whether the next column has been written but not read.
        num_drawn: Number of columns for which it has drawn random numbers.
    """

    sampling: FrameSampling
    end_id: int | None = None
    max_sampled: int | None = None
    num_prompt: int = 0
    num_ticks: int = 0
    first_said: int = 0
    num_fed: int = 0
    sampled: list[int] = field(default_factory=list)
    opening: Frame | None = None
    twin: int | None = None
    ended: Ended | None = None
    has_read: bool = False
    is_written: bool = False
    num_drawn: int = 0

    @property
    def unread(self) -> list[int]:
        """The id that a text session wrote last, if the model has not read it yet."""
        return self.sampled[-1:] if self.is_written else []

    def note(self, found: int) -> None:
        """Store an id that the session has chosen, and end the session if a limit is reached."""
        self.sampled.append(found)
        if found == self.end_id:
            self.ended = Ended.END_ID
        elif len(self.sampled) == self.max_sampled:
            self.ended = Ended.LIMIT
