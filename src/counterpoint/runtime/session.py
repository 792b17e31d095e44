"""One session, and what a batch of them needs of a model."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.runtime.choices import FrameSampling
from counterpoint.streams.spec import Layout, Ticks
from counterpoint.systems.contract import Choose, State, System

Frame = dict[str, Int[Tensor, " _K"]]
"""Ids of one frame by predicted stream, for each codebook one; a text stream has one.

A stream whose steps cover several ticks is in the frame of the last of them alone.
"""


@runtime_checkable
class Streaming(Protocol):
    """What sessions need of a model: every `System` has it, and so has `Simultaneous`."""

    layout: Layout

    @property
    def writes_with_tower(self) -> bool:
        """See `System.writes_with_tower`."""
        ...

    @property
    def device(self) -> torch.device:
        """See `System.device`."""
        ...

    @property
    def window_ticks(self) -> int:
        """See `System.window_ticks`."""
        ...

    def initial_state(self, batch_size: int) -> State:
        """See `System.initial_state`."""
        ...

    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """See `System.read`."""
        ...

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """See `System.write`."""
        ...

    def wait(self) -> None:
        """See `System.wait`."""
        ...

    def plain(self) -> System:
        """See `System.plain`."""
        ...


class Ended(StrEnum):
    """Why a session gives no more frames."""

    END_ID = "end id"
    LIMIT = "limit"
    STOPPED = "stopped"


@dataclass(kw_only=True, slots=True)
class Session:
    """What one row does and has done; read it, and leave the writing to `Sessions`.

    Attributes:
        sampling: How its ids are chosen.
        end_id: Id after which it ends; of models that write one id a tick.
        max_sampled: Ids after which it ends; likewise.
        num_prompt: Ticks of content that it began with.
        num_ticks: Ticks of content that it has gone through: prompted, fed, heard or sampled.
        first_said: The first tick of content that it says, all of it.
        num_fed: Ticks that it was fed.
        sampled: Ids it has chosen, an end id included; of models that write one id a tick.
        opening: What it said before it heard anything: only models without delay have it.
        twin: The row that hears the same without the prompt, for guidance.
        ended: Why it has ended; ``None`` while it runs.
        has_read: Whether there is anything to write from.
        is_written: Whether the next column is written already, and to be read.
        num_drawn: Its place in its random numbers, in columns.
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
        """The id that a session of text wrote last, if the model has not read it."""
        return self.sampled[-1:] if self.is_written else []

    def note(self, found: int) -> None:
        """Keep an id that the session has chosen, and end it if it shall end with that."""
        self.sampled.append(found)
        if found == self.end_id:
            self.ended = Ended.END_ID
        elif len(self.sampled) == self.max_sampled:
            self.ended = Ended.LIMIT
