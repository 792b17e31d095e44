"""The streams and the shape of a Moshi: text, and the codebooks of each speaker."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.spec import Role, Ticks

TEXT = "text"
"""Name of the text stream, the first of every frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioStream:
    """Codebooks of one speaker that share a delay.

    Attributes:
        name: Unique within the model.
        role: `Role.SPOKEN` for the agent, `Role.HEARD` for the others.
        depth: Codebooks.
        delay_ticks: Frames by which they come later than their content.
        loss_weight: Weight of each of its codebooks in the audio loss.
        codebook_sizes: Ids of each codebook where some have fewer than the model's; empty if all
            have as many. The others are never said.
    """

    name: str
    role: Role
    depth: int
    delay_ticks: int = 0
    loss_weight: float = 1.0
    codebook_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.codebook_sizes and len(self.codebook_sizes) != self.depth:
            raise ValueError(
                f"`codebook_sizes` of {self.name!r} must be one for each of its {self.depth} "
                f"codebooks: got {self.codebook_sizes}."
            )
        if not self.loss_weight > 0:
            raise ValueError(
                f"`loss_weight` of {self.name!r} must be above 0: got {self.loss_weight}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MoshiConfig:
    """Shape of a `Moshi`.

    Attributes:
        temporal: The transformer over frames; its window is the context in frames.
        depth: The transformer over the elements of a frame.
        audio: Audio streams in the order of a frame, behind the text.
        num_predicted: Codebooks that the model predicts, in the same order; whole streams.
        text_vocab_size: Ids of the text; the initial id, one more, is only read.
        audio_vocab_size: Ids of a codebook; likewise.
        text_role: `Role.TEXT`, or `Role.THOUGHT` when it is not the transcript of what is said.
        text_delay_ticks: Frames by which the text comes later than its content.
        text_padding_id: Id of a frame in which no text is due.
        text_light_ids: Text ids that weigh less in the loss.
        text_light_weight: Their weight.
        tick_hz: Frames a second.
        heard_dropout: Share of the heard elements that a model in training does not get to read, so
            that it does not learn recordings by heart.
    """

    temporal: TowerConfig
    depth: DepthConfig
    audio: tuple[AudioStream, ...]
    num_predicted: int
    text_vocab_size: int = 32_000
    audio_vocab_size: int = 2048
    text_role: Role = Role.TEXT
    text_delay_ticks: int = 0
    text_padding_id: int = 3
    text_light_ids: tuple[int, ...] = (3,)
    text_light_weight: float = 0.5
    tick_hz: float = 12.5
    heard_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.heard_dropout < 1:
            raise ValueError(f"`heard_dropout` must be >= 0 and < 1: got {self.heard_dropout}.")
        ends = [sum(s.depth for s in self.audio[: i + 1]) for i in range(len(self.audio))]
        if self.num_predicted not in ends:
            raise ValueError(
                f"`num_predicted` must end with a stream, after one of {ends} codebooks: got "
                f"{self.num_predicted}. Split a stream, or predict all of it."
            )
        for found in (self.text_padding_id, *self.text_light_ids):
            if not 0 <= found < self.text_vocab_size:
                raise ValueError(
                    f"Text ids must be 0 to {self.text_vocab_size - 1}: got {found} for padding."
                )
        if not 1 <= min(self.codebook_sizes) <= max(self.codebook_sizes) <= self.audio_vocab_size:
            raise ValueError(
                f"`codebook_sizes` must be 1 to `audio_vocab_size`, {self.audio_vocab_size}: got "
                f"{self.codebook_sizes}."
            )
        if not self.text_light_weight > 0:
            raise ValueError(f"`text_light_weight` must be above 0: got {self.text_light_weight}.")

    @property
    def num_codebooks(self) -> int:
        """Codebooks of all audio streams."""
        return sum(stream.depth for stream in self.audio)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Ids of each codebook, in the order of a frame."""
        most = self.audio_vocab_size
        return tuple(n for s in self.audio for n in s.codebook_sizes or (most,) * s.depth)


def two_speakers(num_acoustic: int, semantic_weight: float = 100.0) -> tuple[AudioStream, ...]:
    """Streams of an agent and a user: a semantic codebook, and acoustic ones a frame later."""
    return tuple(
        stream
        for speaker, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
        for stream in (
            AudioStream(
                name=f"{speaker}_semantic", role=role, depth=1, loss_weight=semantic_weight
            ),
            AudioStream(name=f"{speaker}_acoustic", role=role, depth=num_acoustic, delay_ticks=1),
        )
    )


def speaker_streams(config: MoshiConfig, role: Role, codes: Int[Tensor, "*B K"]) -> Ticks:
    """The codebooks of a speaker's codec as the streams of that speaker.

    Raises:
        ValueError: The speaker has another number of codebooks.
    """
    streams = [stream for stream in config.audio if stream.role == role]
    depths = [stream.depth for stream in streams]
    if sum(depths) != codes.shape[-1]:
        raise ValueError(
            f"A speaker has {sum(depths)} codebooks in this model: got {codes.shape[-1]} codes a "
            "frame. Encode with as many codebooks."
        )
    pieces = codes.split(depths, -1)
    return {stream.name: piece for stream, piece in zip(streams, pieces, strict=True)}
