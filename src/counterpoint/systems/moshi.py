"""Moshi: text and audio codebooks of several speakers, one frame a tick.

Source: Moshi (arXiv:2410.00037), sections 3.4 (architecture, delays, inner monologue) and 4.4
(loss). A temporal transformer reads the sum of all elements of a frame; a depth transformer writes
the next frame element by element: text, then the codebooks. Of the options of the reference
implementation, per-step weight schedules and low-rank depth embeddings are included.
Deviations: weights are initialised as in the other systems, not as in Moshi. As in the reference,
the last elements of delayed streams are cut, so that every row keeps its length.
Checked against: the `moshi` package with the same weights, for training logits and streamed tokens
(`tests/systems/test_moshi_reference.py`), and the names and parameter counts of the published 7B
model.
"""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache
from counterpoint.blocks.depth import CodebookEmbedding, DepthConfig, DepthDecoder, Past
from counterpoint.blocks.mixer import first_slots
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    in_chunks,
)

TEXT = "text"
"""Name of the text stream, the first of every frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioStream:
    """Codebooks of one speaker that share a delay.

    Attributes:
        name: Unique within the model.
        role: `Role.SPOKEN` for the agent, `Role.HEARD` for the others.
        depth: Number of codebooks.
        delay_ticks: Number of frames by which they arrive later than their content.
        loss_weight: Weight of each of its codebooks in the audio loss.
        codebook_sizes: Number of ids of each codebook if some have fewer than the model's; empty if
            all have as many. The model never says the ids beyond these sizes.
    """

    name: str
    role: Role
    depth: int
    delay_ticks: int = 0
    loss_weight: float = 1.0
    codebook_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.codebook_sizes and len(self.codebook_sizes) != self.depth:
            raise UserError(
                f"`codebook_sizes` of {self.name!r} must have a size for each of its {self.depth} "
                f"codebooks: got {self.codebook_sizes}."
            )
        if not self.loss_weight > 0:
            raise UserError(
                f"`loss_weight` of {self.name!r} must be above 0: got {self.loss_weight}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MoshiConfig(SystemConfig):
    """Shape of a `Moshi`.

    Attributes:
        temporal: The transformer over frames; its window is the context in frames.
        depth: The transformer over the elements of a frame.
        audio: Audio streams in the order of a frame, after the text.
        num_predicted: Number of codebooks that the model predicts, in the same order; it must end
            with a stream.
        text_vocab_size: Number of ids of the text, without the initial id, which is only read.
        audio_vocab_size: Number of ids of a codebook, without the initial id.
        text_role: `Role.TEXT`, or `Role.THOUGHT` if it is not the transcript of what is said.
        text_delay_ticks: Number of frames by which the text arrives later than its content.
        text_padding_id: Text id of a frame without text.
        text_light_ids: Text ids that have less weight in the loss.
        text_light_weight: The weight of these ids.
        tick_hz: Frames a second.
        heard_dropout: Share of the heard elements that are hidden from the model in training, so
            that it does not memorise recordings.
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
            raise UserError(f"`heard_dropout` must be >= 0 and < 1: got {self.heard_dropout}.")
        ends = [sum(s.depth for s in self.audio[: i + 1]) for i in range(len(self.audio))]
        if self.num_predicted not in ends:
            raise UserError(
                f"`num_predicted` must end with a stream, at one of {ends} codebooks: got "
                f"{self.num_predicted}. Split a stream, or predict all of it."
            )
        for found in (self.text_padding_id, *self.text_light_ids):
            if not 0 <= found < self.text_vocab_size:
                raise UserError(
                    f"Text ids must be 0 to {self.text_vocab_size - 1}: got {found} for padding."
                )
        if not 1 <= min(self.codebook_sizes) <= max(self.codebook_sizes) <= self.audio_vocab_size:
            raise UserError(
                f"`codebook_sizes` must be 1 to `audio_vocab_size`, {self.audio_vocab_size}: got "
                f"{self.codebook_sizes}."
            )
        if not self.text_light_weight > 0:
            raise UserError(f"`text_light_weight` must be above 0: got {self.text_light_weight}.")

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks of all audio streams."""
        return sum(stream.depth for stream in self.audio)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids of each codebook, in the order of a frame."""
        most = self.audio_vocab_size
        return tuple(n for s in self.audio for n in s.codebook_sizes or (most,) * s.depth)


def two_speakers(num_acoustic: int, semantic_weight: float = 100.0) -> tuple[AudioStream, ...]:
    """Return the streams of an agent and a user, each with a semantic codebook and acoustic ones.

    The acoustic codebooks are delayed by one frame.
    """
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


def tiny() -> MoshiConfig:
    """Return a model of 1.9M parameters: two speakers with four codebooks each, both predicted."""
    return MoshiConfig(
        temporal=TowerConfig(
            width=128, num_layers=4, num_heads=4, mlp_hidden=344, window=64, norm_epsilon=1e-8
        ),
        depth=DepthConfig(
            width=64, num_layers=2, num_heads=2, mlp_hidden=172, norm_epsilon=1e-8
        ),
        audio=two_speakers(3),
        num_predicted=8,
        text_vocab_size=256,
        audio_vocab_size=64,
    )  # fmt: skip


def moshi_7b(num_predicted: int = 8) -> MoshiConfig:
    """Return the published model (Table 1): 7.7B parameters; 8.4B if it predicts 16 codebooks."""
    return MoshiConfig(
        temporal=TowerConfig(
            width=4096,
            num_layers=32,
            num_heads=32,
            mlp_hidden=11_264,
            window=3000,
            norm_epsilon=1e-8,
        ),
        depth=DepthConfig(
            width=1024, num_layers=6, num_heads=16, mlp_hidden=2816, norm_epsilon=1e-8
        ),
        audio=two_speakers(7),
        num_predicted=num_predicted,
    )


class MoshiState(NamedTuple):
    """State of a session: frames read, and the caches of the temporal transformer."""

    position: Int[Tensor, " B"]
    caches: tuple[Cache, ...]


class Moshi(System):
    """A model over a text stream and audio streams.

    Ids of the text are (B, T). Ids of an audio stream are (B, T, K), with a codebook axis also for
    K = 1. Initial ids, which are one above the vocabulary, stand where a stream has not begun;
    `UNSET_ID` embeds to zero and carries no loss.
    """

    Config = MoshiConfig
    free_fields = System.free_fields | {
        "codebook_sizes",
        "heard_dropout",
        "loss_weight",
        "text_light_ids",
        "text_light_weight",
    }

    def __init__(self, config: MoshiConfig) -> None:
        """Make random weights; the heads start at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = _layout(config)
        self.audio = tuple(stream for stream in self.layout.streams if stream.name != TEXT)
        self.predicted = tuple(stream for stream in self.audio if stream.predicted)
        width = config.temporal.width
        text_ids = config.text_vocab_size + 1
        audio_ids = config.audio_vocab_size + 1
        self.text_embedding = CodebookEmbedding(1, text_ids, width)
        self.audio_embedding = CodebookEmbedding(config.num_codebooks, audio_ids, width)
        with torch.no_grad():  # the sum of all embeddings of a frame has unit variance
            for embedding in (self.text_embedding, self.audio_embedding):
                embedding.table.weight.mul_((1 + config.num_codebooks) ** -0.5)
        self.temporal = Tower(config.temporal)
        self.norm = RMSNorm(width, config.temporal.norm_epsilon)
        self.head = nn.Linear(width, config.text_vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        self.depth = DepthDecoder(
            config.depth,
            context_width=width,
            num_steps=config.num_predicted,
            num_first_ids=text_ids,
            vocab_size=config.audio_vocab_size,
        )

    def _limited(self, scores: Float[Tensor, "N k V"], first: int) -> Float[Tensor, "N k V"]:
        """Mask the scores of ids that the codebooks ``first, first + 1, ...`` do not have."""
        sizes = self.config.codebook_sizes[first : first + scores.shape[1]]
        if min(sizes) == scores.shape[2]:
            return scores
        ids = torch.arange(scores.shape[2], device=scores.device)
        absent = ids >= torch.tensor(sizes, device=scores.device)[:, None]
        return scores.masked_fill(absent, -torch.inf)

    # Offline

    def forward(self, batch: Batch) -> Logits:
        """Score the next frame at every tick; see `System.forward`.

        Without audio targets only the text is scored, and the depth transformer does not run.
        """
        x = self.embed(self._with_gaps(batch.ticks))
        z = self.norm(self.temporal(x, self.temporal.reach(batch.document_start)))
        logits = {TEXT: self.head(z)}
        if all(stream.name in batch.targets for stream in self.predicted):
            elements = batch.elements or batch.targets
            frame = [elements[TEXT][..., None]]
            frame += [elements[stream.name] for stream in self.predicted]
            previous = torch.cat(frame, -1)[..., :-1]
            audio, _ = self.depth(z.flatten(0, 1), previous.flatten(0, 1))
            pieces = (
                self._limited(audio, 0)
                .unflatten(0, z.shape[:2])
                .split([s.depth for s in self.predicted], 2)
            )
            logits |= {s.name: piece for s, piece in zip(self.predicted, pieces, strict=True)}
        return logits

    def _with_gaps(self, ticks: Ticks) -> Ticks:
        """Return the frames, in training without some heard elements; see `heard_dropout`."""
        share = self.config.heard_dropout
        if not self.training or not share:
            return ticks
        heard = {s.name: ticks[s.name] for s in self.audio if s.role == Role.HEARD}
        gaps = {
            name: ids.masked_fill(torch.rand(ids.shape, device=ids.device) < share, UNSET_ID)
            for name, ids in heard.items()
        }
        return {**ticks, **gaps}

    def embed(self, ticks: Ticks) -> Float[Tensor, "B T D"]:
        """Return the sum of the embeddings of all elements of each frame."""
        codes = torch.cat([ticks[stream.name] for stream in self.audio], -1)
        text = self.text_embedding(ticks[TEXT][..., None])
        return text.sum(-2) + self.audio_embedding(codes).sum(-2)

    def target_weights(self, name: str, targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Return the weight of each target: the stream's, and less for light text ids."""
        config = self.config
        if name == TEXT:
            light = torch.tensor(config.text_light_ids, device=targets.device)
            weight = torch.ones(targets.shape, device=targets.device)
            is_light = (targets[..., None] == light).any(-1)  # `isin` cannot be mapped over lanes
            return weight.masked_fill(is_light, config.text_light_weight)
        (own,) = (stream.loss_weight for stream in config.audio if stream.name == name)
        return torch.full(targets.shape, own, device=targets.device)

    def loss_group(self, name: str) -> str:
        """Return the group of a stream: all audio streams share one mean (section 4.4)."""
        return TEXT if name == TEXT else "audio"

    # Live

    @property
    def window_ticks(self) -> int:
        """The context in frames; see `System.window_ticks`."""
        return self.config.temporal.window

    def initial_state(self, batch_size: int) -> MoshiState:
        """Return the state before the first frame; see `System.initial_state`."""
        none = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MoshiState(none, self.temporal.initial_state(batch_size))

    def read(
        self, ticks: Ticks, state: MoshiState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        """Read the next frames, starting with the initial frame; see `System.read`."""
        return in_chunks(self._read_chunk, self.temporal.chunk_steps, ticks, state, lengths)

    def read_embedded(
        self, x: Float[Tensor, "B T D"], state: MoshiState
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        """Read the next frames, given as sums from `embed`; see `read`."""
        return in_chunks(self._read_sums, self.temporal.chunk_steps, {"x": x}, state, None)

    def _read_chunk(
        self, ticks: Ticks, state: MoshiState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        return self._read_sums({"x": self.embed(ticks)}, state, lengths)

    def _read_sums(
        self, sums: Ticks, state: MoshiState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        x = sums["x"]
        num_ticks = x.shape[1]
        reach = self.temporal.streaming_reach(state.position, num_ticks, lengths)
        z = self.norm(self.temporal(x, reach, state.caches))
        position = state.position + (num_ticks if lengths is None else lengths)
        return z, MoshiState(position, state.caches)

    def beginning(self, state: MoshiState, num_ticks: int) -> MoshiState:
        """Return the filled slots of the caches; see `System.beginning`."""
        num_slots = min(num_ticks, self.temporal.capacity)
        caches = tuple(first_slots(cache, num_slots) for cache in state.caches)
        return MoshiState(state.position.clone(), caches)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next frame: the text (B,), then the codebooks (B, K); see `System.write`."""
        previous = choose(TEXT, 0, self.head(hidden))
        frame = {TEXT: previous}
        past: tuple[Past, ...] | None = None
        num_done = 0
        for stream in self.predicted:
            codes = []
            for codebook in range(stream.depth):
                logits, past = self.depth(hidden, previous[:, None], past)
                scores = self._limited(logits, num_done)[:, 0]
                previous = choose(stream.name, codebook, scores)
                num_done += 1
                codes.append(previous)
            frame[stream.name] = torch.stack(codes, -1)
        return frame

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the FLOPs a tick; the depth transformer counts only if audio has targets."""
        head = 2 * self.config.temporal.width * self.config.text_vocab_size
        forward = self.temporal.flops_per_step(num_ticks) + head
        if predicted is None or all(stream.name in predicted for stream in self.predicted):
            forward += self.depth.flops_per_frame()
        return forward * (3 if training else 1)

    def shard_units(self) -> list[nn.Module]:
        """Return the modules that distributed training shards one by one."""
        return [*self.temporal.layers, *self.depth.layers]

    # Other forms of the same model

    def trimmed(self, num_predicted: int) -> "Moshi":
        """Return the same model without the depth steps of its last codebooks.

        Its predictions of the other codebooks are the same, because the steps of a frame read only
        the steps before them. The two models share all weights that are not cut.

        Raises:
            UserError: The model predicts fewer codebooks.
        """
        config = self.config
        if num_predicted > config.num_predicted:
            raise UserError(
                f"`num_predicted` must be at most {config.num_predicted}: got {num_predicted}."
            )
        depth = replace(config.depth, schedule=config.depth.schedule[:num_predicted])
        with shapes_only():
            model = Moshi(replace(config, depth=depth, num_predicted=num_predicted))
        weights = self.state_dict()
        for name, weight in model.state_dict().items():
            if weights[name].shape != weight.shape:  # steps are stacked: the first stay
                weights[name] = weights[name][: len(weight)].clone()
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)

    def agent_alone(self) -> "Moshi":
        """Return a model that predicts only the agent's codebooks; everyone else is heard.

        Raises:
            UserError: Its spoken streams do not come first, it hears none, or it does not predict
                all spoken codebooks.
        """
        spoken = [stream for stream in self.audio if stream.role == Role.SPOKEN]
        others = self.audio[len(spoken) :]
        if not spoken or not others or any(stream.role == Role.SPOKEN for stream in others):
            raise UserError(
                "A model that talks must have audio streams that it speaks, then streams that it "
                f"hears: got {', '.join(f'{s.name} ({s.role.value})' for s in self.audio)}."
            )
        depth = sum(stream.depth for stream in spoken)
        predicted = self.config.num_predicted
        if depth > predicted:
            raise UserError(
                f"A model that talks must predict the {depth} codebooks that it speaks: this one "
                f"predicts {predicted}."
            )
        return self if depth == predicted else self.trimmed(depth)

    def pinned(self, num_ticks: int) -> "Moshi":
        """Return the same model whose sessions keep their first frames readable.

        The kept frames are the initial frame and ``num_ticks`` more. The two models share their
        weights. Compile the new model, not the old one.

        Raises:
            UserError: The window is too short.
        """
        window = self.config.temporal.window
        if not 0 <= num_ticks < window - 1:
            raise UserError(
                f"Pinned frames must be 0 to {window - 2}, for a window of {window} frames: got "
                f"{num_ticks}."
            )
        weights = (*self.parameters(), *self.buffers())
        model = deepcopy(self, {id(weight): weight for weight in weights})
        model.temporal.config = replace(self.config.temporal, pinned_steps=num_ticks + 1)
        model.config = replace(self.config, temporal=model.temporal.config)
        return model


def _layout(config: MoshiConfig) -> Layout:
    """Return the layout: text, then audio; initial ids are one above the vocabularies."""
    text = Stream(
        name=TEXT,
        role=config.text_role,
        vocab_size=config.text_vocab_size,
        delay_ticks=config.text_delay_ticks,
        predicted=True,
        initial_id=config.text_vocab_size,
        padding_id=config.text_padding_id,
    )
    ends = accumulate(stream.depth for stream in config.audio)
    audio = [
        Stream(
            name=stream.name,
            role=stream.role,
            vocab_size=config.audio_vocab_size,
            depth=stream.depth,
            delay_ticks=stream.delay_ticks,
            predicted=end <= config.num_predicted,
            has_codebooks=True,
            initial_id=config.audio_vocab_size,
            codebook_sizes=stream.codebook_sizes,
        )
        for stream, end in zip(config.audio, ends, strict=True)
    ]
    return Layout(streams=(text, *audio), tick_hz=config.tick_hz)
