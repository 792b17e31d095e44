"""The lifted form of Multi-Token Attention in Triton: no score is ever written to memory.

`multi_token_attention_lifted` makes the long vectors, and torch differentiates what it does; the
attention itself and its gradients are computed by the kernels of `multi_token_attention_kernels`.
Vectors wider than `KernelBlocks.slab` cost their scores once more for each slab.

Checked against: the naive form, in Triton's interpreter
(`tests/blocks/test_multi_token_attention_fused.py`) and on a GPU
(`benchmarks/bench_multi_token_attention_gpu.py`).
"""

from __future__ import annotations  # classes name each other

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.blocks.multi_token_attention_kernels import (
    key_kernel,
    query_kernel,
    read_kernel,
    triton,
)
from counterpoint.blocks.multi_token_attention_lifted import Bands, Operations
from counterpoint.blocks.multi_token_attention_rows import RowReach
from counterpoint.blocks.multi_token_attention_shifts import lift, near, shift_sum, shifts, spread
from counterpoint.errors import UserError


class KernelBlocks(NamedTuple):
    """How a kernel cuts its work.

    Attributes:
        own: Rows that a program computes.
        other: Rows that it reads at a time.
        part: Features of a product at most; a power of two.
        slab: Features that a program computes at most; a multiple of ``part``.
        warps: Warps of a program.
        stages: Number of blocks that are on their way from memory.
    """

    own: int
    other: int
    part: int
    slab: int
    warps: int
    stages: int

    def cut(self, widths: KernelWidths, computed: int) -> tuple[int, int, int, int, int]:
        """Return rows, other rows, features of a program, and those of products."""
        parts = [min(self.part, max(16, 1 << (width - 1).bit_length())) for width in widths[:2]]
        part = parts[0] if computed == widths.query else parts[1]
        slab = min(self.slab, -(-computed // part) * part)
        return self.own, self.other, slab, parts[0], parts[1]

    def smaller(self) -> Iterator[KernelBlocks]:
        """Return these blocks, and others that need less and less shared memory."""
        yield self
        yield self._replace(stages=1)
        for own in (64, 32, 16):
            if own < self.own:
                yield self._replace(own=own, other=min(32, self.other), stages=1)


class KernelWidths(NamedTuple):
    """Features of the queries and keys, of the values, and of the bands, and the window.

    The window is 0 where there is no far band, so that kernels are not compiled again for another.
    """

    query: int
    value: int
    near: int
    far: int = 0
    window: int = 0


READ_NARROW = KernelBlocks(own=64, other=32, part=128, slab=384, warps=4, stages=2)
READ_WIDE = KernelBlocks(own=128, other=32, part=128, slab=384, warps=8, stages=2)
"""Blocks of the forward kernel for values of up to `NARROW` features, and for wider ones.

On an H200 with 4 rows of 16 heads and 4,096 steps: values of 64 features took 1.57 ms with the
first and 1.87 with the second, values of 384 features 3.56 and 2.44.
"""

GRADIENT = KernelBlocks(own=64, other=64, part=128, slab=384, warps=8, stages=1)
"""Blocks of the kernels of the gradient: the fastest of three for all of them, by 6 to 27 %."""

NARROW = 128

INTERPRETED = KernelBlocks(own=16, other=16, part=16, slab=32, warps=4, stages=1)
"""KernelBlocks without a GPU; the interpreter needs small ones for the tests to be quick."""


def _launch(
    kernel: Any, blocks: KernelBlocks, given: Any, widths: KernelWidths, last: tuple[Any, ...]
) -> None:
    """Run a kernel for all blocks of steps, heads of all rows, and slabs of features.

    Args:
        kernel: The kernel.
        blocks: Its blocks.
        given: All its arguments before the counts; the first ones are those of `_kernel`.
        widths: See `KernelWidths`.
        last: Its arguments after the blocks; the number of features that it computes comes first.
    """
    q = given[0][0]
    num_rows, num_heads, num_steps = q.shape[:3]
    if not q.is_cuda:
        blocks = INTERPRETED
    elif q.element_size() > 2:
        blocks = blocks._replace(own=32, other=32, part=64, slab=128)
    computed, *more = last
    counts = (num_heads, num_steps)
    for found in blocks.smaller():
        cut = found.cut(widths, computed)
        grid = (triton.cdiv(num_steps, cut[0]), num_rows * num_heads, triton.cdiv(computed, cut[2]))
        options = {"num_warps": found.warps, "num_stages": found.stages}
        try:
            kernel[grid](*given, counts, tuple(widths), cut, *more, **options)
        except triton.OutOfResources:  # of shared memory, which GPUs have more or less of
            continue
        return
    raise UserError(
        f"Vectors of {widths.query} and {widths.value} features do not fit the shared memory of "
        "this GPU in `form` 'fused': use 'chunked'."
    )


def _ends(start: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return, for each step, the step after the last one that reads it; starts never decrease."""
    step = torch.arange(start.shape[1], device=start.device)
    return torch.searchsorted(start, step.expand_as(start).contiguous(), right=True)


class _Attention(torch.autograd.Function):
    """Attention with bands side by side, and its gradient.

    The last argument has what `KernelWidths` says of the bands.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bands: Tensor,
        start: Tensor,
        ends: tuple[int, int, int],
    ) -> tuple[Tensor, Tensor]:
        given = [x.contiguous() for x in (q, k, v, bands.float(), start, _ends(start))]
        out = torch.empty_like(given[2])
        sums = q.new_empty(q.shape[:3], dtype=torch.float32)
        widths = ctx.widths = KernelWidths(q.shape[3], v.shape[3], *ends)
        blocks = READ_NARROW if widths.value <= NARROW else READ_WIDE
        _launch(read_kernel, blocks, (tuple(given), out, sums), widths, (widths.value,))
        ctx.save_for_backward(*given, out, sums)
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, to_sums: Tensor) -> tuple[Tensor | None, ...]:
        *given, out, sums = ctx.saved_tensors
        q, k, v, bands = given[:4]
        grad = grad.contiguous()
        # The gradient of a score is its weight times this difference: to its weight, less the
        # share of its query, of which the gradient of the sum is a part.
        shares = (grad.float() * out.float()).sum(-1) - to_sums.float()
        both = (tuple(given), (sums, shares, grad))
        widths = ctx.widths
        to_q, to_k, to_v, to_bands = (torch.zeros_like(x) for x in (q, k, v, bands))
        _launch(query_kernel, GRADIENT, (*both, to_q, to_bands), widths, (widths.query,))
        _launch(key_kernel, GRADIENT, (*both, to_k), widths, (widths.query, True))
        _launch(key_kernel, GRADIENT, (*both, to_v), widths, (widths.value, False))
        return to_q, to_k, to_v, to_bands, None, None


def attend_fused(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B H T E"],
    v: Float[Tensor, "B H T V"],
    bands: Bands,
    reach: RowReach,
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H T"]]:
    """Compute `attend_with_bands` in kernels; scores and weights are float32 within them."""
    near, far = (band.shape[3] for band in bands)
    ends = (near, far, reach.window if far else 0)
    side_by_side = torch.cat(bands, 3)
    out, sums = _Attention.apply(  # type: ignore[no-untyped-call]
        q, k, v, side_by_side, reach.start, ends
    )
    return out, sums


FUSED = Operations(attend_fused, lift, shifts, shift_sum, near, spread)
"""Everything in kernels."""


def fused_for(device: torch.device) -> Operations:
    """Return `FUSED`, for tensors on a device.

    Raises:
        UserError: There is no Triton, or it has no kernels for the device.
    """
    if triton is None:
        raise UserError(
            "`form` 'fused' needs Triton, which comes with torch for CUDA: there is none here. Use "
            "'chunked'."
        )
    if device.type == "cpu" and isinstance(read_kernel, triton.JITFunction):
        raise UserError(
            "`form` 'fused' needs a GPU, or TRITON_INTERPRET=1 to interpret its kernels: got "
            "tensors on the CPU. Use 'chunked'."
        )
    return FUSED
