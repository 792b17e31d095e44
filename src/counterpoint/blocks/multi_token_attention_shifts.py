"""Sums over neighbouring steps in Triton: what the lifted form needs beside attention.

Each is one call that reads what it needs once, where torch would make a copy for every shift. Steps
of different documents do not meet. `multi_token_attention_lifted` says what each one computes, and
has the same in torch.

Checked against: the same operations in torch, in Triton's interpreter
(`tests/blocks/test_multi_token_attention_fused.py`).
"""

# Kernels have no annotations that mypy would understand.
# mypy: disable-error-code="no-untyped-def, assignment"
from __future__ import annotations  # `tl` may be missing

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.blocks.multi_token_attention_kernels import jitted, no_parts, tl, triton

ROWS = 32
FEATURES = 64


@jitted
def _place(start, counts):
    """Return the rows of a program, the starts of all rows of its document row, and its head."""
    size: tl.constexpr = 32
    row = tl.program_id(0) * size + tl.arange(0, size)
    starts = start + (tl.program_id(1) // counts[0]).to(tl.int64) * counts[1]
    return row, starts, tl.program_id(1).to(tl.int64) * counts[1]


@jitted
def _same(starts, row, there, counts):
    """Return which rows exist and have another row in their document."""
    inside = (row < counts[1]) & (there >= 0) & (there < counts[1])
    own = tl.load(starts + row, mask=inside, other=0)
    other = tl.load(starts + there, mask=inside, other=-1)
    return inside & (own == other)


@jitted
def _tile(base, row, inside, first, width: tl.constexpr, offset: tl.constexpr, features):
    """Load some features of rows as float32, zero where they are not."""
    feature = first + tl.arange(0, 64)
    mask = inside[:, None] & (feature[None, :] < features)
    at = base + row[:, None] * width + offset + feature[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@jitted
def lift_kernel(x, taps, start, out, counts, sizes: tl.constexpr):
    """Compute `lift`; ``sizes`` are numbers of queries and keys, features, and the direction."""
    row, starts, head = _place(start, counts)
    queries: tl.constexpr = sizes[0]
    keys: tl.constexpr = sizes[1]
    width: tl.constexpr = sizes[2]
    first = tl.program_id(2) * 64
    own = taps + (tl.program_id(1) % counts[0]) * queries * keys
    total = no_parts(32, 64, queries)
    for w in tl.static_range(keys):
        there = row + w - keys // 2
        inside = _same(starts, row, there, counts)
        tile = _tile(x + head * width, there, inside, first, width, 0, width)
        found = ()
        for a in tl.static_range(queries):
            part = total[a]
            if sizes[3] == 0:
                part = part + tl.load(own + a * keys + w).to(tl.float32) * tile
            elif w == keys // 2 - sizes[3] * a:
                part = part + tile
            found = found + (part,)
        total = found
    feature = first + tl.arange(0, 64)
    mask = (row[:, None] < counts[1]) & (feature[None, :] < width)
    for a in tl.static_range(queries):
        at = out + (head + row[:, None]) * (queries * width) + a * width + feature[None, :]
        tl.store(at, total[a].to(out.dtype.element_ty), mask=mask)


@jitted
def lower_kernel(x, taps, start, out, counts, sizes: tl.constexpr):
    """Compute `lower`; for ``sizes`` see `lift_kernel`."""
    row, starts, head = _place(start, counts)
    queries: tl.constexpr = sizes[0]
    keys: tl.constexpr = sizes[1]
    width: tl.constexpr = sizes[2]
    first = tl.program_id(2) * 64
    own = taps + (tl.program_id(1) % counts[0]) * queries * keys
    base = x + head * queries * width
    total = tl.zeros((32, 64), dtype=tl.float32)
    for w in tl.static_range(keys):
        there = row - (w - keys // 2)
        inside = _same(starts, row, there, counts)
        for a in tl.static_range(queries):
            if sizes[3] == 0:
                tap = tl.load(own + a * keys + w).to(tl.float32)
                tile = _tile(base, there, inside, first, queries * width, a * width, width)
                total += tap * tile
            elif w == keys // 2 - sizes[3] * a:
                total += _tile(base, there, inside, first, queries * width, a * width, width)
    feature = first + tl.arange(0, 64)
    mask = (row[:, None] < counts[1]) & (feature[None, :] < width)
    at = out + (head + row[:, None]) * width + feature[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


@jitted
def taps_kernel(x, longer, start, out, counts, sizes: tl.constexpr):
    """Compute the gradient of the taps of `lift`, summed over the rows of a program."""
    row, starts, head = _place(start, counts)
    queries: tl.constexpr = sizes[0]
    keys: tl.constexpr = sizes[1]
    width: tl.constexpr = sizes[2]
    first = tl.program_id(2) * 64
    base = longer + head * queries * width
    program = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(2)
    own = out + (program + tl.program_id(2)).to(tl.int64) * queries * keys
    for w in tl.static_range(keys):
        there = row + w - keys // 2
        inside = _same(starts, row, there, counts)
        tile = _tile(x + head * width, there, inside, first, width, 0, width)
        for a in tl.static_range(queries):
            part = _tile(base, row, inside, first, queries * width, a * width, width)
            tl.store(own + a * keys + w, tl.sum(tl.sum(tile * part, 1), 0))


@jitted
def near_kernel(q, k, start, out, counts, sizes: tl.constexpr):
    """Compute `near`; ``sizes`` are the number of products, the features, and the first offset."""
    row, starts, head = _place(start, counts)
    number: tl.constexpr = sizes[0]
    width: tl.constexpr = sizes[1]
    for t in tl.static_range(number):
        there = row + sizes[2] + sizes[3] * t
        inside = _same(starts, row, there, counts)
        total = tl.zeros((32,), dtype=tl.float32)
        for first in range(0, width, 64):
            left = _tile(q + head * width, row, inside, first, width, 0, width)
            right = _tile(k + head * width, there, inside, first, width, 0, width)
            total += tl.sum(left * right, 1)
        tl.store(out + (head + row) * number + t, total, mask=row < counts[1])


@jitted
def spread_kernel(weights, x, start, out, counts, sizes: tl.constexpr):
    """Compute `spread`, or its transpose; for ``sizes`` see `near_kernel`."""
    row, starts, head = _place(start, counts)
    number: tl.constexpr = sizes[0]
    width: tl.constexpr = sizes[1]
    first = tl.program_id(2) * 64
    total = tl.zeros((32, 64), dtype=tl.float32)
    for t in tl.static_range(number):
        offset = sizes[2] + sizes[3] * t
        there = row - offset if sizes[4] else row + offset
        inside = _same(starts, row, there, counts)
        weighted = there if sizes[4] else row
        weight = tl.load(weights + (head + weighted) * number + t, mask=inside, other=0.0)
        tile = _tile(x + head * width, there, inside, first, width, 0, width)
        total += weight.to(tl.float32)[:, None] * tile
    feature = first + tl.arange(0, 64)
    mask = (row[:, None] < counts[1]) & (feature[None, :] < width)
    at = out + (head + row[:, None]) * width + feature[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


def _run(kernel: Any, tensors: tuple[Tensor, ...], width: int, sizes: tuple[int, ...]) -> None:
    """Run a kernel for all blocks of rows and features; the starts come before the output."""
    start = tensors[-2]
    heads = tensors[0].shape[1]
    grid = (triton.cdiv(start.shape[1], ROWS), len(start) * heads, max(1, -(-width // FEATURES)))
    kernel[grid](*tensors, (heads, start.shape[1]), sizes, num_warps=4)


class _Lift(torch.autograd.Function):
    """`lift`, or `lower`, which is its transpose."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, start: Tensor, shape: tuple[int, ...], lowers: bool
    ) -> Tensor:
        queries, keys, direction = shape
        x = x.contiguous()
        taps = taps.contiguous()
        ctx.save_for_backward(x, taps, start)
        ctx.shape = shape
        ctx.lowers = lowers
        width = x.shape[3] // queries if lowers else x.shape[3]
        out = x.new_empty(*x.shape[:3], width if lowers else width * queries)
        kernel = lower_kernel if lowers else lift_kernel
        _run(kernel, (x, taps, start, out), width, (queries, keys, width, direction))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, start = ctx.saved_tensors
        queries, keys, direction = ctx.shape
        grad = grad.contiguous()
        width = min(grad.shape[3], x.shape[3])
        sizes = (queries, keys, width, direction)
        to_x = torch.empty_like(x)
        kernel = lift_kernel if ctx.lowers else lower_kernel
        _run(kernel, (grad, taps, start, to_x), width, sizes)
        if direction:
            return to_x, None, None, None, None
        num_blocks = triton.cdiv(start.shape[1], ROWS)
        blocks = num_blocks * max(1, -(-width // FEATURES))
        parts = x.new_empty(*x.shape[:2], blocks, queries, keys, dtype=torch.float32)
        _run(taps_kernel, (x, grad, start, parts), width, sizes)
        return to_x, parts.sum((0, 2)).to(taps.dtype), None, None, None


def lift(
    x: Float[Tensor, "B H T F"], taps: Float[Tensor, "H Q R"], start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T QF"]:
    """Compute `counterpoint.blocks.multi_token_attention_lifted.lift`."""
    return _Lift.apply(x, taps, start, (*taps.shape[1:], 0), False)  # type: ignore[no-untyped-call]


def shifts(
    x: Float[Tensor, "B H T F"], number: int, start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T QF"]:
    """Compute `counterpoint.blocks.multi_token_attention_lifted.shifts`."""
    shape = (number, 2 * number - 1, 1)
    return _Lift.apply(x, x, start, shape, False)  # type: ignore[no-untyped-call]


def shift_sum(
    x: Float[Tensor, "B H T QF"], number: int, start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T F"]:
    """Compute `counterpoint.blocks.multi_token_attention_lifted.shift_sum`."""
    shape = (number, 2 * number - 1, -1)
    return _Lift.apply(x, x, start, shape, True)  # type: ignore[no-untyped-call]


Offsets = tuple[int, int, int]
"""Number of products, the first offset, and the step from one to the next."""


def _near(q: Tensor, k: Tensor, start: Tensor, offsets: Offsets) -> Tensor:
    number, first, step = offsets
    out = q.new_empty(*q.shape[:3], number, dtype=torch.float32)
    _run(near_kernel, (q, k, start, out), 0, (number, q.shape[3], first, step))
    return out


def _spread(weights: Tensor, x: Tensor, start: Tensor, offsets: Offsets, *, turned: bool) -> Tensor:
    number, first, step = offsets
    out = torch.empty_like(x)
    sizes = (number, x.shape[3], first, step, int(turned))
    _run(spread_kernel, (weights, x, start, out), x.shape[3], sizes)
    return out


class _Near(torch.autograd.Function):
    """`near`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, start: Tensor, offsets: Offsets) -> Tensor:
        q, k = q.contiguous(), k.contiguous()
        ctx.save_for_backward(q, k, start)
        ctx.offsets = offsets
        return _near(q, k, start, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, start = ctx.saved_tensors
        grad = grad.contiguous()
        to_q = _spread(grad, k, start, ctx.offsets, turned=False)
        to_k = _spread(grad, q, start, ctx.offsets, turned=True)
        return to_q, to_k, None, None


class _Spread(torch.autograd.Function):
    """`spread`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, start: Tensor, offsets: Offsets) -> Tensor:
        weights, x = weights.contiguous(), x.contiguous()
        ctx.save_for_backward(weights, x, start)
        ctx.offsets = offsets
        return _spread(weights, x, start, offsets, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, x, start = ctx.saved_tensors
        grad = grad.contiguous()
        to_weights = _near(grad, x, start, ctx.offsets).to(weights.dtype)
        to_x = _spread(weights, grad, start, ctx.offsets, turned=True)
        return to_weights, to_x, None, None


def near(
    q: Float[Tensor, "B H T F"],
    k: Float[Tensor, "B H T F"],
    offsets: Offsets,
    start: Int[Tensor, "B T"],
) -> Float[Tensor, "B H T n"]:
    """Compute `counterpoint.blocks.multi_token_attention_lifted.near`."""
    return _Near.apply(q, k, start, offsets)  # type: ignore[no-untyped-call]


def spread(
    weights: Float[Tensor, "B H T n"],
    x: Float[Tensor, "B H T F"],
    offsets: Offsets,
    start: Int[Tensor, "B T"],
) -> Float[Tensor, "B H T F"]:
    """Compute `counterpoint.blocks.multi_token_attention_lifted.spread`."""
    return _Spread.apply(weights, x, start, offsets)  # type: ignore[no-untyped-call]
