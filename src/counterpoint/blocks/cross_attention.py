"""Gated pre-norm cross-attention from a fine stream to the finished steps of a coarse stream."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import score_bias
from counterpoint.blocks.key_groups import KeyGroups, read_mask, read_scores, read_sums
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.streams.clock import Span

Memory = Float[Tensor, "B 2 H W E"]
"""Keys and values of coarse steps."""


class CrossReach(NamedTuple):
    """What the fine steps of a chunk may read of a coarse stream; shared by all links.

    Attributes:
        cos: Cosines of the rotation of the fine steps.
        sin: Signed sines of the same angles.
        bias: Bias of the scores, see `score_bias`; the null key comes first.
        groups: Coarse steps for which groups of fine steps compute scores; ``None`` if every fine
            step computes scores for all coarse steps.
    """

    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]
    bias: Float[Tensor, "B 1 T K1"]
    groups: KeyGroups | None = None


def cross_reach(
    cos: Float[Tensor, "B 1 T E"],
    sin: Float[Tensor, "B 1 T E"],
    span: Span,
    key_step: Int[Tensor, "#B W"],
    groups: KeyGroups | None = None,
) -> CrossReach:
    """Return the reach of fine steps over the coarse steps of a memory.

    Args:
        cos: Cosines of the rotation of the fine steps.
        sin: Signed sines of the same angles.
        span: Coarse steps that each fine step may read.
        key_step: Number of the coarse step in each place of the memory.
        groups: See `CrossReach`.
    """
    bias = score_bias(read_mask(span, key_step, groups))
    return CrossReach(cos, sin, F.pad(bias, (1, 0)), groups)


def newest_reach(
    cos: Float[Tensor, "B 1 T E"],
    sin: Float[Tensor, "B 1 T E"],
    span: Span,
    num_keys: int,
    capacity: int,
) -> CrossReach:
    """Return the reach of fine steps over at most ``num_keys`` of the newest steps of their spans.

    The cost of a fine step then does not depend on the number of coarse steps.

    Args:
        cos: Cosines of the rotation of the fine steps.
        sin: Signed sines of the same angles.
        span: Coarse steps that each fine step may read.
        num_keys: Largest number of coarse steps that are read.
        capacity: Number of memory slots for coarse steps (step modulo capacity). The memory has one
            more slot, which is never read.
    """
    step = span.stop[..., None] - 1 - torch.arange(num_keys, device=span.stop.device)
    readable = step >= span.start[..., None]
    slot = torch.where(readable, step % max(capacity, 1), capacity)
    return CrossReach(cos, sin, F.pad(score_bias(readable), (1, 0)), KeyGroups(1, slot))


class CrossAttention(nn.Module):
    """Attention from fine steps to coarse steps.

    Every query attends to the coarse steps of its span and to one learned null key, so the result
    is defined even if no coarse step is available. The result of each head is multiplied by a gate
    in (0, 2) that is computed from the query. Positions are ticks: a coarse step stands at its last
    tick.

    Source: gates a head as in arXiv:2505.06708 (G1, headwise).
    """

    def __init__(
        self, width: int, memory_width: int, num_heads: int, rope: RopeConfig = PLAIN_ROPE
    ) -> None:
        """Make attention from ``width`` features, rotated as in ``rope``, to ``memory_width``."""
        super().__init__()
        self.rope = rope
        self.num_heads = num_heads
        self.norm = RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(memory_width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.zeros(2, num_heads, 1, width // num_heads))
        self.gate = nn.Linear(width, num_heads)
        self.out = nn.Linear(width, width, bias=False)
        for linear in (self.query, self.key_value, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def remember(self, coarse: Float[Tensor, "B W D"], tick: Int[Tensor, "#B W"]) -> Memory:
        """Return the keys and values of coarse steps that stand at the given ticks."""
        kv = self.key_value(coarse).unflatten(-1, (2, self.num_heads, -1)).permute(0, 2, 3, 1, 4)
        k, v = kv.unbind(1)
        return torch.stack((rotate(k, *rope_tables(tick, k.shape[-1], self.rope)), v), 1)

    def forward(
        self, x: Float[Tensor, "B T D"], memory: Memory, reach: CrossReach
    ) -> Float[Tensor, "B T D"]:
        """Return what each fine step reads from the coarse steps.

        Args:
            x: Fine steps.
            memory: Keys and values of coarse steps, from `remember`.
            reach: What the fine steps may read.
        """
        x = self.norm(x)
        weights = self._weights(x, memory, reach)
        null = self.null[1].expand(len(x), -1, -1, -1)
        v = torch.cat((null.to(weights.dtype), memory[:, 1].to(weights.dtype)), 2)
        groups = None if reach.groups is None else reach.groups.behind(1)
        y = read_sums(weights, v, groups).transpose(1, 2)  # (B, T, H, E)
        gate = 2 * torch.sigmoid(self.gate(x))
        return self.out((y * gate[..., None].to(y.dtype)).flatten(2))

    def weights(
        self, x: Float[Tensor, "B T D"], memory: Memory, reach: CrossReach
    ) -> Float[Tensor, "B H T W1"]:
        """Return the attention weights of each fine step: null key first, then the coarse steps.

        The arguments are those of `forward`.
        """
        weights = self._weights(self.norm(x), memory, reach)
        if reach.groups is None:
            return weights
        return reach.groups.behind(1).spread(weights, 1 + memory.shape[3])

    def _weights(self, x: Tensor, memory: Tensor, reach: CrossReach) -> Tensor:
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q = q * q.shape[-1] ** -0.5
        # The null key has no position. Its query is not rotated; otherwise its score would depend
        # on the position of a document in its row and on the length of a session.
        null = q @ self.null[0].to(q.dtype).transpose(-1, -2)
        q = rotate(q, reach.cos, reach.sin)
        scores = read_scores(q, memory[:, 0].to(q.dtype), reach.groups)
        scores = torch.cat((null, scores), -1)
        return torch.softmax(scores + reach.bias.to(scores.dtype), -1)
