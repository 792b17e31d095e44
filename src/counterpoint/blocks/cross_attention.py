"""Gated cross-attention (pre-norm) from a fine stream to the finished steps of a coarse one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import score_bias
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.streams.clock import Span, span_mask

Memory = Float[Tensor, "B 2 H W E"]
"""Keys and values of coarse steps, ready to be read."""


class CrossReach(NamedTuple):
    """What the fine steps of a chunk may read of a coarse stream; shared by all links.

    Attributes:
        cos: Rotation of the fine steps.
        sin: Sines of the same angles.
        bias: What to add to the scores, see `score_bias`; the null key comes first.
        slot: Where the few coarse steps that each fine step may read stand in memory; ``None``
            where every fine step scores them all.
    """

    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]
    bias: Float[Tensor, "B 1 T K1"]
    slot: Int[Tensor, "B T K"] | None = None


def cross_reach(
    cos: Float[Tensor, "B 1 T E"],
    sin: Float[Tensor, "B 1 T E"],
    span: Span,
    key_step: Int[Tensor, "#B W"],
) -> CrossReach:
    """Reach of fine steps with rotation (cos, sin) over coarse steps numbered ``key_step``."""
    return CrossReach(cos, sin, F.pad(score_bias(span_mask(span, key_step)), (1, 0)))


def newest_reach(
    cos: Float[Tensor, "B 1 T E"],
    sin: Float[Tensor, "B 1 T E"],
    span: Span,
    num_keys: int,
    capacity: int,
) -> CrossReach:
    """Reach of fine steps over the newest coarse steps of their spans, at most ``num_keys``.

    A fine step costs the same however many coarse steps there are.

    Args:
        cos: Rotation of the fine steps.
        sin: Sines of the same angles.
        span: Coarse steps that each fine step may read.
        num_keys: Most coarse steps that are read.
        capacity: Slots of the memory that hold coarse steps: step modulo capacity. The memory has
            one slot more, which is never read.
    """
    step = span.stop[..., None] - 1 - torch.arange(num_keys, device=span.stop.device)
    readable = step >= span.start[..., None]
    slot = torch.where(readable, step % max(capacity, 1), capacity)
    return CrossReach(cos, sin, F.pad(score_bias(readable), (1, 0)), slot)


class CrossAttention(nn.Module):
    """Let fine steps read coarse steps, or nothing.

    Every query sees the coarse steps that its span allows and one learned null key, so it is
    defined where nothing is available yet. Each head's result is multiplied by a gate in (0, 2)
    that is computed from the query. Positions are ticks: a coarse step stands at its last tick.

    Source: gates a head as in arXiv:2505.06708 (G1, headwise).
    """

    def __init__(
        self, width: int, memory_width: int, num_heads: int, rope: RopeConfig = PLAIN_ROPE
    ) -> None:
        """Fine steps of ``width``, rotated as in ``rope``, read those of ``memory_width``."""
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
        """Keys and values of coarse steps that stand at the given ticks."""
        kv = self.key_value(coarse).unflatten(-1, (2, self.num_heads, -1)).permute(0, 2, 3, 1, 4)
        k, v = kv.unbind(1)
        return torch.stack((rotate(k, *rope_tables(tick, k.shape[-1], self.rope)), v), 1)

    def forward(
        self, x: Float[Tensor, "B T D"], memory: Memory, reach: CrossReach
    ) -> Float[Tensor, "B T D"]:
        """What each fine step reads."""
        x = self.norm(x)
        weights = self._weights(x, memory, reach)
        if reach.slot is None:
            null = self.null[1].expand(len(x), -1, -1, -1)
            v = torch.cat((null.to(weights.dtype), memory[:, 1].to(weights.dtype)), 2)
            y = (weights @ v).transpose(1, 2)  # (B, T, H, E)
        else:
            v = _few(memory[:, 1], reach.slot).to(weights.dtype)
            y = (weights[..., None, 1:] @ v).squeeze(3)
            y = torch.addcmul(y, weights[..., :1], self.null[1].to(y.dtype)).transpose(1, 2)
        gate = 2 * torch.sigmoid(self.gate(x))
        return self.out((y * gate[..., None].to(y.dtype)).flatten(2))

    def weights(
        self, x: Float[Tensor, "B T D"], memory: Memory, reach: CrossReach
    ) -> Float[Tensor, "B H T W1"]:
        """Attention of each fine step on the null key (first) and on every coarse step."""
        return self._weights(self.norm(x), memory, reach)

    def _weights(self, x: Tensor, memory: Tensor, reach: CrossReach) -> Tensor:
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q = q * q.shape[-1] ** -0.5
        # The null key stands nowhere: its query is not rotated, or its score would depend on where
        # in a row a document is, and on how long a session has lasted.
        null = q @ self.null[0].to(q.dtype).transpose(-1, -2)
        q = rotate(q, reach.cos, reach.sin)
        if reach.slot is None:
            scores = q @ memory[:, 0].to(q.dtype).transpose(-1, -2)
        else:
            k = _few(memory[:, 0], reach.slot).to(q.dtype)
            scores = (q[..., None, :] @ k.transpose(-1, -2)).squeeze(3)
        scores = torch.cat((null, scores), -1)
        return torch.softmax(scores + reach.bias.to(scores.dtype), -1)


def _few(values: Float[Tensor, "B H W E"], slot: Int[Tensor, "B T K"]) -> Tensor:
    """The values of each fine step's own few coarse steps: (B, H, T, K, E)."""
    index = slot.flatten(1)[:, None, :, None]
    index = index.expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index).unflatten(2, slot.shape[1:])
