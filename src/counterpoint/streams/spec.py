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
"""Elements by stream name, oldest first.

In content order they are counted in the stream's own steps, in arrival order in columns
(`counterpoint.streams.schedule`). Ids have the shape (B, T), or (B, T, K) if the stream has
codebooks; a continuous stream has floats of shape (B, T, width).

`_T` is not bound by jaxtyping, because streams of different periods have different numbers of steps
in content order.
"""


class Role(StrEnum):
    """The function of a stream in the model."""

    HEARD = "heard"
    SPOKEN = "spoken"
    THOUGHT = "thought"
    TEXT = "text"
    PART = "part"
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A named sequence on the common clock.

    Codebooks that arrive at different ticks are different streams. Moshi's first codebook has no
    delay and the seven others have a delay of one tick, so they are one stream of depth 1 and one
    stream of depth 7.

    Attributes:
        name: Unique within a layout.
        role: The function of the stream in the model.
        vocab_size: Number of ids of one codebook; ``None`` for a continuous stream.
        depth: Number of codebooks in one step (discrete streams only).
        width: Number of features in one step; ``None`` for a discrete stream.
        period_ticks: Number of ticks that one step covers; 1 is the finest rate.
        delay_ticks: Number of ticks by which every step arrives later than the content it covers.
        irregular: Whether steps may end early at boundaries that the content sets. Then
            ``period_ticks`` is the longest step and ``delay_ticks`` the longest delay.
        predicted: Whether the model writes this stream; it only reads the others.
        has_codebooks: Whether steps have a codebook axis, so that ids are (B, T, K). It may be set
            for a ``depth`` of 1, and is always set for a larger depth.
        initial_id: Id before the first element. It lies outside the vocabulary, because it is never
            written or trained. If a stream of a layout has one, the layout begins with an initial
            frame: one tick of initial ids before the content.
        padding_id: Id of a step without content, such as the text of a silent frame.
        codebook_sizes: Number of ids of each codebook if some have fewer than ``vocab_size``; empty
            if all have as many. The model never writes the ids beyond these sizes.
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
        """Number of ids of each codebook of a discrete stream."""
        return self.codebook_sizes or (self.vocab_size or 0,) * self.depth

    @property
    def element_shape(self) -> tuple[int, ...]:
        """Shape of one step: () for single ids, (K,) for codebooks, (width,) for floats."""
        if self.width is not None:
            return (self.width,)
        return (self.depth,) if self.has_codebooks else ()

    @property
    def is_discrete(self) -> bool:
        """Whether the stream carries ids; a continuous stream carries vectors of floats."""
        return self.vocab_size is not None


def coarse_stream(
    name: str, *, width: int, period_ticks: int, lag_steps: int, irregular: bool = False
) -> Stream:
    """Return a whole over blocks of a finer stream.

    Args:
        name: Its name.
        width: Features of a step.
        period_ticks: Ticks of a block, of the longest one if blocks may end early.
        lag_steps: Number of further blocks after which a step is read.
        irregular: Whether the content sets where blocks end.
    """
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
    """The ordered streams of a model. They arrive in this order within a frame.

    Attributes:
        streams: Streams, in the order in which the elements of one frame become available.
        tick_hz: Ticks a second if the streams have a physical clock (speech); otherwise ``None``.
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
        """Return the position of a stream within a frame, counted from 0.

        Raises:
            KeyError: The layout has no such stream.
        """
        return [stream.name for stream in self.streams].index(self[name].name)

    def rate_hz(self, name: str) -> float:
        """Return the steps a second of a stream; 0 if the layout has no physical clock."""
        return (self.tick_hz or 0.0) / self[name].period_ticks

    @property
    def predicted(self) -> tuple[Stream, ...]:
        """The streams that the model writes, in the order in which it writes a frame."""
        return tuple(stream for stream in self.streams if stream.predicted)

    @property
    def heard(self) -> tuple[Stream, ...]:
        """The streams that a session is given at every tick.

        These are the streams that the model neither writes nor computes. A whole is computed from
        what is read, so it is not one of them.
        """
        return tuple(s for s in self.streams if not s.predicted and s.role != Role.WHOLE)

    @property
    def slow(self) -> tuple[Stream, ...]:
        """The streams that are written or heard and whose steps cover several ticks."""
        return tuple(s for s in (*self.predicted, *self.heard) if s.period_ticks > 1)

    @property
    def text(self) -> Stream:
        """The text stream of a speech model: what is said, or what is thought.

        Raises:
            UserError: There is none, or it has no padding id.
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
        """The stream of a layout that has one stream of text and any wholes, but no other stream.

        Raises:
            UserError: Several streams are read or written, or none.
        """
        given = [s for s in (*self.predicted, *self.heard) if s.role != Role.WHOLE]
        if len(given) != 1:
            raise UserError(
                "A model of text must have one stream of ids: this one has "
                f"{', '.join(stream.name for stream in given)}."
            )
        return given[0]

    @property
    def part(self) -> Stream:
        """The one stream that is the part.

        Raises:
            UserError: There is none, or there are several.
        """
        parts = self.by_role(Role.PART)
        if len(parts) != 1:
            raise UserError(
                f"A model of a part must have one stream for it: got {len(parts)} among "
                f"{', '.join(stream.name for stream in self.streams)}."
            )
        return parts[0]

    def by_role(self, role: Role) -> tuple[Stream, ...]:
        """Return all streams of a role, in their order."""
        return tuple(stream for stream in self.streams if stream.role == role)

    def with_role(self, role: Role, codes: Int[Tensor, "*B K"]) -> dict[str, Int[Tensor, "*B _k"]]:
        """Split the codes of a speaker's codec into the streams of that speaker.

        Args:
            role: Role of the speaker's streams.
            codes: Ids of all codebooks, in the order of the codec.

        Returns:
            The codes of each stream, by name.

        Raises:
            UserError: The speaker's streams have another number of codebooks.
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
        """The number of ticks after which the steps of all streams line up again."""
        return lcm(*(stream.period_ticks for stream in self.streams))
