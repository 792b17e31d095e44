"""Causal self-attention over spans: full or windowed, offline or with a cache.

Offline, the queries and the keys are the same steps. With a cache, keys and values are kept in a
ring of ``capacity`` slots (step modulo capacity); one further slot takes the writes of steps that
are not real. The first steps of a session may be pinned: they keep the first slots for ever, and
the remaining slots form the ring.
"""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.errors import UserError
from counterpoint.streams.clock import SEQUENCE, Span, grouped_mask, span, span_mask
from counterpoint.tracing import is_traced

Cache = Float[Tensor, "B 2 G C E"]
"""Keys and values of past steps; the last slot of C is never read."""


class Pinned(NamedTuple):
    """How queries read the pinned steps of a session, which stay when the window has moved on.

    Rotations were learned for distances within the window. A query whose window no longer covers
    the pinned steps therefore reads them as if they stood directly before the oldest step of its
    window: it is rotated as the last step of the first window would be.

    Attributes:
        num_steps: Number of pinned steps; they are in the first slots.
        cos: Cosines of the rotation with which the steps of the chunk read the pinned steps.
        sin: Signed sines of the same angles.

    Source: attention sinks (arXiv:2309.17453), positions within the cache.
    """

    num_steps: int
    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]


class Reach(NamedTuple):
    """What the queries of a chunk may read; computed once and shared by all layers of a tower.

    Attributes:
        cos: Cosines of the rotation of the chunk's steps.
        sin: Signed sines of the same angles.
        bias: Bias of the scores, see `score_bias`: (B, 1, Q, K), or (B, G, 1, w, 2w) for G groups
            of w queries if attention is windowed and offline; ``None`` for plain causal attention.
        slot: Cache slot of every step of the chunk; ``None`` offline.
        limit: Number of cache slots that are read.
        pinned: How the pinned steps are read; ``None`` if there are none.
    """

    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]
    bias: Float[Tensor, "..."] | None
    slot: Int[Tensor, "B T"] | None = None
    limit: int = 0
    pinned: Pinned | None = None


def offline_reach(
    document_start: Int[Tensor, "B T"],
    head_width: int,
    window: int,
    rope: RopeConfig = PLAIN_ROPE,
) -> Reach:
    """Return the reach of whole rows.

    Args:
        document_start: First step of the document of each step.
        head_width: Width of a head.
        window: Number of most recent steps that a query reads, including its own.
        rope: Rotary frequencies.
    """
    num_steps = document_start.shape[1]
    position = torch.arange(num_steps, device=document_start.device)[None]
    cos, sin = rope_tables(position, head_width, rope)
    ahead = position.expand_as(document_start) + 1
    seen = span(SEQUENCE, "sequence", "sequence", ahead, first=document_start, window=window)
    if num_steps <= 2 * window:
        # Reading the values of `document_start` would break a compiled graph.
        traced = is_traced()
        plain = num_steps <= window and not traced and not document_start.any()
        return Reach(cos, sin, None if plain else score_bias(span_mask(seen, position)))
    return Reach(cos, sin, grouped_bias(seen, window))


def grouped_bias(seen: Span, window: int) -> Float[Tensor, "B G 1 w w2"]:
    """Return the bias of queries in groups of one window; see `attend_in_groups`.

    Args:
        seen: Steps that each query may read.
        window: Number of most recent steps that a query reads, including its own.
    """
    num_groups = -(-seen.start.shape[1] // window)
    group_start = torch.arange(num_groups, device=seen.start.device) * window
    key = group_start[:, None] + torch.arange(-window, window, device=group_start.device)
    mask = grouped_mask(seen, key[None], window)
    return score_bias(mask.flatten(0, 1)).unflatten(0, (-1, num_groups))


def in_groups(x: Float[Tensor, "B H T E"], window: int) -> Float[Tensor, "B H G w E"]:
    """Cut steps into groups of one window; zeros fill the last one."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % window)).unflatten(2, (-1, window))


def with_previous(x: Float[Tensor, "B H T E"], window: int) -> Float[Tensor, "B H G w2 E"]:
    """Return every group of `in_groups` after the group before it, which is zeros at first."""
    groups = in_groups(F.pad(x, (0, 0, window, 0)), window)
    return torch.cat((groups[:, :, :-1], groups[:, :, 1:]), 3)


def score_bias(mask: Bool[Tensor, "B Q K"]) -> Float[Tensor, "B 1 Q K"]:
    """Return the bias that hides keys from queries when it is added to the scores.

    The bias is 0 where the mask is True. Elsewhere it is a large negative number that is finite in
    every dtype: a padding step may have no visible key, and its softmax must not become NaN.
    """
    return torch.where(mask, 0.0, torch.finfo(torch.float16).min / 2).unsqueeze(1)


def ring_steps(
    end: Int[Tensor, " B"], capacity: int, limit: int, num_pinned: int = 0
) -> Int[Tensor, "B C"]:
    """Return the step that each slot of a ring holds; the step is negative if the slot is empty.

    Args:
        end: Number of steps that each row has written so far.
        capacity: Number of slots C of the ring; a new step overwrites the oldest one in it.
        limit: Number of first slots that are wanted; the result has as many columns.
        num_pinned: Number of first steps that keep the first slots and are never overwritten.
    """
    newest = end[:, None] - 1
    slot = torch.arange(limit, device=end.device)
    held = newest - (newest - slot) % (capacity - num_pinned)
    if not num_pinned:
        return held
    written = torch.where(slot < num_pinned, slot <= newest, held >= num_pinned)
    return torch.where(slot < num_pinned, slot, held).masked_fill(~written, -1)


def filled_slots(end: Int[Tensor, " B"], capacity: int) -> int:
    """Return how many slots of a ring must be read after steps < ``end`` were written.

    For a single session on a CPU, skipping empty slots is worth reading ``end`` on the host.
    Elsewhere shapes stay fixed, because kernels round differently at other shapes and the result of
    a row would then depend on how far the other rows are.
    """
    if len(end) > 1 or end.device.type != "cpu" or is_traced():
        return capacity
    return min(capacity, -(-int(end) // 64) * 64)


def write_ring(
    ring: Cache, slot: Int[Tensor, "B T"], key_value: Float[Tensor, "B 2 G T E"]
) -> None:
    """Write keys and values of steps into their slots, in place."""
    rows, steps = slot.shape
    if is_traced():
        # Of all ways to scatter, only this one is compiled by inductor to an update in place; with
        # the others it copies the ring twice a layer. It is also the only one that torch maps over
        # lanes. Otherwise this way is the slower one.
        row = torch.arange(rows, device=slot.device)[:, None]
        ring[row, :, :, slot] = key_value.permute(0, 3, 1, 2, 4).to(ring.dtype)
        return
    index = slot.view(rows, 1, 1, steps, 1).expand_as(key_value)
    ring.scatter_(3, index, key_value.to(ring.dtype))


def streaming_reach(
    position: Int[Tensor, " B"],
    num_steps: int,
    lengths: Int[Tensor, " B"] | None,
    head_width: int,
    window: int,
    capacity: int,
    num_pinned: int = 0,
    rope: RopeConfig = PLAIN_ROPE,
) -> Reach:
    """Return the reach of a chunk that follows cached steps.

    Args:
        position: Number of steps that each row has read before.
        num_steps: Number of steps of the chunk; at most ``capacity - window + 1``.
        lengths: Number of real steps of each row; ``None`` means all.
        head_width: Width of a head.
        window: Number of most recent steps that a query reads, including its own.
        capacity: Number of slots of the cache that are read.
        num_pinned: Number of steps at the start of a row that are always read; they count towards
            the window.
        rope: Rotary frequencies.
    """
    offset = torch.arange(num_steps, device=position.device)
    step = position[:, None] + offset
    cos, sin = rope_tables(step, head_width, rope)
    slot = step % capacity
    if num_pinned:
        around = num_pinned + (step - num_pinned) % (capacity - num_pinned)
        slot = torch.where(step < num_pinned, step, around)
    end = position + num_steps
    limit = filled_slots(end, capacity)
    if lengths is not None:
        slot = torch.where(offset < lengths[:, None], slot, capacity)
        end = position + lengths
    key_step = ring_steps(end, capacity, limit, num_pinned)
    seen = span(SEQUENCE, "sequence", "sequence", step + 1, window=window - num_pinned)
    mask = span_mask(seen, key_step)
    if not num_pinned:
        return Reach(cos, sin, score_bias(mask), slot, limit)
    first = Span(torch.zeros_like(step), seen.stop.clamp(max=num_pinned))
    near = rope_tables(step.clamp(max=window - 1), head_width, rope)
    bias = score_bias(mask | span_mask(first, key_step))
    return Reach(cos, sin, bias, slot, limit, Pinned(num_pinned, *near))


def placed_reach(
    step: Int[Tensor, "B Q"],
    key_step: Int[Tensor, "B K"],
    head_width: int,
    window: int,
    *,
    first: Int[Tensor, "B Q"] | int = 0,
    slot: Int[Tensor, "B Q"] | None = None,
    rope: RopeConfig = PLAIN_ROPE,
) -> Reach:
    """Return the reach of steps that need not follow each other in their sequence.

    Args:
        step: Number of each query's step in the sequence.
        key_step: Number of each key's step; negative for a key that is never read. With ``slot``
            the keys are the slots of the cache, as they are once the queries are written; without,
            they are the queries' own steps and after them those of the cache.
        head_width: Width of a head.
        window: Number of most recent steps that a query reads, including its own.
        first: First step of each query's document.
        slot: Cache slot of every query; ``None`` if the queries are not written.
        rope: Rotation frequencies.
    """
    cos, sin = rope_tables(step, head_width, rope)
    seen = span(SEQUENCE, "sequence", "sequence", step + 1, first=first, window=window)
    return Reach(cos, sin, score_bias(span_mask(seen, key_step)), slot, key_step.shape[1])


def attend(
    q: Float[Tensor, "*B H Q E"],
    k: Float[Tensor, "*B H K E"],
    v: Float[Tensor, "*B H K E"],
    bias: Float[Tensor, "*B #H Q K"] | None,
) -> Float[Tensor, "*B H Q E"]:
    """Compute scaled dot-product attention; ``bias=None`` means plain causal attention.

    ``q`` is not scaled before; ``bias`` is added to its scaled products with ``k``.

    In training on a CPU the bias is added between two matrix products: torch's fused kernel takes 4
    times as long in bfloat16 and about as long in float32 (forward and backward, 64 groups of 64
    queries). Without gradients the fused kernel is faster in both types, most of all for a single
    query (877 keys, 8 heads: 0.25 instead of 0.48 ms in float32, 0.05 instead of 1.61 ms in
    bfloat16).
    """
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    bias = bias.to(q.dtype)
    # Mapped over lanes, the gradient of CUDA's kernel fails (torch 2.11), and the CPU's is a loop.
    mapped = is_traced() and not torch.compiler.is_compiling()
    if not mapped and (not torch.is_grad_enabled() or q.is_cuda):
        return F.scaled_dot_product_attention(q, k, v, bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(scores + bias, -1) @ v


def nearer_bias(
    bias: Float[Tensor, "B 1 Q K"],
    q: Float[Tensor, "B H Q E"],
    q_near: Float[Tensor, "B H Q E"],
    k: Float[Tensor, "B H P E"],
) -> Float[Tensor, "B H Q K"]:
    """Return the bias with which queries read the first P keys as ``q_near``, others as ``q``."""
    change = (q_near - q) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    bias = bias.expand(-1, q.shape[1], -1, -1)
    return torch.cat((bias[..., : k.shape[2]] + change, bias[..., k.shape[2] :]), -1)


def attend_in_groups(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B H T E"],
    v: Float[Tensor, "B H T E"],
    bias: Float[Tensor, "B G 1 w w2"],
) -> Float[Tensor, "B H T E"]:
    """Compute windowed attention in O(T * window): each group reads itself and the last one.

    ``bias`` holds what is added to the scores of each group of w queries (w is the window) with
    the 2 w keys of the group before it and of its own; see `grouped_bias`.
    """
    num_heads, num_steps = q.shape[1:3]
    window = bias.shape[3]
    bias = bias.to(q.dtype).transpose(1, 2).expand(-1, num_heads, -1, -1, -1)
    near = (in_groups(q, window), with_previous(k, window), with_previous(v, window), bias)
    y = attend(*(x.flatten(0, 1) for x in near))
    return y.reshape(len(q), num_heads, -1, q.shape[3])[:, :, :num_steps]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Shape of `SelfAttention` beyond that of its tower; a `MixerConfig`.

    Attributes:
        num_kv_heads: Number of heads of keys and values; each is shared by equally many query
            heads, so it must divide the number of heads. ``None`` gives every query head its own.
        rope: Rotary frequencies.
    """

    num_kv_heads: int | None = None
    rope: RopeConfig = PLAIN_ROPE

    def build(self, shape: MixerShape) -> "SelfAttention":
        """Build the attention of one layer."""
        return SelfAttention(shape.width, shape.num_heads, self.num_kv_heads)

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> Reach:
        """Return what each step of whole rows may read; see `offline_reach`.

        Raises:
            UserError: There are pinned steps, and the rows are longer than the window.
        """
        num_steps = document_start.shape[1]
        if shape.num_pinned and num_steps > shape.window:
            raise UserError(
                f"With pinned steps, whole rows must fit the window of {shape.window}: got "
                f"{num_steps} steps. Read longer rows chunk by chunk, with a cache."
            )
        head_width = shape.width // shape.num_heads
        return offline_reach(document_start, head_width, shape.window, self.rope)

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> Reach:
        """Return what each step of a chunk may read; see the function `streaming_reach`."""
        return streaming_reach(
            position,
            num_steps,
            lengths,
            shape.width // shape.num_heads,
            shape.window,
            shape.capacity,
            shape.num_pinned,
            self.rope,
        )

    def reach_steps(self, shape: MixerShape) -> int:
        """Return how many most recent steps a step reads: the window."""
        return shape.window

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        """Return the forward FLOPs a step of scores and sums, including masked entries."""
        grouped = num_steps > 2 * shape.window
        steps_run = -(-num_steps // shape.window) * shape.window if grouped else num_steps
        keys = 2 * shape.window if grouped else num_steps
        return 4 * shape.width * keys * steps_run / num_steps


class SelfAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions.

    Source: arXiv:1706.03762 and arXiv:2104.09864, without biases; key and value heads that are
    shared by query heads follow arXiv:2305.13245.
    """

    def __init__(self, width: int, num_heads: int, num_kv_heads: int | None = None) -> None:
        """Make random weights; see `AttentionConfig` for the heads.

        Raises:
            UserError: The numbers of heads and the width do not fit.
        """
        super().__init__()
        if width % num_heads or (width // num_heads) % 2:
            raise UserError(
                f"`width` / `num_heads` must be an even whole number: got {width} / {num_heads}."
            )
        if num_kv_heads is None:
            num_kv_heads = num_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise UserError(
                f"`num_kv_heads` must divide the {num_heads} query heads: got {num_kv_heads}."
            )
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_width = width // num_heads
        self.qkv = nn.Linear(width, width + 2 * num_kv_heads * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def initial_state(self, batch_size: int, capacity: int) -> Cache:
        """Return an empty cache for ``capacity`` steps."""
        # A map stored in 8 bits has no parameter; its first buffer has the dtype of the model.
        like = next(chain(self.out.parameters(), self.out.buffers()))
        return like.new_zeros(batch_size, 2, self.num_kv_heads, capacity + 1, self.head_width)

    def forward(
        self, x: Float[Tensor, "B T D"], reach: Reach, cache: Cache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Let each step of a chunk attend to the steps that it may read.

        Args:
            x: Steps of the chunk.
            reach: From `offline_reach`, or from `streaming_reach` if there is a cache.
            cache: Past steps; the chunk is written into it. If ``reach`` has no slots, the keys and
                values of further steps, which are read together with those of the chunk.
        """
        q, k, v, q_near = self._rotated_heads(x, reach)
        if cache is not None and reach.slot is not None:
            write_ring(cache, reach.slot, torch.stack((k, v), 1))
            k, v = cache.narrow(3, 0, reach.limit).to(q.dtype).unbind(1)
        elif cache is not None:
            k, v = torch.cat((torch.stack((k, v), 1), cache), 3).unbind(1)
        bias = reach.bias
        num_sharing = self.num_heads // self.num_kv_heads
        folded = num_sharing > 1 and bias is not None and bias.ndim == 4
        if folded and bias is not None:
            # Query heads that share a key head are treated as further queries of it, so no key is
            # copied.
            bias = bias.repeat(1, 1, num_sharing, 1)
            q = q.reshape(len(q), self.num_kv_heads, -1, self.head_width)
            q_near = q_near.reshape(q.shape)
        elif num_sharing > 1:
            k = k.repeat_interleave(num_sharing, 1)
            v = v.repeat_interleave(num_sharing, 1)
        if reach.pinned is not None and bias is not None:
            bias = nearer_bias(bias, q, q_near, k[:, :, : reach.pinned.num_steps])
        if bias is not None and bias.ndim == 5:
            y = attend_in_groups(q, k, v, bias)
        else:
            y = attend(q, k, v, bias)
        if folded:
            y = y.reshape(len(x), self.num_heads, -1, self.head_width)
        return self.out(y.transpose(1, 2).flatten(2))

    def keys_values(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B 1 T E"],
        sin: Float[Tensor, "#B 1 T E"],
    ) -> Float[Tensor, "B 2 G T E"]:
        """Return the keys and values of steps that read nothing themselves, for a cache.

        Args:
            x: The steps.
            cos: Cosines of the rotation of each step; see `rope_tables`.
            sin: Sines of the same angles.
        """
        shared = self.num_kv_heads * self.head_width
        heads = self.qkv(x)[..., -2 * shared :].unflatten(-1, (2, self.num_kv_heads, -1))
        k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        return torch.stack((rotate(k, cos, sin), v), 1)

    def _rotated_heads(self, x: Tensor, reach: Reach) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values, and queries for pinned steps, each (B, heads, T, E)."""
        qkv = self.qkv(x)
        if self.num_kv_heads == self.num_heads:
            qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            # One copy here saves one copy in each product, and gradients that are mostly zeros.
            qk, v = qkv.contiguous().split((2, 1))
            q, k = rotate(qk, reach.cos, reach.sin).unbind(0)
            plain = qk[0]
            v = v[0]
        else:
            shared = self.num_kv_heads * self.head_width
            plain, k, v = (
                part.unflatten(-1, (-1, self.head_width)).transpose(1, 2).contiguous()
                for part in qkv.split((qkv.shape[-1] - 2 * shared, shared, shared), -1)
            )
            q = rotate(plain, reach.cos, reach.sin)
            k = rotate(k, reach.cos, reach.sin)
        if reach.pinned is None:
            return q, k, v, q
        return q, k, v, rotate(plain, reach.pinned.cos, reach.pinned.sin)
