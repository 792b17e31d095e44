"""H-Net (arXiv:2507.07955): a hierarchy that learns where its chunks begin.

`counterpoint.blocks.stage` has the stages, which are nested, and `counterpoint.blocks.chunk` has
the chunker. A chunk is the vector of its first step. It exists from that step on, and the decoder
of the stage reads it there, so a boundary at a step depends only on the steps up to it.

Implemented: section 2.1 (stages, widths that grow inwards by a learned vector), 2.2 (routing,
selection, smoothing, straight-through confidence, ratio loss), 2.3 (a norm after every network,
the residual in float32 that starts at zero, learning rates by stage: `lr_factors`).

Deviations. Encoders and decoders are attention with gated MLPs, not Mamba-2; every system here has
the same short convolution after the embedding, which does the local mixing that Mamba-2 would do.
The residual has no bias. The ratio loss is the mean over rows, so that its sums add up over parts
of a batch; the published code multiplies the means over the whole batch of a device. Weights of
smoothing are not clamped to 1e-4 .. 1 - 1e-4, which changes the first chunk by 1e-4 of itself. The
share of steps that begin a chunk can be limited (``max_share``), so that the rows of the main
network have a fixed length; in the published code their length depends on the batch.

Checked against: `RoutingModule`, `ChunkLayer`, `DeChunkLayer` and `load_balancing_loss` of
goombalab/hnet on the same numbers (`tests/blocks/test_chunk.py`), outputs and gradients of its
class `HNet` with simple networks in place of Mamba-2 (`tests/systems/test_hnet.py`), and the rule
of visibility (`tests/systems/test_contract.py`).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.convolution import CausalConvolution, check_taps
from counterpoint.blocks.loss_sums import LossSums, row_losses
from counterpoint.blocks.stage import Ratios, Stage, StageConfig, StageState, Steps
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Role, Stream, Ticks, coarse_stream
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    check_same_tick,
    in_chunks,
    map_state,
)

GPT_CHUNK = 4.6
"""Mean number of bytes in a GPT-2 token, by which the paper scales its learning rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HNetConfig(SystemConfig):
    """Shape of an `HNet`.

    Attributes:
        stages: Shapes of the stages, outermost first: chunks, chunks of chunks, and so on.
        main: Tower over the chunks of the innermost stage.
        ratio_weight: Weight of the ratio losses, which are summed over stages.
        vocab_size: Number of ids of the part stream.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
    """

    stages: tuple[StageConfig, ...]
    main: TowerConfig
    ratio_weight: float = 0.03
    vocab_size: int = 258
    conv_taps: int = 4

    def __post_init__(self) -> None:
        check_taps(self.conv_taps)
        if not self.stages:
            raise UserError("`stages` must be one or more: got none. `SingleStream` has none.")
        widths = self.widths
        if list(widths) != sorted(widths):
            raise UserError(f"Widths must not shrink from stage to stage: got {widths}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the stages, outermost first, and of the main network."""
        return (*(stage.encoder.width for stage in self.stages), self.main.width)


def tiny() -> HNetConfig:
    """Return a model of 2.5M parameters, which trains on a laptop in two minutes."""
    outer = TowerConfig(width=112, num_layers=2, num_heads=4, mlp_hidden=304, window=32)
    return HNetConfig(
        stages=(StageConfig(encoder=outer, decoder=outer, max_share=1 / 3),),
        main=TowerConfig(width=192, num_layers=4, num_heads=4, mlp_hidden=512, window=64),
    )


def small() -> HNetConfig:
    """Return a model of about 27M parameters, with one stage."""
    outer = TowerConfig(width=384, num_layers=3, num_heads=6, mlp_hidden=1024, window=256)
    return HNetConfig(
        stages=(StageConfig(encoder=outer, decoder=outer, max_share=1 / 3),),
        main=TowerConfig(width=512, num_layers=5, num_heads=8, mlp_hidden=1376, window=512),
    )


def small_two_stages() -> HNetConfig:
    """Return a model of about 28M parameters, with chunks of chunks."""
    outer = TowerConfig(width=320, num_layers=3, num_heads=5, mlp_hidden=864, window=256)
    middle = TowerConfig(width=384, num_layers=2, num_heads=6, mlp_hidden=1024, window=256)
    return HNetConfig(
        stages=(
            StageConfig(encoder=outer, decoder=outer, ratio=3.0, max_share=0.5),
            StageConfig(encoder=middle, decoder=middle, ratio=3.0, max_share=0.5),
        ),
        main=TowerConfig(width=512, num_layers=4, num_heads=8, mlp_hidden=1376, window=256),
    )


def lr_factors(config: HNetConfig, gpt_chunk: float = GPT_CHUNK) -> tuple[tuple[str, float], ...]:
    """Return the factors of the learning rate by stage, for `OptimizerConfig.lr_factors`.

    The factor of stage s is ``sqrt(gpt_chunk * (share of ticks that reach it) * D_main / D_s)``:
    a rate grows with the root of the batch size and falls with the root of the width.

    Args:
        config: Shape of the system.
        gpt_chunk: Mean number of bytes in a token of the model whose learning rate was tuned; 1 if
            it was tuned on bytes.

    Source: H-Net, section 2.3.2.
    """
    factors: list[tuple[str, float]] = []
    ticks = 1.0
    for number, width in enumerate(config.widths):
        prefix = "stage." + "inner." * number if number else ""
        factors.append((prefix, math.sqrt(gpt_chunk / ticks * config.main.width / width)))
        if number < len(config.stages):
            ticks *= config.stages[number].ratio
    return tuple(factors)


class HNetState(NamedTuple):
    """State of a session: ticks read, the last steps of the convolution, the outermost stage."""

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    stage: StageState


class HNet(System):
    """A causal language model over one stream named ``part``, in chunks that it learns."""

    Config = HNetConfig
    config: HNetConfig

    def __init__(self, config: HNetConfig) -> None:
        """Make random weights; the head starts at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = _layout(config)
        width = config.widths[0]
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.conv = CausalConvolution(width, config.conv_taps)
        self.stage = Stage(config.stages, config.main, width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)

    # Offline

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick; see `System.forward`."""
        x, _ = self._read_rows(batch)
        return {"part": self.head(x)}

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Return the loss sums of the targets and of the ratios, and values to log.

        The groups ``share_1`` and so on are the shares of steps that begin chunks, by stage; their
        weight is 0. See `System.losses`.
        """
        x, ratios = self._read_rows(batch)
        losses = self.stream_losses(batch, {"part": self.head(x)})
        weight = losses["part"].weight
        total = torch.stack([loss for loss, _ in ratios]).sum(0)
        losses["ratio"] = row_losses(total, batch, weight)
        for number, (_, share) in enumerate(ratios, 1):
            losses[f"share_{number}"] = row_losses(share, batch, weight)
        return losses

    def loss_factor(self, group: str) -> float:
        """Return the weight of a group of losses; see `System.loss_factor`."""
        if group.startswith("share_"):
            return 0.0
        return self.config.ratio_weight if group == "ratio" else 1.0

    def _read_rows(self, batch: Batch) -> tuple[Float[Tensor, "B T D"], Ratios]:
        """Return the states of whole rows after the outermost decoder, and the ratios."""
        ids = batch.ticks["part"]
        start = batch.document_start
        age = torch.arange(ids.shape[1], device=ids.device) - start
        x, _ = self.conv(self.embedding(ids), age=age)
        ratios: Ratios = []
        x, _ = self.stage(x, Steps(start, batch.lengths, None), None, ratios)
        return x, ratios

    # Streaming

    @property
    def window_ticks(self) -> int:
        """Reach of the furthest tower, in ticks, if chunks have the intended length.

        Chunks may be of any length, so there is no bound. See `System.window_ticks`.
        """
        ticks = 1.0
        reached: list[float] = []
        for stage in self.config.stages:
            reached += [ticks * stage.encoder.window, ticks * stage.decoder.window]
            ticks *= stage.ratio
        return int(max(*reached, ticks * self.config.main.window))

    def initial_state(self, batch_size: int) -> HNetState:
        """Return the state before the first tick; see `System.initial_state`."""
        return HNetState(
            position=torch.zeros(batch_size, dtype=torch.long, device=self.device),
            conv=self.conv.initial_state(batch_size),
            stage=self.stage.initial_state(batch_size),
        )

    def read(
        self, ticks: Ticks, state: HNetState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], HNetState]:
        """Read the next ticks; see `System.read`."""
        return in_chunks(self._read_chunk, self.stage.chunk_steps, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: HNetState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], HNetState]:
        ids = ticks["part"]
        num_ticks = ids.shape[1]
        x, conv = self.conv(self.embedding(ids), state.conv, lengths=lengths)
        first = -state.position[:, None].expand(-1, num_ticks)
        x, stage = self.stage(x, Steps(first, lengths, state.position), state.stage, [])
        position = state.position + (num_ticks if lengths is None else lengths)
        return x, HNetState(position, conv, stage)

    def swap(self, state: HNetState, donor: HNetState) -> HNetState:
        """Exchange all that lies within the outermost stage; see `System.swap`.

        The chunks of the donor are read from now on, and its newest one at once; the encoder, the
        router and the decoder keep their own past.
        """
        check_same_tick(state.position, donor.position)
        theirs = map_state(torch.Tensor.clone, donor.stage)
        stage = state.stage._replace(
            begun=theirs.begun, inner=theirs.inner, smoothed=theirs.smoothed
        )
        return state._replace(stage=stage)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        """Write the next tick; see `System.write`."""
        return {"part": choose("part", 0, self.head(hidden))}

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`.

        Inner networks are counted for as many chunks as there is room for, which is what is
        computed: ``max_share`` of the steps, whatever the text.
        """
        forward = self.stage.flops_per_row(num_ticks) / num_ticks + 2 * self.head.weight.numel()
        return forward * (3 if training else 1)


def _layout(config: HNetConfig) -> Layout:
    """Return the part stream, and a stream for the chunks of each stage.

    A chunk is the vector of one tick, its first, and exists from that tick on; which ticks begin a
    chunk depends on the content.
    """
    part = Stream(name="part", role=Role.PART, vocab_size=config.vocab_size, predicted=True)
    chunks = (
        coarse_stream(f"chunks_{number}", width=width, period_ticks=1, lag_steps=0, irregular=True)
        for number, width in enumerate(config.widths[1:], 1)
    )
    return Layout(streams=(part, *chunks))
