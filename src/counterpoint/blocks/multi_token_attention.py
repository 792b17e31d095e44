"""Multi-Token Attention: a weight depends on several queries and keys, and on other heads.

Scores of neighbouring queries and keys are convolved before the softmax, weights after it, and both
are mixed between heads; what a head reads may be normalised and gated. Convolutions and maps begin
as identities, so the mixer begins as plain attention. Nothing outside the document and the window
of a query has any influence on what it reads: `multi_token_attention_rows` says how.

In a session, the layer carries the keys and values of its window like plain attention, and the last
rows of scores and of weights over the same slots. A score does not change once its query has been
read, so a tick computes one row, as plain attention does, and convolves it with the rows that are
there. (With the last queries instead of the rows, a tick would compute as many rows as a kernel has
queries.)

Source: arXiv:2504.00927 v2, sections 3.1 to 3.4, and its published configurations for what is not
in the text: the sizes of kernels and groups and the layers that have convolutions. Deviations:
documents in a row and the borders of windows do not mix (there they do), and there is no dropout.
Checked against: its equations, pair by pair (`tests/blocks/test_multi_token_attention.py`).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from counterpoint.blocks.attention import Cache, filled_slots, ring_steps, write_ring
from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.multi_token_attention_convolution import Edge, Seen, tiled_rows
from counterpoint.blocks.multi_token_attention_lifted import attend_lifted
from counterpoint.blocks.multi_token_attention_reference import attend_naively
from counterpoint.blocks.multi_token_attention_ring import (
    Ring,
    TickReach,
    block_keys,
    convolve_tick,
    empty_ring,
    rows_above,
    single_step,
    write_rows,
)
from counterpoint.blocks.multi_token_attention_rows import (
    Kernels,
    RowReach,
    attend_chunked,
    chunk_rows,
    hide,
    pieces,
    read_rows,
    scores,
    to_weights,
    weighted,
)
from counterpoint.blocks.norm import Gate, gated_norm, rms_norm
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig, rope_tables, rotate
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.clock import SEQUENCE, span, span_mask
from counterpoint.tracing import is_traced

HeadNorm = Literal["none", "plain", "gate", "depth"]
RowForm = Literal["chunked", "naive", "lifted", "fused"]

NORM_EPSILON = 1e-5
"""What is added to the mean square of a head's output before it is normalised."""


class MultiTokenState(NamedTuple):
    """What a session carries: keys and values, and rows of scores and weights over their slots.

    There are no rows of what the layer does not convolve.
    """

    cache: Cache
    logits: Ring
    weights: Ring


class MultiTokenReach(NamedTuple):
    """What the steps of whole rows or of a chunk may read, with their rotation."""

    cos: Float[Tensor, "B 1 T E"]
    sin: Float[Tensor, "B 1 T E"]
    whole: RowReach | None = None
    ticks: TickReach | None = None


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class MultiTokenConfig:
    """Shape of `MultiTokenAttention` beyond that of its tower; a `MixerConfig`.

    The defaults are those of arXiv:2504.00927, sections 3.1 to 3.4, and of its published configs.

    Attributes:
        conv_before: Whether scores are convolved before the softmax.
        conv_after: Whether weights are convolved after it.
        mix_before: Whether scores are mixed between heads.
        mix_after: Whether weights are mixed between heads.
        num_queries: Number of queries of a kernel: the query's own and those before it.
        num_keys: Number of keys of a kernel, on both sides of the key; odd.
        conv_every: One of so many layers has convolutions: the middle one of each group, the third
            of four. All layers have the rest.
        group_heads: Number of heads that are mixed with each other; must divide the number of
            heads. ``None`` means all.
        head_norm: What happens to the output of every head: nothing; normalisation; normalisation
            and a gate from its own output; normalisation and a factor that falls with depth.
        num_kv_heads: See `AttentionConfig`.
        rope: Rotary frequencies.
        form: How whole rows are computed. ``"chunked"`` computes some queries at a time, so that
            memory grows with T. ``"naive"`` is the definition, with all pairs in memory.
            ``"lifted"`` consists of matrix products; ``"fused"`` is the same in kernels for a GPU.
    """

    conv_before: bool = True
    conv_after: bool = True
    mix_before: bool = True
    mix_after: bool = True
    num_queries: int = 6
    num_keys: int = 11
    conv_every: int = 4
    group_heads: int | None = None
    head_norm: HeadNorm = "gate"
    num_kv_heads: int | None = None
    rope: RopeConfig = PLAIN_ROPE
    form: RowForm = "chunked"

    def __post_init__(self) -> None:
        for name in ("num_queries", "num_keys", "conv_every"):
            number = getattr(self, name)
            if type(number) is not int or number < 1:
                raise UserError(f"`{name}` must be a whole number >= 1: got {number}.")
        if self.num_keys % 2 == 0:
            raise UserError(
                "A kernel has as many keys before its own as after it, so `num_keys` must be odd: "
                f"got {self.num_keys}."
            )

    def build(self, shape: MixerShape) -> "MultiTokenAttention":
        """Build the mixer of one layer.

        Raises:
            UserError: The shape of the tower does not fit.
        """
        _check(self, shape)
        return MultiTokenAttention(shape, self)

    def has_convolution(self, layer: int) -> bool:
        """Return whether a layer has the convolutions."""
        return layer % self.conv_every == self.conv_every // 2

    def num_rows(self, layer: int) -> tuple[int, int]:
        """Return how many rows of scores and of weights a layer reads at once; 0 for none."""
        rows = self.num_queries if self.has_convolution(layer) else 0
        return (rows if self.conv_before else 0, rows if self.conv_after else 0)

    def capacity(self, least: int) -> int:
        """Return the number of slots of a ring that holds so many steps: whole blocks."""
        unit = block_keys(self.num_keys) if self._convolves else 1
        return -(-least // unit) * unit

    @property
    def _convolves(self) -> bool:
        return self.conv_before or self.conv_after

    @property
    def _side(self) -> int:
        return self.num_keys // 2 if self._convolves else 0

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> MultiTokenReach:
        """Return what each step of whole rows may read."""
        num_steps = document_start.shape[1]
        step = torch.arange(num_steps, device=document_start.device)[None]
        ahead = step.expand_as(document_start) + 1
        seen = span(
            SEQUENCE, "sequence", "sequence", ahead, first=document_start, window=shape.window
        )
        # Reading the values of `document_start` would break a compiled graph.
        is_plain = num_steps <= shape.window and not is_traced() and not document_start.any()
        cos, sin = rope_tables(step, shape.width // shape.num_heads, self.rope)
        return MultiTokenReach(cos, sin, whole=RowReach(seen.start, shape.window, bool(is_plain)))

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> MultiTokenReach:
        """Return what each step of a chunk may read; see `MixerConfig.streaming_reach`."""
        num_earlier = self.num_queries - 1 if self._convolves else 0
        offset = torch.arange(-num_earlier, num_steps, device=position.device)
        every = position[:, None] + offset
        step = every[:, num_earlier:]
        end = position + (num_steps if lengths is None else lengths)
        capacity = self.capacity(shape.capacity)
        limit = filled_slots(position + num_steps, capacity)
        key_step = ring_steps(end, capacity, limit)
        seen = span(SEQUENCE, "sequence", "sequence", every + 1, window=shape.window)
        mask = span_mask(seen, key_step)[:, None]
        # A single step reads rows from which all that it may not read was taken.
        edge = (
            self._edge(shape, step, seen.start[:, num_earlier:], limit) if num_steps > 1 else None
        )
        rows = Seen(~mask[:, :, num_earlier:], edge=edge, is_ring=limit == capacity)
        cos, sin = rope_tables(step, shape.width // shape.num_heads, self.rope)
        slot = step % capacity
        if lengths is not None:
            slot = torch.where(step < end[:, None], slot, capacity)
        single = None
        if num_steps == 1 and self._convolves:
            kernel = (self.num_queries, self.num_keys)
            single = single_step(position, shape.window, capacity, kernel)
        ticks = TickReach(step, end, slot, limit, rows, mask[:, :, :num_earlier], single)
        return MultiTokenReach(cos, sin, ticks=ticks)

    def _edge(
        self, shape: MixerShape, step: Int[Tensor, "B T"], start: Int[Tensor, "B T"], limit: int
    ) -> Edge:
        """Return the slots at the start of what each step reads."""
        near = start[..., None] + torch.arange(2 * self._side, device=step.device)
        return Edge(near % self.capacity(shape.capacity) % limit, near <= step[..., None])

    def reach_steps(self, shape: MixerShape) -> int:
        """Return how many most recent steps a step reads: the window.

        Weights of earlier queries, which are convolved after the softmax, also depend on what these
        queries could read and the step itself cannot, up to the number of queries of a kernel.
        """
        layers = range(shape.num_layers)
        return shape.window + max(max(self.num_rows(layer)[1] - 1, 0) for layer in layers)

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        """Return the forward FLOPs a step of one layer, including masked entries.

        Those of the chunked form are counted, without what it computes again for the gradient.
        """
        num_convolutions = sum(rows > 0 for rows in self.num_rows(shape.layer))
        num_maps = self.mix_before + self.mix_after
        a_pair = 4 * shape.width
        a_pair += 2 * shape.num_heads * (self.group_heads or shape.num_heads) * num_maps
        taps = 2 * shape.num_heads * self.num_queries * self.num_keys * num_convolutions
        total = 0.0
        for piece in pieces(num_steps, shape.window, chunk_rows(num_steps, shape.num_heads)):
            num_rows = piece.stop - piece.row
            convolved = taps * tiled_rows(shape.num_heads, num_rows)
            total += (a_pair * num_rows + convolved) * (piece.last - piece.key)
        at_edges = 0.0
        if num_steps > shape.window:
            at_each = self.num_queries * 2 * self._side**2
            at_edges = 2 * shape.num_heads * at_each * num_convolutions
        return total / num_steps + at_edges


def _check(config: MultiTokenConfig, shape: MixerShape) -> None:
    """Check that a mixer fits its tower; see `MultiTokenConfig.build`."""
    width = shape.width
    num_heads = shape.num_heads
    if width % num_heads or (width // num_heads) % 2:
        raise UserError(
            f"`width` / `num_heads` must be an even whole number: got {width} / {num_heads}."
        )
    for name in ("num_kv_heads", "group_heads"):
        number = getattr(config, name)
        if number is None:
            continue
        if type(number) is not int or number < 1 or num_heads % number:
            raise UserError(f"`{name}` must divide the {num_heads} heads: got {number}.")
    if shape.num_pinned:
        raise UserError(
            "Only plain attention can pin steps: with convolved scores, `pinned_steps` must be 0, "
            f"got {shape.num_pinned}."
        )
    if not (config.conv_before or config.conv_after):
        return
    # In the ring of a session, the oldest keys of the earliest row that a kernel reads must not
    # stand beside the newest key.
    least = max(config.num_keys, config.num_queries + config.num_keys // 2)
    if shape.window < least:
        raise UserError(
            f"A kernel must fit the window of {shape.window} steps: got {config.num_queries} "
            f"queries and {config.num_keys} keys. Give the tower a `window` of {least} or more."
        )
    if not any(config.has_convolution(layer) for layer in range(shape.num_layers)):
        raise UserError(
            f"With `conv_every` {config.conv_every}, no layer of {shape.num_layers} has a "
            f"convolution. It must be at most {2 * shape.num_layers - 1}; 1 gives all layers one."
        )


class MultiTokenAttention(nn.Module):
    """Causal self-attention with convolved and mixed scores; see the top of this file."""

    def __init__(self, shape: MixerShape, config: MultiTokenConfig) -> None:
        """Make random maps of the steps; convolutions and mixing begin as identities."""
        super().__init__()
        num_heads = shape.num_heads
        self.config = config
        self.num_heads = num_heads
        self.num_kv_heads = config.num_kv_heads or num_heads
        self.head_width = shape.width // num_heads
        shared = self.num_kv_heads * self.head_width
        self.qkv = nn.Linear(shape.width, shape.width + 2 * shared, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.num_rows = config.num_rows(shape.layer)
        size = (num_heads, config.num_queries, config.num_keys)
        group = config.group_heads or num_heads
        self.conv_before, self.conv_after = (
            nn.Parameter(_identity_kernels(*size)) if rows else None for rows in self.num_rows
        )
        self.mix_before, self.mix_after = (
            nn.Parameter(torch.eye(group).repeat(num_heads // group, 1, 1)) if mixes else None
            for mixes in (config.mix_before, config.mix_after)
        )
        has_norm = config.head_norm != "none"
        has_gate = config.head_norm == "gate"
        self.norm = nn.Parameter(torch.ones(self.head_width)) if has_norm else None
        self.gate = self.gate_bias = None
        if has_gate:
            self.gate = nn.Parameter(torch.randn(self.head_width) * self.head_width**-0.5)
            self.gate_bias = nn.Parameter(torch.zeros(()))
        is_scaled = config.head_norm == "depth"
        self.scale = 1 - (0.8 - 0.6 * math.exp(-0.3 * shape.layer)) if is_scaled else 1.0

    @property
    def kernels(self) -> Kernels:
        """Convolutions and maps between heads."""
        return Kernels(self.conv_before, self.mix_before, self.conv_after, self.mix_after)

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the parameters that plain attention does not have."""
        return tuple(name for name, _ in self.named_parameters(recurse=False))

    def initial_state(self, batch_size: int, capacity: int) -> MultiTokenState:
        """Return empty rings for ``capacity`` steps."""
        # A map stored in 8 bits has no parameter; its first buffer has the dtype of the model.
        like = next(chain(self.out.parameters(), self.out.buffers()))
        capacity = self.config.capacity(capacity)
        cache = like.new_zeros(batch_size, 2, self.num_kv_heads, capacity + 1, self.head_width)
        rings = (
            empty_ring(like, batch_size, self.num_heads, (rows, self.config.num_keys), capacity)
            for rows in self.num_rows
        )
        return MultiTokenState(cache, *rings)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        reach: MultiTokenReach,
        state: MultiTokenState | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Let each step of a chunk read the steps that it may read; see `Mixer`."""
        if not x.shape[1]:
            return x
        shared = self.num_kv_heads * self.head_width
        q, k, v = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2).contiguous()
            for part in self.qkv(x).split((self.num_heads * self.head_width, shared, shared), -1)
        )
        q, k = (rotate(part, reach.cos, reach.sin) for part in (q, k))
        # Everything is in the type of the queries, also where a gradient is computed again.
        with _without_autocast(x.device.type):
            if reach.ticks is not None:
                assert state is not None
                y = self._read_ring(q, k, v, reach.ticks, state)
            elif reach.whole is not None:
                y = self._read_whole(q, k, v, reach.whole)
            y = self._normed(y)
        return self.out(y.transpose(1, 2).flatten(2))

    def _normed(self, y: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H T E"]:
        if self.norm is None:
            return y
        weight = self.norm if self.scale == 1 else self.norm * self.scale
        if self.gate is not None and self.gate_bias is not None:
            return gated_norm(y, weight, Gate(self.gate, self.gate_bias), NORM_EPSILON)
        return rms_norm(y, weight, NORM_EPSILON)

    def _read_whole(self, q: Tensor, k: Tensor, v: Tensor, reach: RowReach) -> Tensor:
        form = self.config.form
        if form == "naive":
            return attend_naively(q, k, v, self.kernels, reach.start)
        if form == "chunked":
            return attend_chunked(q, k, v, self.kernels, reach)
        if form == "lifted":
            return attend_lifted(q, k, v, self.kernels, reach)
        # Triton is imported only where it is used.
        fused = import_module("counterpoint.blocks.multi_token_attention_fused")
        return attend_lifted(q, k, v, self.kernels, reach, fused.fused_for(q.device))

    def _read_ring(
        self, q: Tensor, k: Tensor, v: Tensor, reach: TickReach, state: MultiTokenState
    ) -> Tensor:
        """Read the rings of a session, after the chunk was written into them."""
        write_ring(state.cache, reach.slot, torch.stack((k, v), 1))
        k, v = state.cache.narrow(3, 0, reach.limit).to(q.dtype).unbind(1)
        if q.shape[2] == 1:
            return self._read_tick(q, k, v, reach, state)
        rings = (state.logits, state.weights)
        above = tuple(rows_above(ring, reach, q.dtype) for ring in rings)
        y, rows = read_rows(q, k, v, self.kernels, reach.rows, above)
        for ring, new in zip(rings, rows, strict=True):
            if new is not None:
                write_rows(ring, new, reach)
        return y

    def _read_tick(
        self, q: Tensor, k: Tensor, v: Tensor, reach: TickReach, state: MultiTokenState
    ) -> Tensor:
        """Read a single step, with a row of scores and of weights for the rings."""
        kernels = self.kernels
        logits = scores(q, k)
        if kernels.conv_before is not None:
            hide(logits, reach.rows, 0.0)
            logits = convolve_tick(logits, kernels.conv_before, state.logits, reach)
        weights = to_weights(logits, kernels, reach.rows)
        if kernels.conv_after is not None:
            weights = convolve_tick(weights, kernels.conv_after, state.weights, reach)
        return weighted(weights, v, kernels, reach.rows)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which products have the type of their factors."""
    if is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _identity_kernels(num_heads: int, num_queries: int, num_keys: int) -> Float[Tensor, "H Q R"]:
    """Return kernels that change nothing."""
    kernels = torch.zeros(num_heads, num_queries, num_keys)
    kernels[:, -1, num_keys // 2] = 1
    return kernels
