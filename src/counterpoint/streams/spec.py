"""Streams and layouts: what a model reads and writes, and when each element exists."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf, lcm

from jaxtyping import Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError

UNSET_ID = -1
"""Id of an element that does not exist or carries no loss. Never a valid token."""

Ticks = Mapping[str, Shaped[Tensor, "B _T ..."]]
"""Elements by stream name, oldest first: in content order on the stream's own steps, in order of
arrival on columns (`counterpoint.streams.schedule`).

Ids are (B, T), or (B, T, K) of a stream with codebooks; a continuous stream is floats
(B, T, width).
`_T` is not bound by jaxtyping: streams of different periods have different numbers of steps in
content order.
"""


class Role(StrEnum):
    """What a stream is for."""

    HEARD = "heard"
    SPOKEN = "spoken"
    THOUGHT = "thought"
    TEXT = "text"
    PART = "part"
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A named sequence on the common clock.

    Codebooks that come at different ticks are different streams: Moshi's first codebook has no
    delay and the seven others one tick, so that one is a stream of depth 1 and they one of depth 7.

    Attributes:
        name: Unique within a layout.
        role: What the stream is for.
        vocab_size: Number of ids of one codebook; ``None`` for a continuous stream.
        depth: Codebooks in one step (discrete streams only).
        width: Features in one step; ``None`` for a discrete stream.
        period_ticks: Ticks that one step covers; 1 is the finest rate.
        delay_ticks: Ticks by which every step comes later than the content it covers.
        irregular: Steps may end early, where the content says; ``period_ticks`` is then the longest
            step, and ``delay_ticks`` the longest delay.
        predicted: The model writes this stream; it only reads the others.
        has_codebooks: Steps have a codebook axis, also when ``depth`` is 1: ids are (B, T, K).
        initial_id: Id that stands before the first element; outside of the vocabulary, for it is
            never written or trained. A layout in which a stream has one begins with an initial
            frame: one tick of initial ids before the content.
        padding_id: Id of a step in which nothing is due, such as the text of a silent frame.
        codebook_sizes: Ids of each codebook where some have fewer than ``vocab_size``; empty if all
            have as many. The others are never written.
    """

    name: str
    role: Role
    vocab_size: int | None = None
    depth: int = 1
    width: int | None = None
    period_ticks: int = 1
    delay_ticks: int = 0
    irregular: bool = False
    predicted: bool = False
    has_codebooks: bool = False
    initial_id: int | None = None
    padding_id: int | None = None
    codebook_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.width is None):
            raise UserError(
                f"Stream {self.name!r} must be either discrete (`vocab_size`) or continuous "
                f"(`width`): got vocab_size={self.vocab_size}, width={self.width}. Set exactly one."
            )
        if self.width is not None and self.depth != 1:
            raise UserError(
                f"Stream {self.name!r}: a continuous stream has `depth` 1, got {self.depth}. "
                "Put all features into `width`."
            )
        for field in ("vocab_size", "depth", "width", "period_ticks"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"Stream {self.name!r}: `{field}` must be >= 1, got {value}.")
        if self.delay_ticks < 0:
            raise UserError(
                f"Stream {self.name!r}: `delay_ticks` must be >= 0, got {self.delay_ticks}. "
                "To let a stream lead, delay the others."
            )
        if self.initial_id is not None and self.initial_id < (self.vocab_size or 0):
            raise ValueError(
                f"Stream {self.name!r}: `initial_id` must be outside of its {self.vocab_size} ids, "
                f"for it carries no loss: got {self.initial_id}. Take {self.vocab_size}."
            )
        if self.depth > 1 and not self.has_codebooks:
            object.__setattr__(self, "has_codebooks", True)
        if self.codebook_sizes and len(self.codebook_sizes) != self.depth:
            raise UserError(
                f"Stream {self.name!r}: `codebook_sizes` must be one for each of its {self.depth} "
                f"codebooks: got {self.codebook_sizes}."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ids of each codebook of a discrete stream."""
        return self.codebook_sizes or (self.vocab_size or 0,) * self.depth

    @property
    def element_shape(self) -> tuple[int, ...]:
        """Shape of one step: () of single ids, (K,) of codebooks, (width,) of floats."""
        if self.width is not None:
            return (self.width,)
        return (self.depth,) if self.has_codebooks else ()

    @property
    def is_discrete(self) -> bool:
        """True when the stream carries ids, False when it carries vectors."""
        return self.vocab_size is not None


def coarse_stream(
    name: str, *, width: int, period_ticks: int, lag_steps: int, irregular: bool = False
) -> Stream:
    """A whole over blocks of a finer stream, which is read ``lag_steps`` of its own steps later."""
    return Stream(
        name=name,
        role=Role.WHOLE,
        width=width,
        period_ticks=period_ticks,
        delay_ticks=lag_steps * period_ticks,
        irregular=irregular,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The ordered streams of a model. Their order is their order within a frame.

    Attributes:
        streams: Streams, in the order in which the elements of one frame become available.
        tick_hz: Ticks a second, when the streams have a physical clock (speech).
    """

    streams: tuple[Stream, ...]
    tick_hz: float | None = None

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise UserError(
                f"A layout must hold at least one stream and no name twice: got {names}."
            )
        if self.tick_hz is not None and not 0 < self.tick_hz < inf:
            raise UserError(f"`tick_hz` must be positive and finite, got {self.tick_hz}.")

    def __getitem__(self, name: str) -> Stream:
        for stream in self.streams:
            if stream.name == name:
                return stream
        known = ", ".join(stream.name for stream in self.streams)
        raise KeyError(f"The layout has no stream {name!r}; it has: {known}.")

    def place(self, name: str) -> int:
        """Position of the stream within a frame, 0 first."""
        return [stream.name for stream in self.streams].index(self[name].name)

    def rate_hz(self, name: str) -> float:
        """Steps a second of a stream; 0 where the layout has no physical clock."""
        return (self.tick_hz or 0.0) / self[name].period_ticks

    @property
    def predicted(self) -> tuple[Stream, ...]:
        """The streams that the model writes, in the order in which it writes a frame."""
        return tuple(stream for stream in self.streams if stream.predicted)

    @property
    def heard(self) -> tuple[Stream, ...]:
        """The streams that a session is given at every tick: neither predicted nor the model's own.

        A whole is the model's own: it is computed from what is read.
        """
        return tuple(s for s in self.streams if not s.predicted and s.role != Role.WHOLE)

    @property
    def slow(self) -> tuple[Stream, ...]:
        """The streams that are written or heard and have steps of several ticks."""
        return tuple(s for s in (*self.predicted, *self.heard) if s.period_ticks > 1)

    @property
    def text(self) -> Stream:
        """The stream of text of a layout of speech: what is said, or thought.

        Raises:
            UserError: There is none, or it has no padding.
        """
        for stream in self.streams:
            if stream.role in (Role.TEXT, Role.THOUGHT) and stream.padding_id is not None:
                return stream
        raise UserError(
            "A model of speech must have a text stream with padding: this one has "
            f"{', '.join(stream.name for stream in self.streams)}."
        )

    @property
    def text_part(self) -> Stream:
        """The one stream of a layout of text alone.

        Raises:
            UserError: The layout has others that are read or written.
        """
        given = (*self.predicted, *self.heard)
        if len(given) != 1:
            raise UserError(
                "A model of text must have one stream of ids: this one has "
                f"{', '.join(stream.name for stream in given)}."
            )
        return given[0]

    def by_role(self, role: Role) -> tuple[Stream, ...]:
        """All streams of a role, in their order."""
        return tuple(stream for stream in self.streams if stream.role == role)

    def with_role(self, role: Role, codes: Int[Tensor, "*B K"]) -> dict[str, Int[Tensor, "*B _k"]]:
        """The codebooks of a speaker's codec as the streams of that speaker.

        Raises:
            UserError: The speaker has another number of codebooks.
        """
        own = self.by_role(role)
        depths = [stream.depth for stream in own]
        if sum(depths) != codes.shape[-1]:
            raise UserError(
                f"A speaker has {sum(depths)} codebooks in this model: got {codes.shape[-1]} codes "
                "a frame. Encode with as many codebooks."
            )
        pieces = codes.split(depths, -1)
        return {stream.name: piece for stream, piece in zip(own, pieces, strict=True)}

    @property
    def block_ticks(self) -> int:
        """Ticks after which every stream's steps line up again."""
        return lcm(*(stream.period_ticks for stream in self.streams))
