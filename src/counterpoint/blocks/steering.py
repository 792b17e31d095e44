"""Steering: how a coarse tower guides a fine tower, offline and streaming.

There are two ways, and both use finished coarse steps only. The *plan*: the newest available coarse
step is unfolded into one vector for each fine step that follows. The *links*: gated cross-attention
to all available coarse steps. A session keeps what it needs of them in rings.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Reach, filled_slots, ring_steps, write_ring
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach, Memory, cross_reach
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig
from counterpoint.errors import UserError
from counterpoint.streams.clock import Span


class Published(NamedTuple):
    """What a session keeps of the coarse stream. The last slot of every ring is never read.

    Attributes:
        coarse: Coarse states.
        end_tick: Fine step at which each coarse step ended.
        plan: Plans of the newest coarse states.
        memories: Keys and values of the coarse states, one tensor a link.
    """

    coarse: Float[Tensor, "B W D2"]
    end_tick: Int[Tensor, "B W"]
    plan: Float[Tensor, "B P R D"]
    memories: tuple[Memory, ...]


class Guidance(NamedTuple):
    """What the fine steps of a chunk may use of the coarse stream.

    Attributes:
        plan: The planned vector for the next element at each fine step.
        has_plan: True where there is a plan.
        memories: Keys and values of coarse states, one tensor a link.
        reach: Coarse states that each fine step may read.
    """

    plan: Float[Tensor, "B T D"]
    has_plan: Bool[Tensor, "B T"]
    memories: tuple[Memory, ...]
    reach: CrossReach


class Steering(nn.Module):
    """The plan and the links from a coarse tower to a fine tower."""

    def __init__(
        self,
        width: int,
        coarse_width: int,
        num_heads: int,
        num_links: int,
        block_ticks: int,
        rope: RopeConfig = PLAIN_ROPE,
    ) -> None:
        """Make the modules with small plans, so that the fine tower learns to write alone first.

        ``rope`` is the rotation of the fine tower; the links have as many heads as that tower.
        """
        super().__init__()
        self.block_ticks = block_ticks
        self.plan = nn.Linear(coarse_width, block_ticks * width, bias=False)
        nn.init.normal_(self.plan.weight, std=0.1 * coarse_width**-0.5)
        self.no_plan = nn.Parameter(torch.zeros(width))
        links = [CrossAttention(width, coarse_width, num_heads, rope) for _ in range(num_links)]
        self.links = cast("Sequence[CrossAttention]", nn.ModuleList(links))

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
        memories = tuple(link.remember(coarse, end_tick) for link in self.links)
        return Published(coarse, end_tick, self._plans(coarse), memories)

    def guide(
        self,
        published: Published,
        span: Span,
        place: Int[Tensor, "B T"],
        reach: Reach,
        ends: Int[Tensor, " B"] | None = None,
    ) -> Guidance:
        """Return what fine steps may use of the coarse steps.

        Args:
            published: From `record`, or the rings that `publish` has written.
            span: Coarse states that each fine step may read.
            place: Number of fine steps since the latest block ended, after each fine step.
            reach: Reach of the fine steps, whose rotation is used.
            ends: Number of coarse states that each row has finished, if they are in rings.
        """
        memories = published.memories
        plans = published.plan
        newest = span.stop - 1
        if ends is None:
            number = torch.arange(published.coarse.shape[1], device=place.device)[None]
        else:
            capacity = published.coarse.shape[1] - 1
            limit = filled_slots(ends, capacity)
            number = ring_steps(ends, capacity, limit)
            memories = tuple(memory[:, :, :, :limit] for memory in memories)
            newest = newest % (plans.shape[1] - 1)
        has_plan = span.stop > span.start
        slot = torch.where(has_plan, newest * self.block_ticks + place, 0)
        slot = slot[..., None].expand(-1, -1, plans.shape[3])
        return Guidance(
            plans.flatten(1, 2).gather(1, slot) if plans.shape[1] else self._no_plans(place),
            has_plan,
            memories,
            cross_reach(reach.cos, reach.sin, span, number),
        )

    def _no_plans(self, place: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.no_plan.expand(*place.shape, -1)

    def initial_state(self, batch_size: int, num_blocks: int, num_plans: int) -> Published:
        """Return empty rings for ``num_blocks`` coarse states and ``num_plans`` plans."""
        width = len(self.no_plan)
        coarse_width = self.plan.in_features
        new = self.no_plan.new_zeros
        return Published(
            new(batch_size, num_blocks + 1, coarse_width),
            new(batch_size, num_blocks + 1, dtype=torch.long),
            new(batch_size, num_plans + 1, self.block_ticks, width),
            tuple(
                new(batch_size, 2, link.num_heads, num_blocks + 1, width // link.num_heads)
                for link in self.links
            ),
        )

    def publish(
        self,
        coarse: Float[Tensor, "B W D2"],
        end_tick: Int[Tensor, "B W"],
        first_block: Int[Tensor, " B"],
        count: Int[Tensor, " B"],
        state: Published,
    ) -> None:
        """Write the first ``count`` coarse states of each row, and what is read from them.

        If there are more states than slots, the latest ones are kept.
        """
        offset = torch.arange(coarse.shape[1], device=coarse.device)
        block = first_block[:, None] + offset
        real = offset < count[:, None]
        row = torch.arange(len(coarse), device=coarse.device)[:, None]

        def slot(size: int) -> Tensor:  # the last slot takes states that are not real or too old
            stays = real & (offset > count[:, None] - size)
            return torch.where(stays, block % (size - 1), size - 1)

        state.coarse[row, slot(state.coarse.shape[1])] = coarse.to(state.coarse.dtype)
        state.end_tick[row, slot(state.end_tick.shape[1])] = end_tick
        state.plan[row, slot(state.plan.shape[1])] = self._plans(coarse).to(state.plan.dtype)
        for memory, link in zip(state.memories, self.links, strict=True):
            kv = link.remember(coarse, end_tick)
            write_ring(memory, slot(memory.shape[3]), kv)

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
        copy = Published(state.coarse.clone(), end_tick, state.plan.clone(), memories)
        capacity = end_tick.shape[1] - 1
        first = (wanted - capacity).clamp(min=0)
        slot = (first[:, None] + torch.arange(capacity, device=wanted.device)) % capacity
        row = torch.arange(len(wanted), device=wanted.device)[:, None]
        self.publish(copy.coarse[row, slot], end_tick[row, slot], first, wanted - first, copy)
        return copy

    def products(self, num_blocks: int) -> tuple[int, int]:
        """Return the multiply-adds of a coarse step, and of a fine step over ``num_blocks``."""
        a_block = self.plan.weight.numel()
        a_tick = 0
        for link in self.links:
            a_block += link.key_value.weight.numel()
            a_tick += sum(m.weight.numel() for m in (link.query, link.gate, link.out))
            a_tick += 2 * len(self.no_plan) * (num_blocks + 1)
        return a_block, a_tick

    def _plans(self, coarse: Tensor) -> Tensor:
        return self.plan(coarse).unflatten(-1, (self.block_ticks, -1))
