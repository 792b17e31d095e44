"""Recall: fine steps read the raw fine steps of a few old blocks again, which the coarse ones find.

Compression loses detail. So the coarse stream also serves as an index: each fine step scores the
keys of the finished blocks that it may read, takes the best few, and attends to the fine steps of
which they were made. Which blocks these are is a hard choice; how much each counts is not: a
block's score is added to those of its steps, so that gradients teach the fine steps to point.

Source: the project's design. Relatives: landmark attention (arXiv:2305.16300), which also finds
blocks by a key of each, and native sparse attention (arXiv:2502.11089), whose heads share a choice.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import score_bias, write_ring
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach, Memory
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """Shape of a `Recall`.

    Attributes:
        num_blocks: Blocks that a fine step reads again.
        kept_blocks: Newest readable blocks among which it chooses, whose fine steps a session
            keeps; ``None``: all that the coarse tower's window has.
    """

    num_blocks: int = 2
    kept_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise UserError(f"A recall link must read `num_blocks` >= 1: got {self.num_blocks}.")

    def beneath(self, window_blocks: int) -> "RecallConfig":
        """The same shape with the blocks that are kept beneath a tower that reads so many.

        Raises:
            UserError: They are fewer than are read, or more than the coarse tower has.
        """
        kept = window_blocks if self.kept_blocks is None else self.kept_blocks
        if not self.num_blocks <= kept <= window_blocks:
            raise UserError(
                f"A recall link must keep at least the {self.num_blocks} blocks that it reads and "
                f"at most the {window_blocks} that its whole reaches: got {kept}."
            )
        return replace(self, kept_blocks=kept)


class Raw(NamedTuple):
    """Fine steps that may be read again, and how they make blocks.

    Those of whole rows are all there, in order. In a session both are rings whose last slot is
    never read; that of the sizes has the slots of the published coarse states.

    Attributes:
        memory: Keys and values of the fine steps.
        size: Fine steps of each block.
    """

    memory: Memory
    size: Int[Tensor, "B W"]


class Candidates(NamedTuple):
    """The blocks at which the fine steps of a chunk may point.

    Attributes:
        keys: What finds each of them.
        end_step: Last fine step of each.
        size: Fine steps of each.
        bias: What hides blocks from fine steps; see `score_bias`.
    """

    keys: Float[Tensor, "B W E"]
    end_step: Int[Tensor, "B W"]
    size: Int[Tensor, "B W"]
    bias: Float[Tensor, "B 1 T W"]


class RecallReach(NamedTuple):
    """What the fine steps of a chunk may point at, and what is read there.

    Attributes:
        candidates: Blocks.
        memory: Keys and values of fine steps.
        capacity: Slots of it that are used: fine step modulo capacity.
        cos: Rotation of the chunk's fine steps.
        sin: Sines of the same angles.
    """

    candidates: Candidates
    memory: Memory
    capacity: int
    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]


class Recall(nn.Module):
    """A pointer to old blocks, and attention to their fine steps.

    Args:
        width: Features of a fine step.
        coarse_width: Features of a coarse step.
        num_heads: Heads of the fine tower; all read the blocks that one pointer chooses.
        config: How many blocks; see `RecallConfig.beneath`.
        block_ticks: Fine steps of the longest block.
        rope: Rotation of the fine tower.

    Attributes:
        num_blocks: Blocks that a fine step reads again.
        kept_blocks: Newest readable blocks among which it chooses.
        block_ticks: Fine steps of the longest block.
    """

    def __init__(
        self,
        width: int,
        coarse_width: int,
        num_heads: int,
        config: RecallConfig,
        block_ticks: int,
        rope: RopeConfig = PLAIN_ROPE,
    ) -> None:
        super().__init__()
        self.num_blocks = config.num_blocks
        self.kept_blocks = config.kept_blocks or config.num_blocks
        self.block_ticks = block_ticks
        self.rope = rope
        head_width = width // num_heads
        self.norm = RMSNorm(width)
        self.query = nn.Linear(width, head_width, bias=False)
        self.key = nn.Linear(coarse_width, head_width, bias=False)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.reader = CrossAttention(width, width, num_heads, rope)

    def keys(
        self, coarse: Float[Tensor, "B W D2"], end_step: Int[Tensor, "#B W"]
    ) -> Float[Tensor, "B W E"]:
        """What finds each block, which stands at its last fine step."""
        key = self.key(coarse)[:, None]
        return rotate(key, *rope_tables(end_step, key.shape[-1], self.rope))[:, 0]

    def initial_state(self, batch_size: int, num_steps: int, num_blocks: int) -> Raw:
        """Empty rings of so many fine steps and sizes of blocks."""
        head_width, width = self.query.weight.shape
        heads = self.reader.num_heads
        new = self.query.weight.new_zeros
        return Raw(
            new(batch_size, 2, heads, num_steps + 1, width // heads),
            new(batch_size, num_blocks + 1, dtype=torch.long),
        )

    def write(
        self,
        x: Float[Tensor, "B T D"],
        step: Int[Tensor, "B T"],
        real: Bool[Tensor, "B T"] | None,
        raw: Raw,
    ) -> None:
        """Write the fine steps of a chunk into the ring of a session.

        Args:
            x: Fine steps.
            step: Number of each.
            real: Which of them are real; ``None`` means all.
            raw: Rings.
        """
        capacity = raw.memory.shape[3] - 1
        slot = step % capacity
        if real is not None:
            slot = torch.where(real, slot, capacity)
        write_ring(raw.memory, slot, self.reader.remember(x, step))

    def forward(self, x: Float[Tensor, "B T D"], reach: RecallReach) -> Float[Tensor, "B T D"]:
        """What each fine step reads of the blocks that it points at, or nothing."""
        score, block = self.point(x, reach)
        end = _of_blocks(reach.candidates.end_step, block)
        size = _of_blocks(reach.candidates.size, block)
        back = torch.arange(self.block_ticks - 1, -1, -1, device=x.device)
        step = end[..., None] - back
        bias = score_bias((back < size[..., None]).flatten(2))
        bias = bias + score.repeat_interleave(self.block_ticks, -1)[:, None]
        slot = (step % reach.capacity).flatten(2)
        read: Tensor = self.reader(
            x, reach.memory, CrossReach(reach.cos, reach.sin, F.pad(bias, (1, 0)), slot)
        )
        return read

    def point(
        self, x: Float[Tensor, "B T D"], reach: RecallReach
    ) -> tuple[Float[Tensor, "B T k"], Int[Tensor, "B T k"]]:
        """Scores and slots of the best blocks of each fine step, the best one first.

        Scores are far below zero where there are fewer blocks.
        """
        query = self.query(self.norm(x))[:, None]
        query = rotate(query, reach.cos, reach.sin) * query.shape[-1] ** -0.5
        keys = reach.candidates.keys[:, None].to(query.dtype)
        scores = (query @ keys.transpose(-1, -2) + reach.candidates.bias.to(query.dtype))[:, 0]
        best = scores.topk(min(self.num_blocks, scores.shape[-1]), -1)
        return best.values, best.indices

    def products(self, num_blocks: int) -> tuple[int, int]:
        """Multiply-adds of matrix products: a coarse step, and a fine step over ``num_blocks``."""
        reader = self.reader
        maps = (self.query, reader.query, reader.key_value, reader.gate, reader.out)
        a_step = sum(linear.weight.numel() for linear in maps)
        head_width, width = self.query.weight.shape
        num_read = min(self.num_blocks, num_blocks) * self.block_ticks
        a_step += head_width * num_blocks + width * (2 * num_read + 1)
        return self.key.weight.numel(), a_step


def _of_blocks(values: Int[Tensor, "B W"], block: Int[Tensor, "B T k"]) -> Int[Tensor, "B T k"]:
    """The value of each chosen block."""
    return values.gather(1, block.flatten(1)).view(block.shape)
