"""Steering: how a coarse tower guides a fine tower, offline and streaming.

There are three ways, and all use finished coarse steps only. The *plan*: the newest available
coarse step is unfolded into one vector for each fine step that follows. The *links*: gated
cross-attention to all available coarse steps. *Recall*, which is optional: attention to the fine
steps of a few blocks that the coarse steps find. A session keeps what it needs of them in rings.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import (
    filled_slots,
    ring_steps,
    score_bias,
    write_ring,
)
from counterpoint.blocks.block_grid import BlockGrid
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach, Memory, cross_reach
from counterpoint.blocks.key_groups import KeyGroups, group_keys, keys_run, read_mask
from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.mixer import MixerReach
from counterpoint.blocks.recall import Candidates, Raw, Recall, RecallReach
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.clock import Span, span_of_each


class Published(NamedTuple):
    """What a session keeps of the coarse stream. The last slot of every ring is never read.

    Attributes:
        coarse: Coarse states.
        end_tick: Fine step at which each coarse step ended.
        plan: Plans of the newest coarse states.
        memories: Keys and values of the coarse states, one tensor a link.
        recall_keys: Keys by which recall finds the blocks; empty without recall.
    """

    coarse: Float[Tensor, "B W D2"]
    end_tick: Int[Tensor, "B W"]
    plan: Float[Tensor, "B P R D"]
    memories: tuple[Memory, ...]
    recall_keys: tuple[Float[Tensor, "B W E"], ...] = ()


class Guidance(NamedTuple):
    """What the fine steps of a chunk may use of the coarse stream.

    Attributes:
        plan: The planned vector for the next element at each fine step.
        has_plan: True where there is a plan.
        memories: Keys and values of coarse states, one tensor a link.
        reach: Coarse states that each fine step may read.
        recall: What recall may read; ``None`` without recall.
    """

    plan: Float[Tensor, "B T D"]
    has_plan: Bool[Tensor, "B T"]
    memories: tuple[Memory, ...]
    reach: CrossReach
    recall: RecallReach | None = None


class Steering(nn.Module):
    """The plan and the links from a coarse tower to a fine tower."""

    def __init__(
        self, fine: TowerConfig, config: LevelConfig, recall: Recall | None = None
    ) -> None:
        """Make the modules with small plans, so that the fine tower learns to write alone first.

        Args:
            fine: Shape of the fine tower, whose heads and rotation the links have.
            config: Shape of the coarse level.
            recall: Shape of the recall of old fine steps; ``None`` for no recall.
        """
        super().__init__()
        width = fine.width
        self.block_ticks = config.block_ticks
        self.window_blocks = config.window_blocks
        self.steps_a_block = config.steps_a_block
        self.plan = nn.Linear(config.coarse_width, config.block_ticks * width, bias=False)
        nn.init.normal_(self.plan.weight, std=0.1 * config.coarse_width**-0.5)
        self.no_plan = nn.Parameter(torch.zeros(width))
        links = [
            CrossAttention(width, config.whole.width, fine.num_heads, config.rope_of(fine))
            for _ in range(config.num_links)
        ]
        self.links = cast("Sequence[CrossAttention]", nn.ModuleList(links))
        self.recall = recall

    def add_plan(self, x: Float[Tensor, "B T D"], guidance: Guidance) -> Float[Tensor, "B T D"]:
        """Add to every fine step its plan, or a learned vector if it has none."""
        plan = torch.where(guidance.has_plan[..., None], guidance.plan, self.no_plan)
        return x + plan.to(x.dtype)

    def record(self, coarse: Float[Tensor, "B W D2"], end_tick: Int[Tensor, "B W"]) -> Published:
        """Return what fine steps read from the coarse states of whole rows, without rings.

        Args:
            coarse: Coarse states.
            end_tick: Fine step at which each coarse step ended.
        """
        memories = tuple(self._memory(link, coarse, end_tick) for link in self.links)
        return Published(
            coarse, end_tick, self._plans(coarse), memories, self._recall_keys(coarse, end_tick)
        )

    def guide(
        self,
        published: Published,
        span: Span,
        grid: BlockGrid,
        reach: MixerReach,
        ends: Int[Tensor, " B"] | None = None,
        raw: Raw | None = None,
    ) -> Guidance:
        """Return what fine steps may use of the coarse steps.

        Args:
            published: From `record`, or the rings that `publish` has written.
            span: Coarse states that each fine step may read.
            grid: The blocks that the fine steps are cut into.
            reach: Reach of the fine steps, whose rotation is used.
            ends: Number of coarse states that each row has finished, if they are in rings.
            raw: Fine steps that recall may read again.
        """
        memories = published.memories
        plans = published.plan
        place = grid.place
        newest = span.stop - 1
        groups = None
        if ends is None:
            num_blocks = published.coarse.shape[1]
            number = torch.arange(num_blocks, device=newest.device)[None]
            groups = group_keys(span, num_blocks, self.window_blocks, grid.shortest)
        else:
            capacity = published.coarse.shape[1] - 1
            limit = filled_slots(ends, capacity)
            number = ring_steps(ends, capacity, limit)
            num_steps = limit * self.steps_a_block
            memories = tuple(memory[:, :, :, :num_steps] for memory in memories)
            newest = newest % (plans.shape[1] - 1)
        has_plan = span.stop > span.start
        slot = torch.where(has_plan, newest * self.block_ticks + place, 0)
        slot = slot[..., None].expand(-1, -1, plans.shape[3])
        return Guidance(
            plans.flatten(1, 2).gather(1, slot) if plans.shape[1] else self._no_plans(place),
            has_plan,
            memories,
            self._link_reach(span, number, groups, reach),
            self._recall_reach(
                published, span, number, groups, reach, raw, is_ring=ends is not None
            ),
        )

    def _link_reach(
        self,
        span: Span,
        number: Int[Tensor, "#B W"],
        groups: KeyGroups | None,
        reach: MixerReach,
    ) -> CrossReach:
        """Return which steps of the coarse states fine steps may read; see `_recall_reach`."""
        each = self.steps_a_block
        if groups is None:
            return cross_reach(reach.cos, reach.sin, span, each_step(number, each))
        steps = span_of_each(span, each)
        return cross_reach(reach.cos, reach.sin, steps, number, groups.each(each))

    def _recall_reach(
        self,
        published: Published,
        span: Span,
        number: Int[Tensor, "#B W"],
        groups: KeyGroups | None,
        reach: MixerReach,
        raw: Raw | None,
        *,
        is_ring: bool,
    ) -> RecallReach | None:
        """Return what fine steps may read again; ``number`` is the coarse state in each slot."""
        if self.recall is None or raw is None:
            return None
        start = torch.maximum(span.start, span.stop - self.recall.kept_blocks)
        mask = read_mask(Span(start, span.stop), number, groups)
        limit = number.shape[1]
        candidates = Candidates(
            published.recall_keys[0][:, :limit],
            published.end_tick[:, :limit],
            raw.size[:, :limit],
            score_bias(mask),
            groups,
        )
        capacity = raw.memory.shape[3] - is_ring
        return RecallReach(candidates, raw.memory, capacity, reach.cos, reach.sin)

    def _no_plans(self, place: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.no_plan.expand(*place.shape, -1)

    def initial_state(self, batch_size: int, num_blocks: int, num_plans: int) -> Published:
        """Return empty rings for ``num_blocks`` coarse states and ``num_plans`` plans."""
        width = len(self.no_plan)
        coarse_width = self.plan.in_features
        new = self.no_plan.new_zeros
        num_steps = (num_blocks + 1) * self.steps_a_block
        return Published(
            new(batch_size, num_blocks + 1, coarse_width),
            new(batch_size, num_blocks + 1, dtype=torch.long),
            new(batch_size, num_plans + 1, self.block_ticks, width),
            tuple(
                new(batch_size, 2, link.num_heads, num_steps, width // link.num_heads)
                for link in self.links
            ),
            ()
            if self.recall is None
            else (new(batch_size, num_blocks + 1, self.recall.key.out_features),),
        )

    def publish(
        self,
        coarse: Float[Tensor, "B W D2"],
        end_tick: Int[Tensor, "B W"],
        first_block: Int[Tensor, " B"],
        count: Int[Tensor, " B"],
        state: Published,
    ) -> None:
        """Write coarse states of each row, and what is read from them.

        If there are more states than slots, the latest ones are kept.

        Args:
            coarse: New coarse states.
            end_tick: Last tick of the block of each.
            first_block: Number of the first of these blocks, counted from the start of the row.
            count: How many of the new states are real, and so are written, in each row.
            state: Rings of the session, written in place.
        """
        row = torch.arange(len(coarse), device=coarse.device)[:, None]
        num_new = coarse.shape[1]
        slots = ring_slots(first_block, count, num_new, state.coarse.shape[1] - 1)
        plan_slots = ring_slots(first_block, count, num_new, state.plan.shape[1] - 1)
        state.coarse[row, slots] = coarse.to(state.coarse.dtype)
        state.end_tick[row, slots] = end_tick
        state.plan[row, plan_slots] = self._plans(coarse).to(state.plan.dtype)
        each = torch.arange(self.steps_a_block, device=coarse.device)
        step_slots = (slots[..., None] * self.steps_a_block + each).flatten(1)
        for memory, link in zip(state.memories, self.links, strict=True):
            write_ring(memory, step_slots, self._memory(link, coarse, end_tick))
        for ring, keys in zip(state.recall_keys, self._recall_keys(coarse, end_tick), strict=True):
            ring[row, slots] = keys.to(ring.dtype)

    def edit(
        self,
        state: Published,
        finished: Int[Tensor, " B"],
        block: Int[Tensor, " B"],
        coarse: Float[Tensor, "B D2"],
    ) -> None:
        """Replace one coarse state of each row, and what is read from it.

        Args:
            state: The rings; they are written in place.
            finished: Number of blocks that each row has finished.
            block: Number of the block to replace.
            coarse: The new coarse states.

        Raises:
            UserError: A block is not finished, or its state is no longer kept.
        """
        capacity = state.coarse.shape[1] - 1
        oldest = (finished - capacity).clamp(min=0)
        if ((block < oldest) | (block >= finished)).any():
            raise UserError(
                f"Only finished blocks that are still kept can be edited: expected blocks "
                f"{oldest.tolist()} to below {finished.tolist()}, got {block.tolist()}."
            )
        before = state.plan.clone()
        over = block < finished - state.plan.shape[1] + 1
        end_tick = state.end_tick.gather(1, (block % capacity)[:, None])
        self.publish(coarse[:, None], end_tick, block, torch.ones_like(block), state)
        state.plan[over] = before[over]  # the slot of an old block holds the plan of a newer one

    def lend(
        self,
        state: Published,
        finished: Int[Tensor, " B"],
        receiver: Published,
        wanted: Int[Tensor, " B"],
        most: int,
    ) -> Published:
        """Return a copy of the rings with only the first ``wanted`` coarse states of each row.

        They are published again at the ticks at which the coarse steps of the receiver ended.

        Args:
            state: The rings of the donor.
            finished: Number of coarse states that each row of the donor has finished.
            receiver: The rings of the session that continues with the copy.
            wanted: Number of coarse states that each of its rows has finished.
            most: Number of coarse states that the rings of the donor are sure to keep.

        Raises:
            UserError: A row of the donor has finished fewer states than wanted; or it has finished
                more than wanted and more than ``most``, so that early ones may be overwritten.
        """
        if ((finished < wanted) | ((finished > most) & (finished != wanted))).any():
            raise UserError(
                f"A session can continue only with a whole of as many blocks as its own, or of "
                f"more but at most {most}: it has {wanted.tolist()}, the donor {finished.tolist()}."
            )
        memories = tuple(memory.clone() for memory in state.memories)
        end_tick = receiver.end_tick.clone()
        recall_keys = tuple(keys.clone() for keys in state.recall_keys)
        copy = Published(state.coarse.clone(), end_tick, state.plan.clone(), memories, recall_keys)
        capacity = end_tick.shape[1] - 1
        first = (wanted - capacity).clamp(min=0)
        slot = (first[:, None] + torch.arange(capacity, device=wanted.device)) % capacity
        row = torch.arange(len(wanted), device=wanted.device)[:, None]
        self.publish(copy.coarse[row, slot], end_tick[row, slot], first, wanted - first, copy)
        return copy

    def products(self, num_ticks: int, num_blocks: int, shortest: int) -> tuple[int, float]:
        """Return the multiply-adds of a coarse step, and of a fine step.

        Args:
            num_ticks: Number of fine steps of a row.
            num_blocks: Number of coarse states of a row.
            shortest: Smallest number of fine steps of a block.
        """
        scored = keys_run(num_ticks, num_blocks, self.window_blocks, shortest)
        a_block = self.plan.weight.numel()
        a_tick = 0.0
        for link in self.links:
            a_block += self.steps_a_block * link.key_value.weight.numel()
            a_tick += sum(m.weight.numel() for m in (link.query, link.gate, link.out))
            a_tick += 2 * len(self.no_plan) * (scored * self.steps_a_block + 1)
        if self.recall is not None:
            more_block, more_tick = self.recall.products(num_blocks, scored)
            a_block += more_block
            a_tick += more_tick
        return a_block, a_tick

    def _memory(self, link: CrossAttention, coarse: Tensor, end_tick: Tensor) -> Memory:
        """Return keys and values of all coarse steps, at the positions where their blocks end."""
        steps = coarse.unflatten(-1, (self.steps_a_block, -1)).flatten(1, 2)
        return link.remember(steps, each_step(end_tick, self.steps_a_block))

    def _plans(self, coarse: Tensor) -> Tensor:
        return self.plan(coarse).unflatten(-1, (self.block_ticks, -1))

    def _recall_keys(self, coarse: Tensor, end_tick: Tensor) -> tuple[Tensor, ...]:
        return () if self.recall is None else (self.recall.keys(coarse, end_tick),)


def each_step(values: Int[Tensor, "B W"], steps_a_block: int) -> Int[Tensor, "B W2"]:
    """Return what holds for each block for each of its coarse steps."""
    return values if steps_a_block == 1 else values.repeat_interleave(steps_a_block, 1)


def ring_slots(
    first: Int[Tensor, " B"], count: Int[Tensor, " B"], num_steps: int, capacity: int
) -> Int[Tensor, "B W"]:
    """Return the slots of a ring for the steps of each row, from its first step on.

    Steps beyond ``count``, and steps that newer ones overwrite, get the slot after the last.

    Args:
        first: Number of each row's first step.
        count: Real steps of each row.
        num_steps: Steps of all rows, real or not.
        capacity: Slots that are read.
    """
    offset = torch.arange(num_steps, device=first.device)
    last = count[:, None]
    stays = (offset < last) & (offset >= last - capacity)
    return torch.where(stays, (first[:, None] + offset) % capacity, capacity)
