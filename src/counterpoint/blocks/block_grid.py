"""The grid of blocks over a stream: where blocks end, and the steps of each.

A block ends after ``block_ticks`` steps, or early, after a step whose content says so (a space, a
full stop). Whether step t ends a block depends on steps up to t only. Chunks continue: steps count
from the first one of the chunk, so those that came before have negative numbers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class BlockGrid(NamedTuple):
    """The blocks that end within a chunk of steps.

    Attributes:
        finished: Blocks that end within the chunk at or before each step.
        place: Steps of the unfinished block that are in after each step; 0 where a block ends.
        end: Last step of each block (the chunk's last where a row has fewer blocks).
        step: The last R steps up to each block's end.
        real: Which of these belong to it: the rightmost.
    """

    finished: Int[Tensor, "B T"]
    place: Int[Tensor, "B T"]
    end: Int[Tensor, "B W"]
    step: Int[Tensor, "B W R"]
    real: Bool[Tensor, "B W R"]


def lay_blocks(
    ends_early: Bool[Tensor, "B T"] | None,
    start: Int[Tensor, "B T"],
    block_ticks: int,
    *,
    lengths: Int[Tensor, " B"] | None = None,
    counted: bool = True,
) -> BlockGrid:
    """Find the blocks of a chunk.

    Args:
        ends_early: Steps whose content ends a block; ``None`` where that cannot be.
        start: First step of each step's document; negative for the steps that are pending when a
            chunk continues a session.
        block_ticks: Steps of the longest block.
        lengths: Real steps of each row; ``None`` means all.
        counted: W is the most blocks that a row has, which reads from the device; otherwise, and in
            a compiled graph, the most that a row can have.
    """
    num_rows, num_steps = start.shape
    most = num_steps if ends_early is not None else (num_steps + block_ticks - 1) // block_ticks
    if ends_early is None:
        ends_early = torch.zeros_like(start, dtype=torch.bool)
    step = torch.arange(num_steps, device=start.device)
    before = start - 1
    since = step - torch.maximum(_latest(ends_early, before, exclusive=True), before)
    ends = ends_early | (since % block_ticks == 0)
    if lengths is not None:
        ends = ends & (step < lengths[:, None])
    finished = ends.cumsum(1)
    size = step - torch.maximum(_latest(ends, before, exclusive=True), before)
    place = step - torch.maximum(_latest(ends, before), before)
    place = place.clamp(max=block_ticks - 1)  # steps that are not real run on
    if counted and not torch.compiler.is_compiling():
        most = int(finished[:, -1].max())
    # Every end writes its own block's slot; all other steps share one slot that is cut off.
    number = torch.where(ends, finished - 1, most).clamp(max=most)
    end = step.new_full((num_rows, most + 1), num_steps - 1)
    end = end.scatter(1, number, step.expand(num_rows, -1))[:, :most]
    exists = torch.arange(most, device=step.device) < finished[:, -1:]
    size = size.gather(1, end) * exists
    slot = torch.arange(block_ticks, device=step.device)
    steps = end[..., None] - (block_ticks - 1) + slot
    return BlockGrid(finished, place, end, steps, slot >= block_ticks - size[..., None])


def _latest(
    ends: Bool[Tensor, "B T"], before: Int[Tensor, "B T"], *, exclusive: bool = False
) -> Int[Tensor, "B T"]:
    """The latest end at or before each step (before it, if exclusive), or less than all steps."""
    step = torch.arange(ends.shape[1], device=ends.device)
    lowest = torch.iinfo(before.dtype).min // 2
    latest = torch.where(ends, step, lowest).cummax(1).values
    if exclusive:
        latest = latest.roll(1, 1)
        latest[:, :1] = lowest
    return latest


def gather_blocks(
    x: Float[Tensor, "B T D"], grid: BlockGrid, pending: Float[Tensor, "B R D"], count: Tensor
) -> Float[Tensor, "B W R D"]:
    """The steps of each block, zero before its first.

    Args:
        x: Steps of the chunk.
        grid: Where its blocks lie.
        pending: Steps that came before the chunk, from the left.
        count: How many of them there are in each row; (B,).
    """
    steps = grid.step.flatten(1)
    blocks = _take(x, steps, pending, count).unflatten(1, grid.step.shape[1:])
    return blocks * grid.real[..., None]


def pending_steps(
    x: Float[Tensor, "B T D"],
    pending: Float[Tensor, "B R D"],
    count: Int[Tensor, " B"],
    length: Int[Tensor, " B"],
    place: Int[Tensor, " B"],
) -> Float[Tensor, "B R D"]:
    """The ``place`` steps before step ``length`` of each row, from the left: pending next."""
    steps = (length - place)[:, None] + torch.arange(pending.shape[1], device=x.device)
    return _take(x, steps, pending, count)


def _take(x: Tensor, steps: Tensor, pending: Tensor, count: Tensor) -> Tensor:
    """Steps of a chunk by number; negative ones are pending."""
    size = pending.shape[1]
    index = torch.where(steps < 0, steps + count[:, None], steps + size)
    index = index.clamp(0, size + x.shape[1] - 1)
    source = torch.cat((pending.to(x.dtype), x), 1)
    return source.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
