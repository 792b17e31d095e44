"""Ends of blocks that a model finds by itself, instead of ends at ids or after a fixed length."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.chunk import Chunks, Router, lay_chunks, most_chunks
from counterpoint.blocks.level_state import Start
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundariesConfig:
    """Shape of `Boundaries`.

    Attributes:
        ratio: Number of steps that a block should have on average; more than 1.
        loss_weight: Weight of the loss that draws the mean length of blocks to `ratio`.
        max_share: Largest number of ends for each step of a document; whole rows have room for this
            many blocks, whatever they contain.
    """

    ratio: float = 4.6
    loss_weight: float = 0.03
    max_share: float = 0.35

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise UserError(f"`ratio` of learned blocks must be more than 1: got {self.ratio}.")
        if not 1 / self.ratio <= self.max_share <= 1:
            raise UserError(
                f"`max_share` must be 1 / ratio = {1 / self.ratio:.3f} to 1, so that blocks of the "
                f"wanted length find room: got {self.max_share}."
            )

    def shortened(self, factor: float) -> "BoundariesConfig":
        """Return the same shape with blocks of ``factor`` times the length, and room for them."""
        share = min(self.max_share / factor, 1.0)
        return replace(self, ratio=self.ratio * factor, max_share=share)

    def most_blocks(self, num_steps: int, block_ticks: int) -> int:
        """Return the largest number of blocks that can end in whole rows, full ones included."""
        most = most_chunks(num_steps, self.max_share) + num_steps // block_ticks
        return min(most, num_steps)


def check_ends(
    boundary_ids: tuple[int, ...],
    learned: BoundariesConfig | None,
    usual_block_ticks: float | None,
    vocab_size: int,
) -> None:
    """Check where blocks end, at ids or where a router finds an end.

    Args:
        boundary_ids: Ids after which a block ends.
        learned: The router that finds ends, if there is one.
        usual_block_ticks: Expected mean length of a block, in ticks, if one is given.
        vocab_size: Number of ids.

    Raises:
        UserError: A boundary is no id, blocks end at ids and where a router finds an end, or their
            mean length is below one tick.
    """
    if usual_block_ticks is not None and usual_block_ticks < 1:
        raise UserError(f"`usual_block_ticks` must be >= 1 or None; got {usual_block_ticks}.")
    if not all(0 <= one < vocab_size for one in boundary_ids):
        raise UserError(f"`boundary_ids` must be ids, 0 to {vocab_size - 1}; got {boundary_ids}.")
    if boundary_ids and learned is not None:
        raise UserError(
            "Blocks must end at `boundary_ids` or where `learned_ends` finds an end: got both."
        )


class Boundaries(nn.Module):
    """A router that decides after which steps a block ends, from each step and the one before.

    The first step of a document ends no block. The decision is that of `counterpoint.blocks.chunk`
    about where chunks begin.
    """

    def __init__(self, width: int, config: BoundariesConfig) -> None:
        """Make the router of steps of ``width``."""
        super().__init__()
        self.config = config
        self.router = Router(width)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        start: Start,
        newest: Float[Tensor, "B D"] | None,
        found: Int[Tensor, " B"] | None,
        config: BoundariesConfig | None = None,
    ) -> tuple[Chunks, Bool[Tensor, "B T"]]:
        """Decide after which steps of a chunk a block ends.

        Args:
            x: Steps.
            start: Where the rows begin.
            newest: The step before the chunk; ``None`` for whole rows.
            found: `Chunks.number` of each session so far, summed up; ``None`` for whole rows.
            config: Another shape than that of the module, such as a shortened one.

        Returns:
            The decisions, and the steps after which a block ends. The first step of a document
            counts as a beginning in the former, but ends no block in the latter.
        """
        num_steps = x.shape[1]
        first = start.document
        if start.step is not None:
            first = -start.step[:, None].expand(-1, num_steps)
        if first is None:
            raise AssertionError("a chunk begins in a document or behind a step")
        before = torch.zeros_like(x[:, 0]) if newest is None else newest
        chunks = lay_chunks(
            self.router(x, before),
            first,
            lengths=start.lengths,
            begun=found,
            share=(config or self.config).max_share,
        )
        step = torch.arange(num_steps, device=x.device)
        return chunks, chunks.begins & (step != first)

    def products(self) -> int:
        """Return the multiply-adds of the matrix products of a step."""
        return self.router.query.weight.numel() + self.router.key.weight.numel()
