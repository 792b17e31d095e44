"""Attention to a window of steps, and to a few keys of each block of steps before it.

The two variants are controls of every system with levels; their state grows by a few keys a block:

*Strided* attention keeps the last step of each block as it is, and reads it once it has left the
window. *Summary steps* are additional steps after every block: each reads its block and the
summaries before it, and later steps read the summary when they no longer read the block (the gist
mask). Summary steps go through the same layers as all other steps, so the caller of the tower
appends their embeddings to the steps of the chunk.

Source: the fixed pattern of sparse transformers (arXiv:1904.10509), with a sliding window in place
of its blocks; gist tokens (arXiv:2304.08467). Checked against: plain attention under a dense mask
over the sequence in which every summary step comes directly after its block
(`tests/blocks/test_far_attention.py`).
"""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import (
    Cache,
    attend,
    filled_slots,
    grouped_bias,
    in_groups,
    ring_steps,
    score_bias,
    with_previous,
    write_ring,
)
from counterpoint.blocks.block_grid import BlockGrid, lay_blocks
from counterpoint.blocks.key_groups import (
    KeyGroups,
    group_keys,
    keys_run,
    read_mask,
    read_scores,
    read_sums,
)
from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.errors import UserError
from counterpoint.streams.clock import (
    SEQUENCE,
    Span,
    finished_span,
    reach_ticks,
    span,
    span_mask,
    span_of_each,
)
from counterpoint.streams.spec import Layout, Stream, coarse_stream
from counterpoint.tracing import is_traced


class FarState(NamedTuple):
    """Keys and values of a session: those of the steps in the window, and those of the blocks."""

    near: Cache
    far: Cache


class FarReach(NamedTuple):
    """What the steps of a chunk may read.

    The far keys are numbered: first those of the first block, then those of the second, and so on.

    Attributes:
        cos: Cosines of the rotation of the T steps and of the N summary steps after them.
        sin: Sines of the same angles.
        num_steps: T.
        window: Number of most recent steps that a step reads, its own included.
        end: Last step of each block that may end in the chunk.
        bias: Bias to add to the scores; see `score_bias`. In whole rows the queries are the steps,
            filled up to whole groups of one window, and the keys are those of two groups and far
            ones. In a session the queries are steps and summary steps, and the keys are the
            slots of both rings.
        own: In whole rows, the steps of each block, which its summary steps read.
        own_bias: In whole rows, the bias of the summary steps: over their block and far keys.
        far_groups: Far keys for which groups of steps compute scores; ``None`` for all.
        own_groups: The same of the summary steps.
        near_slot: In a session, the slot of each step.
        far_slot: In a session, the slot of each far key of the chunk.
        limits: In a session, the number of slots of both rings that must be read.
    """

    cos: Float[Tensor, "B 1 T_N E"]
    sin: Float[Tensor, "B 1 T_N E"]
    num_steps: int
    window: int
    end: Int[Tensor, "B W"]
    bias: Float[Tensor, "B 1 Q K"]
    own: Int[Tensor, "B W R"] | None = None
    own_bias: Float[Tensor, "B 1 N K2"] | None = None
    far_groups: KeyGroups | None = None
    own_groups: KeyGroups | None = None
    near_slot: Int[Tensor, "B T"] | None = None
    far_slot: Int[Tensor, "B M"] | None = None
    limits: tuple[int, int] = (0, 0)

    @property
    def num_blocks(self) -> int:
        """Number of blocks whose summary steps come after the steps of the chunk."""
        return self.end.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class FarAttentionConfig:
    """Shape of `FarAttention` beyond that of its tower; a `MixerConfig`.

    Attributes:
        block_ticks: Number of steps of a block; blocks are counted from the start of the document.
        kept_blocks: Number of newest blocks that can be read.
        num_summaries: Number of summary steps of a block; 0 keeps the last step of the block
            instead, which is strided attention.
        rope: Rotary frequencies. A summary step has the position of the last step of its block.
    """

    block_ticks: int
    kept_blocks: int
    num_summaries: int = 0
    rope: RopeConfig = PLAIN_ROPE

    def __post_init__(self) -> None:
        for name, least in (("block_ticks", 1), ("kept_blocks", 1), ("num_summaries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be >= {least}: got {getattr(self, name)}.")

    def build(self, shape: MixerShape) -> "FarAttention":
        """Build the attention of one layer.

        Raises:
            UserError: The tower has pinned steps, or summary steps could not read their block.
        """
        if shape.num_pinned:
            raise UserError(
                "Only plain attention can pin steps: with blocks, `pinned_steps` must be 0, got "
                f"{shape.num_pinned}."
            )
        if self.num_summaries and self.block_ticks > shape.window:
            raise UserError(
                "A summary step reads its block, so `block_ticks` must be at most the window of "
                f"{shape.window} steps: got {self.block_ticks}."
            )
        return FarAttention(shape, self)

    def reach_steps(self, shape: MixerShape) -> int:
        """Return the number of most recent steps that a step reads, directly or as a block."""
        blocks = reach_ticks(_blocks(self.block_ticks), self.kept_blocks)
        return max(shape.window, self._age(shape) + blocks)

    def far_capacity(self, capacity: int) -> int:
        """Return the number of far keys in a state whose window holds ``capacity`` steps."""
        # Besides the kept blocks, there are those that have ended since the newest block that the
        # first step of a chunk may read; for strided attention that block ended a window ago.
        return (self.kept_blocks + -(-capacity // self.block_ticks)) * self._keys

    @property
    def _keys(self) -> int:
        """Number of far keys of a block."""
        return max(self.num_summaries, 1)

    @property
    def _summary_keys(self) -> int:
        """Largest number of far keys that a summary step reads: of kept blocks and of its own."""
        return (self.kept_blocks + 1) * self._keys

    def _age(self, shape: MixerShape) -> int:
        """Return how many steps after the end of a block its far keys are first read."""
        return 1 if self.num_summaries else shape.window

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> FarReach:
        """Return what each step of whole rows may read."""
        num_rows, num_steps = document_start.shape
        grid = _regular_grid(document_start, self.block_ticks)
        step = torch.arange(num_steps, device=document_start.device).expand(num_rows, -1)
        seen = span(
            SEQUENCE, "sequence", "sequence", step + 1, first=document_start, window=shape.window
        )
        near = grouped_bias(seen, shape.window)[:, :, 0].flatten(1, 2)[:, None]
        first = F.pad(grid.finished, (1, 0)).gather(1, document_start)
        ended = F.pad(grid.finished, (self._age(shape), 0))[:, :num_steps]
        readable = finished_span(ended, 0, first, self.kept_blocks)
        readable = Span(*(F.pad(edge, (0, -num_steps % shape.window)) for edge in readable))
        num_blocks = grid.end.shape[1]
        number = torch.arange(self._keys * num_blocks, device=step.device)[None]
        groups = group_keys(readable, num_blocks, self.kept_blocks, grid.shortest)
        groups = None if groups is None else groups.each(self._keys)
        far = score_bias(read_mask(span_of_each(readable, self._keys), number, groups))
        own_bias = None
        own_groups = None
        if self.num_summaries:
            block = torch.arange(num_blocks, device=step.device).expand_as(grid.end)
            earlier = self._summary_span(block, first.gather(1, grid.end))
            own_groups = group_keys(earlier, number.shape[1], self._summary_keys, 1)
            real = grid.real.repeat_interleave(self.num_summaries, 1)
            own_bias = score_bias(torch.cat((real, read_mask(earlier, number, own_groups)), 2))
        return FarReach(
            *self._rotation(shape, step, grid.end),
            num_steps=num_steps,
            window=shape.window,
            end=grid.end,
            bias=torch.cat((near, far), 3),
            own=grid.step.clamp(min=0),
            own_bias=own_bias,
            far_groups=groups,
            own_groups=own_groups,
        )

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> FarReach:
        """Return what each step of a chunk may read; see `MixerConfig.streaming_reach`."""
        step = position[:, None] + torch.arange(num_steps, device=position.device)
        end = position + (num_steps if lengths is None else lengths)
        clock = Layout(streams=(*SEQUENCE.streams, _blocks(self.block_ticks)))
        before = span(clock, "sequence", "blocks", position[:, None]).stop
        after = span(clock, "sequence", "blocks", end[:, None]).stop
        most = -(-num_steps // self.block_ticks)
        if len(position) == 1 and position.device.type == "cpu" and not is_traced():
            most = int(after - before)  # see `filled_slots`
        block = before + torch.arange(most, device=position.device)
        last = (block + 1) * self.block_ticks - 1
        capacities = shape.capacity, self.far_capacity(shape.capacity)
        ends = end, after[:, 0] * self._keys
        limits = (
            filled_slots(position + num_steps, capacities[0]),
            filled_slots(ends[1], capacities[1]),
        )
        held = [ring_steps(*ring) for ring in zip(ends, capacities, limits, strict=True)]
        near = span(SEQUENCE, "sequence", "sequence", step + 1, window=shape.window)
        oldest = (step + 1 - self._age(shape)).clamp(min=0)
        far = span(clock, "sequence", "blocks", oldest, window=self.kept_blocks)
        far = span_of_each(far, self._keys)
        mask = torch.cat((span_mask(near, held[0]), span_mask(far, held[1])), 2)
        if self.num_summaries:
            own = _repeated(Span(last + 1 - self.block_ticks, last + 1), self.num_summaries)
            earlier = self._summary_span(block, torch.zeros_like(block))
            both = torch.cat((span_mask(own, held[0]), span_mask(earlier, held[1])), 2)
            mask = torch.cat((mask, both), 1)
        real = (block < after).repeat_interleave(self._keys, 1)
        return FarReach(
            *self._rotation(shape, step, last),
            num_steps=num_steps,
            window=shape.window,
            end=(last - position[:, None]).clamp(max=num_steps - 1),
            bias=score_bias(mask),
            near_slot=torch.where(step < end[:, None], step % capacities[0], capacities[0]),
            far_slot=torch.where(real, self._numbers(block) % capacities[1], capacities[1]),
            limits=limits,
        )

    def summary_steps(self, num_steps: int) -> int:
        """Return the number of summary steps of whole rows with so many steps."""
        return num_steps // self.block_ticks * self.num_summaries

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        """Return the forward FLOPs of scores and weighted sums a step of whole rows.

        The FLOPs of summary steps and of masked entries are included.
        """
        num_blocks = num_steps // self.block_ticks
        steps_run = -(-num_steps // shape.window) * shape.window
        scored = keys_run(steps_run, num_blocks, self.kept_blocks, self.block_ticks)
        products = steps_run * (2 * shape.window + scored * self._keys)
        summaries = self.summary_steps(num_steps)
        if summaries:
            scored = keys_run(summaries, num_blocks * self._keys, self._summary_keys, 1)
            products += summaries * (self.block_ticks + scored)
        return 4 * shape.width * products / num_steps

    def _numbers(self, block: Int[Tensor, "B W"]) -> Int[Tensor, "B M"]:
        """Return the numbers of the far keys of blocks."""
        key = torch.arange(self._keys, device=block.device)
        return (block[..., None] * self._keys + key).flatten(1)

    def _summary_span(self, block: Int[Tensor, "B W"], first: Int[Tensor, "B W"]) -> Span:
        """Return the far keys that summary steps read: of earlier blocks, and up to their own."""
        readable = _repeated(finished_span(block, 0, first, self.kept_blocks), self._keys)
        return Span(readable.start * self._keys, self._numbers(block) + 1)

    def _rotation(
        self, shape: MixerShape, step: Int[Tensor, "B T"], end: Int[Tensor, "B W"]
    ) -> tuple[Float[Tensor, "B 1 T_N E"], Float[Tensor, "B 1 T_N E"]]:
        """Return the rotation of the steps and of the summary steps."""
        summaries = end.repeat_interleave(self.num_summaries, 1)
        position = torch.cat((step, summaries), 1)
        return rope_tables(position, shape.width // shape.num_heads, self.rope)


class FarAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions; see the top of this file."""

    def __init__(self, shape: MixerShape, config: FarAttentionConfig) -> None:
        """Build the maps, with random weights."""
        super().__init__()
        if shape.width % shape.num_heads or (shape.width // shape.num_heads) % 2:
            raise UserError(
                "`width` / `num_heads` must be an even whole number: got "
                f"{shape.width} / {shape.num_heads}."
            )
        self.config = config
        self.num_heads = shape.num_heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def initial_state(self, batch_size: int, capacity: int) -> FarState:
        """Return empty rings; that of the window has ``capacity`` slots."""
        like = next(chain(self.out.parameters(), self.out.buffers()))
        near, far = (
            like.new_zeros(
                batch_size, 2, self.num_heads, slots + 1, self.out.out_features // self.num_heads
            )
            for slots in (capacity, self.config.far_capacity(capacity))
        )
        return FarState(near, far)

    def forward(
        self, x: Float[Tensor, "B T_N D"], reach: FarReach, state: FarState | None = None
    ) -> Float[Tensor, "B T_N D"]:
        """Mix the steps of a chunk, and the summary steps after them, with what each may read.

        Args:
            x: The T steps of the chunk, followed by the N summary steps of the blocks that may end
                in it.
            reach: What they may read.
            state: Rings of a session, which are written in place; ``None`` for whole rows.

        Raises:
            UserError: The summary steps are missing.
        """
        if x.shape[1] != reach.cos.shape[-2]:
            raise UserError(
                "A mixer with `num_summaries` needs a system that adds summary steps, and of ours "
                f"only single_stream does: expected {reach.cos.shape[-2]} steps, got {x.shape[1]}. "
                "Set `num_summaries` to 0."
            )
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        qk, v = qkv.split((2, 1))
        q, k = rotate(qk, reach.cos, reach.sin).unbind(0)
        kv = torch.stack((k, v[0]), 1)
        near = kv[:, :, :, : reach.num_steps]
        if self.config.num_summaries:
            far = kv[:, :, :, reach.num_steps :]
        else:
            far = _taken(near, reach.end)
        if state is None:
            y = self._read_rows(q, near, far, reach)
        else:
            y = self._read_rings(q, near, far, reach, state)
        return self.out(y.transpose(1, 2).flatten(2))

    def _read_rows(self, q: Tensor, near: Tensor, far: Tensor, reach: FarReach) -> Tensor:
        """Return what the steps of whole rows read."""
        steps = q[:, :, : reach.num_steps]
        groups = with_previous(near.flatten(1, 2), reach.window).unflatten(1, (2, -1))
        y = _attend_both(in_groups(steps, reach.window), groups, far, reach.bias, reach.far_groups)
        y = y[:, :, : reach.num_steps]
        if reach.own is None or reach.own_bias is None:
            return y
        blocks = _taken(near, reach.own.flatten(1)).unflatten(3, reach.own.shape[1:])
        shape = (reach.num_blocks, self.config.num_summaries)
        summaries = q[:, :, reach.num_steps :].unflatten(2, shape)
        own = _attend_both(summaries, blocks, far, reach.own_bias, reach.own_groups)
        return torch.cat((y, own), 2)

    def _read_rings(
        self, q: Tensor, near: Tensor, far: Tensor, reach: FarReach, state: FarState
    ) -> Tensor:
        """Return what the steps of a chunk read, and write their keys and values into the rings."""
        read = []
        slots = (reach.near_slot, reach.far_slot)
        for ring, slot, new, limit in zip(state, slots, (near, far), reach.limits, strict=True):
            assert slot is not None
            write_ring(ring, slot, new)
            read.append(ring.narrow(3, 0, limit))
        k, v = torch.cat(read, 3).to(q.dtype).unbind(1)
        return attend(q, k, v, reach.bias)


def _attend_both(
    q: Float[Tensor, "B H G n E"],
    near: Float[Tensor, "B 2 H G K E"],
    far: Float[Tensor, "B 2 H M E"],
    bias: Float[Tensor, "B 1 Q K_F"],
    far_groups: KeyGroups | None,
) -> Float[Tensor, "B H Q E"]:
    """Return the attention of grouped queries to the near keys of their group and to far keys.

    The far keys are all, or those of ``far_groups``, which need not be the groups of the near keys.
    """
    q = q * q.shape[-1] ** -0.5
    near_scores = (q @ near[:, 0].transpose(-1, -2)).flatten(2, 3)
    far_scores = read_scores(q.flatten(2, 3), far[:, 0], far_groups)
    scores = torch.cat((near_scores, far_scores), -1)
    weights = torch.softmax(scores + bias.to(scores.dtype), -1)
    own, others = weights.to(q.dtype).tensor_split((near.shape[4],), -1)
    read = (own.unflatten(2, q.shape[2:4]) @ near[:, 1]).flatten(2, 3)
    return read + read_sums(others, far[:, 1], far_groups)


def _taken(kv: Float[Tensor, "B 2 H T E"], index: Int[Tensor, "B X"]) -> Float[Tensor, "B 2 H X E"]:
    """Return the keys and values of some steps."""
    index = index[:, None, None, :, None]
    return kv.gather(3, index.expand(-1, 2, kv.shape[2], -1, kv.shape[4]))


def _repeated(seen: Span, times: int) -> Span:
    """Return the spans of queries, each repeated ``times`` times."""
    return Span(*(edge.repeat_interleave(times, 1) for edge in seen))


def _blocks(block_ticks: int) -> Stream:
    """Return the stream of the blocks of a sequence."""
    return coarse_stream("blocks", width=1, period_ticks=block_ticks, lag_steps=0)


def _regular_grid(document_start: Int[Tensor, "B T"], block_ticks: int) -> BlockGrid:
    """Return the largest possible number of blocks of whole rows: the shape depends on no value."""
    grid = lay_blocks(None, document_start, block_ticks, counted=False)
    most = document_start.shape[1] // block_ticks
    return grid._replace(end=grid.end[:, :most], step=grid.step[:, :most], real=grid.real[:, :most])
