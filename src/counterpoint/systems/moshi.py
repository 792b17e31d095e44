"""Moshi: text and audio codebooks of several speakers, one frame a tick.

Source: Moshi (arXiv:2410.00037), sections 3.4 (architecture, delays, inner monologue) and 4.4
(loss). A temporal transformer reads the sum of all elements of a frame; a depth transformer writes
the next frame element by element: text, then the codebooks. Of the reference implementation's
options, per-step weight schedules and low-rank depth embeddings are here.
Deviations: weights start as in the other systems (Moshi's own initialisation is another); the last
slots of delayed streams are cut, as in the reference, so that every row keeps its length.
Checked against: the `moshi` package with the same weights, training logits and streamed tokens
(`tests/systems/test_moshi_reference.py`); names and parameter counts of the published 7B model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache
from counterpoint.blocks.depth import CodebookEmbedding, DepthConfig, DepthDecoder, Past
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.formats.moshi.names import load_reference, reference_names, to_reference
from counterpoint.streams.batch import Batch
from counterpoint.streams.delay import delay
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Logits, Loss, in_chunks, state_bytes
from counterpoint.systems.moshi_streams import TEXT, MoshiConfig, two_speakers

Choose = Callable[[str, int, Float[Tensor, "B V"]], Int[Tensor, " B"]]
"""Gives the ids of an element of a frame: of a stream, a codebook of it, and its scores."""


def tiny() -> MoshiConfig:
    """2M parameters, two speakers with four codebooks each, both predicted."""
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
    """The published model (Table 1): 7.7B parameters; 8.4B with both speakers, 16, predicted."""
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
    """What a session carries: frames read, and the caches of the temporal transformer."""

    position: Int[Tensor, " B"]
    caches: tuple[Cache, ...]


class StreamLoss(NamedTuple):
    """What the targets of a stream cost, as sums that add up over batches.

    ``num_frames`` counts a frame by the share of its codebooks that carry loss.
    """

    num_frames: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    weighted_nats: Float[Tensor, ""]
    weight: Float[Tensor, ""]


def add_losses(losses: Sequence[StreamLoss]) -> StreamLoss:
    """The sums of a stream over several batches."""
    return StreamLoss(*(torch.stack(values).sum(0) for values in zip(*losses, strict=True)))


def joint_loss(losses: Mapping[str, StreamLoss]) -> Loss:
    """The loss of a batch, or of many whose sums are added up; see `Moshi.loss`."""
    nothing = losses[TEXT].nats.new_zeros(())
    # A kind without streams is left out: a total that equals a term would, compiled, share its
    # memory and lose its gradient (torch 2.13).
    terms, means = dict.fromkeys((TEXT, "audio"), nothing), []
    for kind in terms:
        own = [loss for name, loss in losses.items() if (name == TEXT) == (kind == TEXT)]
        if not own:
            continue
        weighted_nats = sum((loss.weighted_nats for loss in own), nothing)
        weight = sum((loss.weight for loss in own), nothing)
        # Where nothing carries loss both sums are zero.
        mean = weighted_nats / weight.clamp(min=1e-9)
        means.append(mean)
        terms[kind] = mean.detach()
    for name, loss in losses.items():
        terms[f"{name}_nats"] = (loss.nats / loss.num_frames.clamp(min=1e-9)).detach()
    nats = sum((loss.nats for loss in losses.values()), nothing)
    return Loss(total=sum(means[1:], means[0]), nats=nats, terms=terms)


class Moshi(nn.Module):
    """A model over a text stream and audio streams.

    Ids of the text are (B, T), of an audio stream (B, T, K) with a codebook axis also for K = 1.
    The initial ids, one above the vocabulary, stand where a stream has not begun; `UNSET_ID`
    embeds to zero and carries no loss.
    """

    Config = MoshiConfig

    def __init__(self, config: MoshiConfig) -> None:
        """Random weights; the heads start at zero, so the first loss is that of fair dice."""
        super().__init__()
        self.config = config
        text = Stream(
            name=TEXT,
            role=config.text_role,
            vocab_size=config.text_vocab_size,
            delay_ticks=config.text_delay_ticks,
        )
        self.audio = tuple(
            Stream(
                name=stream.name,
                role=stream.role,
                vocab_size=config.audio_vocab_size,
                depth=stream.depth,
                delay_ticks=stream.delay_ticks,
            )
            for stream in config.audio
        )
        self.layout = Layout(streams=(text, *self.audio), tick_hz=config.tick_hz)
        ends = accumulate(stream.depth for stream in self.audio)
        self.predicted = tuple(
            stream
            for stream, end in zip(self.audio, ends, strict=True)
            if end <= config.num_predicted
        )
        width = config.temporal.width
        text_ids, audio_ids = config.text_vocab_size + 1, config.audio_vocab_size + 1
        self.text_embedding = CodebookEmbedding(1, text_ids, width)
        self.audio_embedding = CodebookEmbedding(config.num_codebooks, audio_ids, width)
        with torch.no_grad():  # their sum has unit variance
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
        """Scores of the predicted codebooks ``first, first + 1, ...`` without ids they have not."""
        sizes = self.config.codebook_sizes[first : first + scores.shape[1]]
        if min(sizes) == scores.shape[2]:
            return scores
        ids = torch.arange(scores.shape[2], device=scores.device)
        absent = ids >= torch.tensor(sizes, device=scores.device)[:, None]
        return scores.masked_fill(absent, -torch.inf)

    # Offline

    @property
    def initial_ids(self) -> dict[str, int]:
        """Id that stands before a stream's first element, by stream."""
        return {stream.name: stream.vocab_size or 0 for stream in self.layout.streams}

    def initial_frame(self, batch_size: int) -> Ticks:
        """The frame that every session reads first: a tick of initial ids."""
        device = self.text_embedding.table.weight.device  # the head may be stored in 8 bits
        return {
            stream.name: torch.full(
                (batch_size, 1) if stream.name == TEXT else (batch_size, 1, stream.depth),
                self.initial_ids[stream.name],
                device=device,
            )
            for stream in self.layout.streams
        }

    def frames(self, codes: Ticks) -> Ticks:
        """Frames in order of arrival: streams delayed behind a frame of initial ids.

        Args:
            codes: Elements in content order, of all streams; or of the text alone, beside which
                the audio is then unset.

        Returns:
            For T ticks of codes and delays of up to D, 1 + T + D frames. The last D of them are of
            the late streams alone, and `UNSET_ID` elsewhere.

        Raises:
            ValueError: Streams are missing, or an id or a shape does not fit.
        """
        self._check(codes)
        text = codes[TEXT]
        for stream in self.audio:
            codes = {stream.name: text.new_full((*text.shape, stream.depth), UNSET_ID), **codes}
        late, first = delay(codes, self.layout, self.initial_ids), self.initial_frame(len(text))
        return {name: torch.cat((first[name].to(ids.device), ids), 1) for name, ids in late.items()}

    def batch(self, codes: Ticks, num_prompt: int = 0) -> Batch:
        """One document a row, as `forward` and `loss` read it; codes as for `frames`.

        ``targets`` are the frames behind those of ``ticks``. Where only the late streams go on the
        document is cut, as in the reference. Text alone trains the text alone. The first
        ``num_prompt`` ticks of content carry no loss. The size of the batch counts the others.
        """
        written = [TEXT, *(stream.name for stream in self.predicted if stream.name in codes)]
        frames, num_ticks = self.frames(codes), codes[TEXT].shape[1]
        unset = {name: ids.clone() for name, ids in codes.items()}
        for ids in unset.values():
            ids[:, :num_prompt] = UNSET_ID
        trained = self.frames(unset)
        return Batch(
            ticks={name: ids[:, :num_ticks] for name, ids in frames.items()},
            targets={name: trained[name][:, 1 : num_ticks + 1] for name in written},
            elements={name: frames[name][:, 1 : num_ticks + 1] for name in written},
            document_start=torch.zeros_like(codes[TEXT]),
            size=len(codes[TEXT]) * (num_ticks - num_prompt),
            unit="frame",
        )

    def _check(self, codes: Ticks) -> None:
        names = [stream.name for stream in self.layout.streams]
        if set(codes) not in ({TEXT}, set(names)):
            raise ValueError(
                f"Codes must be given for all streams ({', '.join(names)}) or for {TEXT!r} alone: "
                f"got {', '.join(codes)}."
            )
        sizes = {stream.name: stream.codebook_sizes for stream in self.config.audio}
        for name, ids in codes.items():
            stream, most = self.layout[name], self.initial_ids[name]
            shape = codes[TEXT].shape if name == TEXT else (*codes[TEXT].shape, stream.depth)
            if ids.shape != shape:
                raise ValueError(
                    f"Codes of {name!r} must have the shape {tuple(shape)}: got {tuple(ids.shape)}."
                )
            stop = torch.tensor(sizes.get(name) or most, device=ids.device)
            if ((ids < UNSET_ID) | (ids >= stop)).any():
                raise ValueError(
                    f"Ids of {name!r} must be {UNSET_ID} (unset) to {(stop - 1).tolist()}: got "
                    f"{int(ids.min())} to {int(ids.max())}."
                )

    def forward(self, batch: Batch) -> Logits:
        """Score the next frame at every tick; see `System.forward`.

        Each element is scored after the elements before it in ``batch.elements``. Without audio
        targets only the text is scored.
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
        """Frames, in training without some of the heard elements; see `heard_dropout`."""
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
        """The sum of the embeddings of all elements of a frame."""
        codes = torch.cat([ticks[stream.name] for stream in self.audio], -1)
        text = self.text_embedding(ticks[TEXT][..., None])
        return text.sum(-2) + self.audio_embedding(codes).sum(-2)

    def loss(self, batch: Batch) -> Loss:
        """Text and audio cross-entropies, each divided by the sum of its targets' weights.

        ``terms`` hold the two, and the nats a frame of every stream.
        """
        # Not `self(batch)`: distributed training has prepared the weights for this call already,
        # and warns of outputs that are views.
        return joint_loss(self.stream_losses(batch, self.forward(batch)))

    def stream_losses(self, batch: Batch, scores: Logits) -> dict[str, StreamLoss]:
        """What `loss` is made of, by stream. Initial ids and `UNSET_ID` carry no loss.

        Args:
            batch: With the targets.
            scores: What `forward` gave for it.
        """
        weights = {stream.name: stream.loss_weight for stream in self.config.audio}
        losses = {}
        for name, logits in scores.items():
            targets = batch.targets[name]
            counted = (targets >= 0) & (targets < logits.shape[-1])
            nats = _nats(logits, targets.masked_fill(~counted, UNSET_ID))
            weight = counted * weights.get(name, 1.0)
            if name == TEXT:
                light = torch.tensor(self.config.text_light_ids, device=targets.device)
                is_light = torch.isin(targets, light)
                weight = torch.where(is_light, self.config.text_light_weight * weight, weight)
            losses[name] = StreamLoss(
                num_frames=counted.sum() / (logits.shape[2] if logits.ndim == 4 else 1),
                nats=nats.sum(),
                weighted_nats=(nats * weight).sum(),
                weight=weight.sum(),
            )
        return losses

    # Streaming

    def initial_state(self, batch_size: int) -> MoshiState:
        """State before the first frame; see `System.initial_state`."""
        device = self.text_embedding.table.weight.device
        none = torch.zeros(batch_size, dtype=torch.long, device=device)
        return MoshiState(none, self.temporal.initial_state(batch_size))

    def extend(
        self, ticks: Ticks, state: MoshiState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Logits, MoshiState]:
        """Read some more frames and score the next text; see `System.extend`."""
        z, state = self.read(ticks, state, lengths)
        return {TEXT: self.head(z)}, state

    def read(
        self, ticks: Ticks, state: MoshiState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        """Read some more frames, as `extend` does; `initial_frame` is the first of a session.

        Returns:
            What `write` needs to write the frame behind each, and the new state.
        """
        z, state = in_chunks(self._read_chunk, self.temporal.chunk_steps, ticks, state, lengths)
        return z["z"], state

    def read_embedded(
        self, x: Float[Tensor, "B T D"], state: MoshiState
    ) -> tuple[Float[Tensor, "B T D"], MoshiState]:
        """Read some more frames that `embed` has summed up; see `read`."""
        z, state = in_chunks(self._read_sums, self.temporal.chunk_steps, {"x": x}, state, None)
        return z["z"], state

    def _read_chunk(
        self, ticks: Ticks, state: MoshiState, lengths: Tensor | None
    ) -> tuple[Mapping[str, Tensor], MoshiState]:
        return self._read_sums({"x": self.embed(ticks)}, state, lengths)

    def _read_sums(
        self, sums: Mapping[str, Tensor], state: MoshiState, lengths: Tensor | None
    ) -> tuple[Mapping[str, Tensor], MoshiState]:
        x = sums["x"]
        num_ticks = x.shape[1]
        reach = self.temporal.streaming_reach(state.position, num_ticks, lengths)
        z = self.norm(self.temporal(x, reach, state.caches))
        position = state.position + (num_ticks if lengths is None else lengths)
        return {"z": z}, MoshiState(position, state.caches)

    def write(self, z: Float[Tensor, "B D"], choose: Choose) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next frame of every row, element by element: the text, then the codebooks.

        Args:
            z: One tick of what `read` returned.
            choose: Gives the ids of each element; what it gives is what later elements see.

        Returns:
            The frame by stream: text (B,), audio (B, K).
        """
        previous = choose(TEXT, 0, self.head(z))
        frame = {TEXT: previous}
        past: tuple[Past, ...] | None = None
        num_done = 0
        for stream in self.predicted:
            codes = []
            for codebook in range(stream.depth):
                logits, past = self.depth(z, previous[:, None], past)
                scores = self._limited(logits, num_done)[:, 0]
                previous = choose(stream.name, codebook, scores)
                num_done += 1
                codes.append(previous)
            frame[stream.name] = torch.stack(codes, -1)
        return frame

    # Costs

    def flops_per_tick(self, num_ticks: int, *, training: bool = False) -> float:
        """Forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        head = 2 * self.config.temporal.width * self.config.text_vocab_size
        forward = self.temporal.flops_per_step(num_ticks) + head
        return (forward + self.depth.flops_per_frame()) * (3 if training else 1)

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """State bytes a tick; see `System.state_bytes_per_tick`."""
        return state_bytes(self.initial_state(1)) / num_ticks

    def shard_units(self) -> list[nn.Module]:
        """Modules that distributed training shards one by one."""
        return [*self.temporal.layers, *self.depth.layers]

    # Weights

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of the reference implementation, by its names with split steps.

        Raises:
            ValueError: A weight is missing, unknown or of another shape.
        """
        heads = self.config.temporal.num_heads
        load_reference(self.state_dict(), state_dict, self._reference_names(), heads)

    def reference_state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of the reference implementation."""
        heads = self.config.temporal.num_heads
        return to_reference(self.state_dict(), self._reference_names(), heads)

    def _reference_names(self) -> dict[str, tuple[str, ...]]:
        config = self.config
        return reference_names(
            config.temporal.num_layers, config.depth, config.num_codebooks, config.num_predicted
        )

    def trimmed(self, num_predicted: int) -> "Moshi":
        """The same model without the depth steps of its last codebooks.

        What it predicts of the others is the same, for the steps of a frame see only those before
        them. The two models share the weights that stay whole.

        Raises:
            ValueError: The model does not predict that many codebooks.
        """
        config = self.config
        if num_predicted > config.num_predicted:
            raise ValueError(
                f"`num_predicted` must be at most {config.num_predicted}: got {num_predicted}."
            )
        depth = replace(config.depth, schedule=config.depth.schedule[:num_predicted])
        with torch.device("meta"):
            model = Moshi(replace(config, depth=depth, num_predicted=num_predicted))
        weights = self.state_dict()
        for name, weight in model.state_dict().items():
            if weights[name].shape != weight.shape:  # steps are stacked: the first ones stay
                weights[name] = weights[name][: len(weight)].clone()
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)


def _nats(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Nats of each target, in float32; 0 at `UNSET_ID`."""
    nats = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=UNSET_ID, reduction="none"
    )
    return nats.view_as(targets)
