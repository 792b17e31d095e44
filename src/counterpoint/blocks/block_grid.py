"""The grid of blocks over a stream: where blocks end, and the steps of each.

A block ends after ``block_ticks`` steps, or earlier after a step whose content ends it (a space or
a full stop). Whether step t ends a block depends only on steps up to t. A chunk may continue a
session: steps are counted from the first step of the chunk, and earlier steps have negative
numbers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.tracing import is_traced


class BlockGrid(NamedTuple):
    """The blocks that end within a chunk of steps.

    Attributes:
        finished: Number of blocks that end within the chunk at or before each step.
        place: Number of steps of the unfinished block after each step; 0 where a block ends.
        end: Last step of each block; the chunk's last step if a row has fewer blocks.
        step: The last R steps up to the end of each block.
        real: True for those of the R steps that belong to the block: the rightmost ones.
        shortest: Smallest number of steps from one end to the next.
    """

    finished: Int[Tensor, "B T"]
    place: Int[Tensor, "B T"]
    end: Int[Tensor, "B W"]
    step: Int[Tensor, "B W R"]
    real: Bool[Tensor, "B W R"]
    shortest: int


def lay_blocks(
    ends_early: Bool[Tensor, "B T"] | None,
    start: Int[Tensor, "B T"],
    block_ticks: int,
    *,
    lengths: Int[Tensor, " B"] | None = None,
    counted: bool = True,
    most: int | None = None,
    longest: int | None = None,
) -> BlockGrid:
    """Find the blocks of a chunk.

    Args:
        ends_early: True at steps whose content ends a block; ``None`` if content never ends one.
        start: First step of the document of each step. It is negative for documents that began
            before the chunk, whose pending steps come from the session.
        block_ticks: Number of steps R that a block has room for.
        lengths: Number of real steps of each row; ``None`` means all.
        counted: Whether W is the largest number of blocks that a row has, which must be read from
            the device. Otherwise, and in a compiled graph, W is the largest possible number.
        most: The largest possible number, if it is known to be smaller; W is then never counted.
        longest: Smaller number of steps after which a block ends; ``None`` means ``block_ticks``.
    """
    num_rows, num_steps = start.shape
    longest = block_ticks if longest is None else longest
    counted = counted and most is None
    if most is None:
        most = num_steps if ends_early is not None else (num_steps + longest - 1) // longest
    shortest = longest if ends_early is None else 1
    if ends_early is None:
        ends_early = torch.zeros_like(start, dtype=torch.bool)
    step = torch.arange(num_steps, device=start.device)
    before = start - 1
    since = step - torch.maximum(_earlier(_latest(ends_early, step)), before)
    ends = ends_early | (since % longest == 0)
    if lengths is not None:
        ends = ends & (step < lengths[:, None])
    finished = ends.cumsum(1)
    latest = _latest(ends, step)
    size = step - torch.maximum(_earlier(latest), before)
    place = step - torch.maximum(latest, before)
    place = place.clamp(max=block_ticks - 1)  # padding steps would count on beyond a block
    if counted and not is_traced():
        most = int(finished[:, -1].max())
    # Every end writes the slot of its own block; all other steps share one slot, which is cut off.
    number = torch.where(ends, finished - 1, most).clamp(max=most)
    end = step.new_full((num_rows, most + 1), num_steps - 1)
    end = end.scatter(1, number, step.expand(num_rows, -1))[:, :most]
    exists = torch.arange(most, device=step.device) < finished[:, -1:]
    size = size.gather(1, end) * exists
    slot = torch.arange(block_ticks, device=step.device)
    steps = end[..., None] - (block_ticks - 1) + slot
    real = slot >= block_ticks - size[..., None]
    return BlockGrid(finished, place, end, steps, real, shortest)


_NEVER = -(1 << 62)
"""Number of a step that is earlier than all others."""


def _latest(ends: Bool[Tensor, "B T"], step: Int[Tensor, " T"]) -> Int[Tensor, "B T"]:
    """Return the latest end at or before each step, or `_NEVER`."""
    return torch.where(ends, step, _NEVER).cummax(1).values


def _earlier(latest: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return the latest end before each step."""
    return F.pad(latest, (1, 0), value=_NEVER)[:, :-1]


def gather_blocks(x: Float[Tensor, "B R_T D"], grid: BlockGrid) -> Float[Tensor, "B W R D"]:
    """Return the steps of each block, with zeros to the left of a block shorter than R.

    Args:
        x: The R steps before the chunk, followed by those of the chunk.
        grid: The blocks of the chunk.
    """
    index = (grid.step + grid.step.shape[2]).flatten(1)
    blocks = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return blocks.unflatten(1, grid.step.shape[1:]) * grid.real[..., None]


def spread_blocks(
    blocks: Float[Tensor, "B W R D"], grid: BlockGrid, num_steps: int
) -> Float[Tensor, "B T D"]:
    """Return the vector of each step of the blocks, and zeros at steps that no block has.

    This is the reverse of `gather_blocks` for whole rows.

    Args:
        blocks: A vector for each of the R places of W blocks.
        grid: Where the blocks stand.
        num_steps: Number of steps T of the rows.
    """
    flat = blocks.flatten(1, 2)
    return _put(grid, flat.new_zeros(len(flat), num_steps, flat.shape[2]), flat)


def is_in_block(grid: BlockGrid, num_steps: int) -> Bool[Tensor, "B T"]:
    """Return which steps of whole rows belong to a finished block."""
    real = grid.real.flatten(1)[..., None]
    return _put(grid, real.new_zeros(len(real), num_steps, 1), real)[..., 0]


def _put(grid: BlockGrid, into: Tensor, blocks: Tensor) -> Tensor:
    """Return steps with those of blocks written over them; one slot takes what is not real."""
    number = torch.where(grid.real, grid.step, into.shape[1]).flatten(1)
    index = number[..., None].expand(-1, -1, into.shape[2])
    return F.pad(into, (0, 0, 0, 1)).scatter(1, index, blocks)[:, :-1]


def newest_steps(
    x: Float[Tensor, "B R_T D"], size: int, lengths: Int[Tensor, " B"] | None
) -> Float[Tensor, "B R D"]:
    """Return the newest R steps of each row after a chunk: those that precede the next chunk.

    Args:
        x: The R steps before the chunk, followed by those of the chunk.
        size: R.
        lengths: Number of real steps of each row of the chunk; ``None`` means all.
    """
    if lengths is None:
        return x[:, -size:]
    index = lengths[:, None] + torch.arange(size, device=x.device)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
