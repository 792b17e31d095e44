"""A stage of a hierarchy that learns its chunks: encoder, router, inner network, decoder.

    x = encoder(x)                            every step of the stage
    p = router(x), chunks begin where p >= .5 (`counterpoint.blocks.chunk`)
    z = inner(x at the first step of chunks)  the main network, or another stage
    x = decoder(spread(smooth(z)) + residual(x))

Whole rows and chunks of sessions use the same functions. A session keeps what the next step needs:
the step before it, and the newest smoothed chunk.

Source: H-Net (arXiv:2507.07955), section 2.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.block_grid import newest_steps
from counterpoint.blocks.chunk import (
    Chunks,
    Router,
    in_float32,
    lay_chunks,
    most_chunks,
    ratio_loss,
)
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.tracing import is_traced


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """Shape of a stage: of everything except the network that reads its chunks.

    Attributes:
        encoder: Tower before the chunks; its window is in steps of the stage.
        decoder: Tower after the chunks; as wide as the encoder.
        ratio: Number of steps that a chunk should have: N of the ratio loss.
        max_share: Largest number of chunks for each step, at every step of a document; a boundary
            that would exceed it is not made. The inner network is computed for this many chunks; 1
            allows every boundary and saves nothing.
    """

    encoder: TowerConfig
    decoder: TowerConfig
    ratio: float = 6.0
    max_share: float = 1.0

    def __post_init__(self) -> None:
        if self.encoder.width != self.decoder.width:
            raise UserError(
                "The encoder and the decoder of a stage must be equally wide: got widths of "
                f"{self.encoder.width} and {self.decoder.width}."
            )
        if self.ratio <= 1:
            raise UserError(f"`ratio` must be more than 1 step a chunk: got {self.ratio}.")
        if not 0 < self.max_share <= 1:
            raise UserError(f"`max_share` must be above 0 and at most 1: got {self.max_share}.")


class StageState(NamedTuple):
    """State of a session in a stage.

    Attributes:
        encoder: States of the encoder's layers.
        newest: The newest step after the encoder, with which the router compares the next one.
        begun: Number of chunks begun.
        inner: State of the inner stage, or of the layers of the main network.
        smoothed: The newest smoothed chunk, which further steps read.
        decoder: States of the decoder's layers.
    """

    encoder: tuple[MixerState, ...]
    newest: Float[Tensor, "B D"]
    begun: Int[Tensor, " B"]
    inner: Any
    smoothed: Float[Tensor, "B D"]
    decoder: tuple[MixerState, ...]


class Steps(NamedTuple):
    """The steps of a stage that are computed at once.

    Attributes:
        first: First step of each step's document, counted from the first step here.
        lengths: Number of real steps of each row; ``None`` means all.
        position: Number of steps that each session has read before; ``None`` for whole rows.
    """

    first: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"] | None
    position: Int[Tensor, " B"] | None

    def reach(self, tower: Tower) -> MixerReach:
        """Return what each step may read in a tower."""
        if self.position is None:
            return tower.reach(self.first)
        return tower.streaming_reach(self.position, self.first.shape[1], self.lengths)


Ratios = list[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]
"""Ratio loss and share of steps that begin chunks, for each row, outermost stage first."""


class Main(nn.Module):
    """The innermost network."""

    def __init__(self, config: TowerConfig, width: int) -> None:
        """Make a tower for steps that arrive with ``width`` features."""
        super().__init__()
        self.pad = _pad(config.width - width)
        self.tower = Tower(config)
        self.norm = RMSNorm(config.width)

    def initial_state(self, batch_size: int) -> tuple[MixerState, ...]:
        """Return the state before the first step."""
        return self.tower.initial_state(batch_size)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        steps: Steps,
        state: tuple[MixerState, ...] | None,
        ratios: Ratios,
    ) -> tuple[Float[Tensor, "B T D"], tuple[MixerState, ...] | None]:
        """Compute some steps; see `Stage.forward`."""
        y = self.norm(self.tower(_widened(x, self.pad), steps.reach(self.tower), state))
        return y[..., : x.shape[2]], state

    @property
    def chunk_steps(self) -> int:
        """Largest number of steps of one streaming call."""
        return self.tower.chunk_steps

    def flops_per_row(self, num_steps: int) -> float:
        """Return the forward FLOPs of a row of so many steps."""
        return num_steps * self.tower.flops_per_step(num_steps)


class Stage(nn.Module):
    """An encoder, a router, the network that reads the chunks, and a decoder."""

    def __init__(self, stages: tuple[StageConfig, ...], main: TowerConfig, came: int) -> None:
        """Make a stage and everything inside it.

        Args:
            stages: Shapes of this stage and of the stages inside it, outermost first.
            main: Tower over the chunks of the innermost stage.
            came: Number of features of the steps that arrive; this stage may be wider.
        """
        super().__init__()
        self.config = stages[0]
        width = self.config.encoder.width
        self.pad = _pad(width - came)
        self.encoder = Tower(self.config.encoder)
        self.encoder_norm = RMSNorm(width)
        self.router = Router(width)
        self.residual = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.residual.weight)
        inner = stages[1:]
        self.inner: Stage | Main = Stage(inner, main, width) if inner else Main(main, width)
        self.decoder = Tower(self.config.decoder)
        self.decoder_norm = RMSNorm(width)

    def initial_state(self, batch_size: int) -> StageState:
        """Return the state before the first step."""
        like = self.encoder_norm.weight
        return StageState(
            encoder=self.encoder.initial_state(batch_size),
            newest=like.new_zeros(batch_size, len(like)),
            begun=torch.zeros(batch_size, dtype=torch.long, device=like.device),
            inner=self.inner.initial_state(batch_size),
            smoothed=like.new_zeros(batch_size, len(like), dtype=torch.float32),
            decoder=self.decoder.initial_state(batch_size),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        steps: Steps,
        state: StageState | None,
        ratios: Ratios,
    ) -> tuple[Float[Tensor, "B T D"], StageState | None]:
        """Compute some steps.

        Args:
            x: Steps, no wider than the stage.
            steps: Where the documents of the steps begin, and which steps are real.
            state: State of sessions, whose rings are written in place; ``None`` for whole rows.
            ratios: List to which the ratio losses of this stage and of those inside it are
                appended.

        Returns:
            The steps, as wide as they arrived, and the new state.
        """
        width = x.shape[2]
        x = _widened(x, self.pad)
        encoder, decoder = (None, None) if state is None else (state.encoder, state.decoder)
        x = self.encoder_norm(self.encoder(x, steps.reach(self.encoder), encoder))
        before = torch.zeros_like(x[:, 0]) if state is None else state.newest
        chunks = lay_chunks(
            self.router(x, before),
            steps.first,
            lengths=steps.lengths,
            begun=None if state is None else state.begun,
            share=self.config.max_share,
        )
        if state is None:
            ratios.append(ratio_loss(chunks, steps.lengths, self.config.ratio))
        smoothed, inner = self._read_chunks(x, chunks, state, ratios)
        # The sum is computed in float32.
        y = (chunks.spread(smoothed) + in_float32(self.residual, x)).to(x.dtype)
        y = self.decoder_norm(self.decoder(y, steps.reach(self.decoder), decoder))
        y = y[..., :width]
        if state is None:
            return y, None
        newest = newest_steps(torch.cat((before[:, None].to(x.dtype), x), 1), 1, steps.lengths)
        after = state._replace(
            newest=newest[:, 0],
            begun=state.begun + chunks.number,
            inner=inner,
            smoothed=chunks.newest(smoothed),
        )
        return y, after

    def _read_chunks(
        self, x: Float[Tensor, "B T D"], chunks: Chunks, state: StageState | None, ratios: Ratios
    ) -> tuple[Float[Tensor, "B W1 D"], Any]:
        """Return the newest smoothed chunk before, then those of these steps; and the new state."""
        if state is None:
            none = torch.zeros_like(x[:, 0])
            y, _ = self.inner(
                chunks.select(x), Steps(chunks.first, chunks.number, None), None, ratios
            )
            return chunks.smooth(y, none), None
        on_host = x.device.type == "cpu" and not is_traced()
        if on_host and not chunks.number.any():
            return state.smoothed[:, None], state.inner
        steps = Steps(chunks.first, chunks.number, state.begun)
        y, inner = self.inner(chunks.select(x), steps, state.inner, ratios)
        return chunks.smooth(y, state.smoothed), inner

    @property
    def chunk_steps(self) -> int:
        """Largest number of steps of one streaming call; each step may begin a chunk."""
        own = min(self.encoder.chunk_steps, self.decoder.chunk_steps)
        return min(own, self.inner.chunk_steps)

    def flops_per_row(self, num_steps: int) -> float:
        """Return the forward FLOPs of a row of so many steps."""
        maps = (self.router.query, self.router.key, self.residual)
        a_step = 2.0 * sum(linear.weight.numel() for linear in maps)
        a_step += self.encoder.flops_per_step(num_steps) + self.decoder.flops_per_step(num_steps)
        inner = self.inner.flops_per_row(most_chunks(num_steps, self.config.max_share))
        return num_steps * a_step + inner


def _pad(missing: int) -> nn.Parameter | None:
    """Return the vector that widens the steps that enter a wider network; zeros at first."""
    return nn.Parameter(torch.zeros(missing)) if missing else None


def _widened(x: Float[Tensor, "B T D"], pad: Tensor | None) -> Float[Tensor, "B T D2"]:
    if pad is None:
        return x
    return torch.cat((x, pad.to(x.dtype).expand(*x.shape[:-1], -1)), -1)
