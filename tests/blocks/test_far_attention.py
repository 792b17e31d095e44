"""Strided attention and summary steps beside plain attention under masks of the definition."""

import math

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.far_attention import FarAttention, FarAttentionConfig
from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from tests.blocks.test_attention import documents

SHAPE = MixerShape(width=12, num_heads=2, window=5, capacity=9)


def ends(start: list[int], block_ticks: int) -> list[int]:
    """The last step of every block of a row."""
    return [step for step, first in enumerate(start) if (step - first + 1) % block_ticks == 0]


def mask_of(start: list[int], config: FarAttentionConfig, num_blocks: int) -> Tensor:
    """What each query of a row may read: steps, then summary steps; by definition."""
    size, kept, per_block = config.block_ticks, config.kept_blocks, config.num_summaries
    last = ends(start, size)
    num_steps = len(start)
    mask = torch.zeros(num_steps + num_blocks * per_block, num_steps + num_blocks * per_block)

    def place(block: int, summary: int) -> int:
        return num_steps + block * per_block + summary

    for step, first in enumerate(start):
        mask[step, max(first, step - SHAPE.window + 1) : step + 1] = 1
        age = 1 if per_block else SHAPE.window
        readable = [b for b, end in enumerate(last) if first <= end <= step - age][-kept:]
        for block in readable:
            if not per_block:
                mask[step, last[block]] = 1
            for summary in range(per_block):
                mask[step, place(block, summary)] = 1
    for block, end in enumerate(last):
        earlier = [b for b in range(block) if last[b] >= start[end]][-kept:]
        for summary in range(per_block):
            query = mask[place(block, summary)]
            query[end - size + 1 : end + 1] = 1
            for other in earlier:
                query[place(other, 0) : place(other, per_block)] = 1
            query[place(block, 0) : place(block, summary) + 1] = 1
    return mask > 0


def dense(block: FarAttention, x: Tensor, start: Tensor, config: FarAttentionConfig) -> Tensor:
    """Plain attention of one row under that mask."""
    num_steps = start.shape[1]
    last = ends(start[0].tolist(), config.block_ticks)
    num_blocks = num_steps // config.block_ticks
    last += [0] * (num_blocks - len(last))  # blocks that documents leave no room for
    position = torch.arange(num_steps).tolist()
    position += [end for end in last for _ in range(config.num_summaries)]
    q, k, v = block.qkv(x).unflatten(-1, (3, block.num_heads, -1)).unbind(-3)
    head_width = q.shape[-1]
    place = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angle = torch.tensor(position, dtype=torch.float64)[:, None] * 10_000.0**-place
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]

    def rotated(y: Tensor) -> Tensor:
        z = torch.complex(*y.chunk(2, -1)) * turn
        return torch.cat((z.real, z.imag), -1)

    scores = torch.einsum("bqhe,bkhe->bhqk", rotated(q), rotated(k)) / math.sqrt(head_width)
    mask = mask_of(start[0].tolist(), config, num_blocks)
    scores = scores.masked_fill(~mask, -1e9)
    return block.out(torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [3, 11, 60])
@pytest.mark.parametrize(
    ("block_ticks", "kept_blocks", "num_summaries"),
    [(4, 3, 0), (7, 2, 0), (1, 9, 0), (4, 3, 1), (5, 20, 2), (2, 1, 3)],
)
def test_every_step_reads_what_the_definition_says(
    num_steps: int, block_ticks: int, kept_blocks: int, num_summaries: int
) -> None:
    config = FarAttentionConfig(
        block_ticks=block_ticks, kept_blocks=kept_blocks, num_summaries=num_summaries
    )
    block = config.build(SHAPE)
    inserted = config.summary_steps(num_steps)
    for start in (torch.zeros(1, num_steps, dtype=torch.long), documents(1, num_steps)):
        x = torch.randn(1, num_steps + inserted, SHAPE.width)
        reach = config.reach(SHAPE, start)
        assert reach.num_blocks * num_summaries == inserted
        found = block(x, reach)
        real = len(ends(start[0].tolist(), block_ticks)) * num_summaries
        expected = dense(block, x, start, config)
        stop = num_steps + real
        torch.testing.assert_close(found[:, :stop], expected[:, :stop], rtol=0, atol=1e-5)


def test_a_step_reaches_its_window_and_the_kept_blocks() -> None:
    strided = FarAttentionConfig(block_ticks=4, kept_blocks=3)
    assert strided.reach_steps(SHAPE) == 5 + 4 * 4 - 1
    # The newest readable block may have ended just now or up to three steps ago.
    summaries = FarAttentionConfig(block_ticks=4, kept_blocks=3, num_summaries=1)
    assert summaries.reach_steps(SHAPE) == 1 + 4 * 4 - 1


@pytest.mark.parametrize(
    ("window", "pinned", "summaries", "message"),
    [(5, 2, 0, "Only plain attention can pin"), (3, 0, 1, "at most the window of 3")],
)
def test_shapes_that_cannot_be_are_refused(
    window: int, pinned: int, summaries: int, message: str
) -> None:
    config = FarAttentionConfig(block_ticks=4, kept_blocks=3, num_summaries=summaries)
    tower = TowerConfig(
        width=12, num_layers=1, num_heads=2, mlp_hidden=8, window=window, pinned_steps=pinned
    )
    with pytest.raises(UserError, match=message):
        config.build(tower.mixer_shape)
    with pytest.raises(UserError, match="kept_blocks"):
        FarAttentionConfig(block_ticks=4, kept_blocks=0)
