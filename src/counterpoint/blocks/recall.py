"""Recall: fine steps read again the fine steps of a few old blocks, which are found by their keys.

Compression loses detail, so the coarse stream also serves as an index: each fine step scores the
keys of the finished blocks that it may read, takes the best few, and attends to the fine steps of
those blocks. The choice of blocks is hard, but the weight of a chosen block is learned: the score
of a block is added to the scores of its steps, so gradients teach the fine steps where to point.

Source: the project's own design. Related work: landmark attention (arXiv:2305.16300), which also
finds blocks by one key each, and native sparse attention (arXiv:2502.11089), whose heads share a
choice.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import score_bias, write_ring
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach, Memory
from counterpoint.blocks.key_groups import KeyGroups, read_scores
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """Shape of a `Recall`.

    Attributes:
        num_blocks: Number of blocks that a fine step reads again.
        kept_blocks: Number of newest readable blocks among which it chooses, whose fine steps a
            session keeps; ``None`` for all in the window of the coarse tower.
    """

    num_blocks: int = 2
    kept_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise UserError(f"A recall link must read `num_blocks` >= 1: got {self.num_blocks}.")

    def beneath(self, window_blocks: int) -> "RecallConfig":
        """Return the same shape with `kept_blocks` resolved for a tower that reads so many blocks.

        Raises:
            UserError: The kept blocks are fewer than are read, or more than the coarse tower has.
        """
        kept = window_blocks if self.kept_blocks is None else self.kept_blocks
        if not self.num_blocks <= kept <= window_blocks:
            raise UserError(
                f"A recall link must keep at least the {self.num_blocks} blocks that it reads and "
                f"at most the {window_blocks} that its whole reaches: got {kept}."
            )
        return replace(self, kept_blocks=kept)


class Raw(NamedTuple):
    """Fine steps that may be read again, and the number of them in each block.

    Whole rows hold all fine steps in order. In a session both tensors are rings whose last slot is
    never read; the ring of sizes has the slots of the published coarse states.

    Attributes:
        memory: Keys and values of the fine steps.
        size: Number of fine steps of each block.
    """

    memory: Memory
    size: Int[Tensor, "B W"]


class Candidates(NamedTuple):
    """The blocks to which the fine steps of a chunk may point.

    Attributes:
        keys: Key by which each block is found.
        end_step: Last fine step of each block.
        size: Number of fine steps of each block.
        bias: Bias that hides blocks from fine steps; see `score_bias`.
        groups: Blocks for which groups of fine steps compute scores; ``None`` if every fine step
            computes scores for all blocks.
    """

    keys: Float[Tensor, "B W E"]
    end_step: Int[Tensor, "B W"]
    size: Int[Tensor, "B W"]
    bias: Float[Tensor, "B 1 T K"]
    groups: KeyGroups | None = None


class RecallReach(NamedTuple):
    """The blocks to which the fine steps of a chunk may point, and the steps to be read there.

    Attributes:
        candidates: The blocks.
        memory: Keys and values of fine steps.
        capacity: Number of slots of ``memory`` in use: the slot is the fine step modulo capacity.
        cos: Cosines of the rotation of the chunk's fine steps.
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
        width: Number of features of a fine step.
        coarse_width: Number of features of a coarse step.
        num_heads: Number of heads of the fine tower; all read the blocks that one pointer chooses.
        config: Number of blocks; see `RecallConfig.beneath`.
        block_ticks: Number of fine steps of the longest block.
        rope: Rotation of the fine tower.

    Attributes:
        num_blocks: Number of blocks that a fine step reads again.
        kept_blocks: Number of newest readable blocks among which it chooses.
        block_ticks: Number of fine steps of the longest block.
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
        """Return the key of each block, rotated by the position of its last fine step."""
        key = self.key(coarse)[:, None]
        return rotate(key, *rope_tables(end_step, key.shape[-1], self.rope))[:, 0]

    def initial_state(self, batch_size: int, num_steps: int, num_blocks: int) -> Raw:
        """Return empty rings for ``num_steps`` fine steps and for the sizes of ``num_blocks``."""
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
            step: Number of each fine step.
            real: Which of them are real; ``None`` means all.
            raw: Rings.
        """
        capacity = raw.memory.shape[3] - 1
        slot = step % capacity
        if real is not None:
            slot = torch.where(real, slot, capacity)
        write_ring(raw.memory, slot, self.reader.remember(x, step))

    def forward(self, x: Float[Tensor, "B T D"], reach: RecallReach) -> Float[Tensor, "B T D"]:
        """Return what each fine step reads of the blocks to which it points, or zeros."""
        score, block = self.point(x, reach)
        end = _of_blocks(reach.candidates.end_step, block)
        size = _of_blocks(reach.candidates.size, block)
        back = torch.arange(self.block_ticks - 1, -1, -1, device=x.device)
        step = end[..., None] - back
        bias = score_bias((back < size[..., None]).flatten(2))
        bias = bias + score.repeat_interleave(self.block_ticks, -1)[:, None]
        slot = (step % reach.capacity).flatten(2)
        few = CrossReach(reach.cos, reach.sin, F.pad(bias, (1, 0)), KeyGroups(1, slot))
        read: Tensor = self.reader(x, reach.memory, few)
        return read

    def point(
        self, x: Float[Tensor, "B T D"], reach: RecallReach
    ) -> tuple[Float[Tensor, "B T k"], Int[Tensor, "B T k"]]:
        """Return scores and slots of the best blocks of each fine step, the best one first.

        If there are fewer blocks, the other scores are far below zero.
        """
        query = self.query(self.norm(x))[:, None]
        query = rotate(query, reach.cos, reach.sin) * query.shape[-1] ** -0.5
        candidates = reach.candidates
        groups = candidates.groups
        scores = read_scores(query, candidates.keys[:, None].to(query.dtype), groups)
        scores = (scores + candidates.bias.to(query.dtype))[:, 0]
        best = scores.topk(min(self.num_blocks, scores.shape[-1]), -1)
        block = best.indices if groups is None else groups.chosen(best.indices)
        return best.values, block

    def products(self, num_blocks: int, scored: float) -> tuple[int, float]:
        """Return the multiply-adds of a coarse step, and of a fine step.

        Args:
            num_blocks: Number of blocks of a row.
            scored: Number of blocks for which a fine step computes scores.
        """
        reader = self.reader
        maps = (self.query, reader.query, reader.key_value, reader.gate, reader.out)
        a_step = sum(linear.weight.numel() for linear in maps)
        head_width, width = self.query.weight.shape
        num_read = min(self.num_blocks, num_blocks) * self.block_ticks
        products = head_width * scored + 2 * width * (num_read + 1)
        return self.key.weight.numel(), a_step + products


def _of_blocks(values: Int[Tensor, "B W"], block: Int[Tensor, "B T k"]) -> Int[Tensor, "B T k"]:
    """Return the value of each chosen block."""
    return values.gather(1, block.flatten(1)).view(block.shape)
