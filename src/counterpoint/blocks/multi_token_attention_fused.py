"""The lifted form of Multi-Token Attention in Triton: no score is ever written to memory.

These are the kernels of flash attention for queries, keys and values of any width, with a band that
is taken off the scores near the diagonal, and with documents. `multi_token_attention_lifted` makes
the long vectors, and torch differentiates what it does; the gradients of the attention itself are
computed here. Every program computes a block of rows and of features, so wide vectors cost their
scores once more for every block of features.

Source: FlashAttention-2 (arXiv:2307.08691) for the order of the work; the rest is our own.
Checked against: the naive form, in Triton's interpreter
(`tests/blocks/test_multi_token_attention_fused.py`). No time on a GPU was measured.
"""

from __future__ import annotations  # `tl` may be missing

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.errors import UserError

_has_triton = find_spec("triton") is not None  # it comes with torch for CUDA alone
triton: Any = import_module("triton") if _has_triton else None
tl: Any = import_module("triton.language") if _has_triton else None

HIDDEN = -1e9 if tl is None else tl.constexpr(-1e9)


def _kernel(function: Callable[..., Any]) -> Any:
    """Make a kernel, or a part of one. All parts get the same arguments.

    ``given`` has the queries, the keys, the values, the band and the starts; ``back`` has the sums
    of the queries, their shares (see `_Attention.backward`) and the gradient of what was read.
    ``sizes`` are the numbers of heads and steps, and the widths of queries and keys, of values, and
    of the band. A block has ``size`` queries, keys or features.
    """
    return function if triton is None else triton.jit(function)


@_kernel
def _of_head(given, sizes):  # type: ignore[no-untyped-def]
    """Return the matrices of the head of a program."""
    head = tl.program_id(1).to(tl.int64) * sizes[1]
    row = (tl.program_id(1) // sizes[0]).to(tl.int64) * sizes[1]
    return (
        given[0] + head * sizes[2],
        given[1] + head * sizes[2],
        given[2] + head * sizes[3],
        given[3] + head * sizes[4],
        given[4] + row,
    )


@_kernel
def _back_of_head(back, sizes):  # type: ignore[no-untyped-def]
    """Return what the gradient of the head of a program needs."""
    head = tl.program_id(1).to(tl.int64) * sizes[1]
    return back[0] + head, back[1] + head, back[2] + head * sizes[3]


@_kernel
def _block(base, row, feature, num_rows, num_features):  # type: ignore[no-untyped-def]
    """Load a block of a matrix, zero outside of it."""
    inside = (row[:, None] < num_rows) & (feature[None, :] < num_features)
    return tl.load(base + row[:, None] * num_features + feature[None, :], mask=inside, other=0.0)


@_kernel
def _store(base, row, feature, shape, values):  # type: ignore[no-untyped-def]
    """Store a block of a matrix of a shape."""
    inside = (row[:, None] < shape[0]) & (feature[None, :] < shape[1])
    place = base + row[:, None] * shape[1] + feature[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=inside)


@_kernel
def _products(a, b, row, column, shape, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the products of rows of two matrices of a shape, over all features."""
    total = tl.zeros((size, size), dtype=tl.float32)
    for first in range(0, shape[1], size):
        feature = first + tl.arange(0, size)
        left = _block(a, row, feature, shape[0], shape[1])
        right = _block(b, column, feature, shape[0], shape[1])
        total += tl.dot(left, tl.trans(right), input_precision="ieee")
    return total


@_kernel
def _scores(given, row, column, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the scores of a block; those of pairs that are not read are hidden."""
    num_rows = sizes[1]
    width_band = sizes[4]
    total = _products(given[0], given[1], row, column, (num_rows, sizes[2]), size)
    steps = row[:, None] - column[None, :]
    in_band = (steps >= 0) & (steps < width_band) & (row[:, None] < num_rows)
    total -= tl.load(given[3] + row[:, None] * width_band + steps, mask=in_band, other=0.0)
    first = tl.load(given[4] + row, mask=row < num_rows, other=0)
    seen = (steps >= 0) & (column[None, :] >= first[:, None]) & (row[:, None] < num_rows)
    return tl.where(seen, total, HIDDEN)


@_kernel
def _read(given, out, sums, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute what a block of queries reads of a block of features of the values."""
    given = _of_head(given, sizes)
    num_rows = sizes[1]
    head = tl.program_id(1).to(tl.int64) * num_rows
    row = tl.program_id(0) * size + tl.arange(0, size)
    feature = tl.program_id(2) * size + tl.arange(0, size)
    first = tl.load(given[4] + tl.program_id(0) * size)  # starts never decrease
    stop = tl.minimum((tl.program_id(0) + 1) * size, num_rows)
    highest = tl.full((size,), HIDDEN, dtype=tl.float32)
    total = tl.zeros((size,), dtype=tl.float32)
    read = tl.zeros((size, size), dtype=tl.float32)
    for begin in range(first // size * size, stop, size):
        column = begin + tl.arange(0, size)
        scores = _scores(given, row, column, sizes, size)
        higher = tl.maximum(highest, tl.max(scores, 1))
        faded = tl.exp(highest - higher)
        # Hidden pairs of a query without any other score would count as much as others.
        weights = tl.where(scores > HIDDEN / 2, tl.exp(scores - higher[:, None]), 0.0)
        total = total * faded + tl.sum(weights, 1)
        values = _block(given[2], column, feature, num_rows, sizes[3])
        read = read * faded[:, None]
        read += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = higher
    total = tl.where(total > 0, total, 1.0)
    _store(out + head * sizes[3], row, feature, (num_rows, sizes[3]), read / total[:, None])
    tl.store(sums + head + row, highest + tl.log(total), mask=row < num_rows)


@_kernel
def _weights(given, back, row, column, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the weights of a block, computed again."""
    scores = _scores(given, row, column, sizes, size)
    own = tl.load(back[0] + row, mask=row < sizes[1], other=0.0)
    return tl.where(scores > HIDDEN / 2, tl.exp(scores - own[:, None]), 0.0)


@_kernel
def _score_gradient(given, back, row, column, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the gradient of the scores of a block."""
    weights = _weights(given, back, row, column, sizes, size)
    to_weights = _products(back[2], given[2], row, column, (sizes[1], sizes[3]), size)
    share = tl.load(back[1] + row, mask=row < sizes[1], other=0.0)
    return weights * (to_weights - share[:, None])


@_kernel
def _to_queries(given, back, to_q, to_band, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the gradient of a block of queries and features, and that of the band."""
    given = _of_head(given, sizes)
    back = _back_of_head(back, sizes)
    num_rows = sizes[1]
    head = tl.program_id(1).to(tl.int64) * num_rows
    row = tl.program_id(0) * size + tl.arange(0, size)
    feature = tl.program_id(2) * size + tl.arange(0, size)
    first = tl.load(given[4] + tl.program_id(0) * size)
    stop = tl.minimum((tl.program_id(0) + 1) * size, num_rows)
    band = to_band + head * sizes[4] + row[:, None] * sizes[4]
    total = tl.zeros((size, size), dtype=tl.float32)
    for begin in range(first // size * size, stop, size):
        column = begin + tl.arange(0, size)
        to_scores = _score_gradient(given, back, row, column, sizes, size)
        steps = row[:, None] - column[None, :]
        in_band = (steps >= 0) & (steps < sizes[4]) & (row[:, None] < num_rows)
        if tl.program_id(2) == 0:
            # Every place of the band belongs to one pair, so that nothing is added up.
            tl.store(band + steps, -to_scores, mask=in_band)
        keys = _block(given[1], column, feature, num_rows, sizes[2])
        total += tl.dot(to_scores.to(keys.dtype), keys, input_precision="ieee")
    _store(to_q + head * sizes[2], row, feature, (num_rows, sizes[2]), total)


@_kernel
def _to_keys(given, back, to_k, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the gradient of a block of keys and features."""
    given = _of_head(given, sizes)
    back = _back_of_head(back, sizes)
    num_rows = sizes[1]
    head = tl.program_id(1).to(tl.int64) * num_rows
    column = tl.program_id(0) * size + tl.arange(0, size)
    feature = tl.program_id(2) * size + tl.arange(0, size)
    total = tl.zeros((size, size), dtype=tl.float32)
    for begin in range(tl.program_id(0) * size, num_rows, size):
        row = begin + tl.arange(0, size)
        to_scores = _score_gradient(given, back, row, column, sizes, size)
        queries = _block(given[0], row, feature, num_rows, sizes[2])
        total += tl.dot(tl.trans(to_scores).to(queries.dtype), queries, input_precision="ieee")
    _store(to_k + head * sizes[2], column, feature, (num_rows, sizes[2]), total)


@_kernel
def _to_values(given, back, to_v, sizes, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the gradient of a block of values and features."""
    given = _of_head(given, sizes)
    back = _back_of_head(back, sizes)
    num_rows = sizes[1]
    head = tl.program_id(1).to(tl.int64) * num_rows
    column = tl.program_id(0) * size + tl.arange(0, size)
    feature = tl.program_id(2) * size + tl.arange(0, size)
    total = tl.zeros((size, size), dtype=tl.float32)
    for begin in range(tl.program_id(0) * size, num_rows, size):
        row = begin + tl.arange(0, size)
        weights = _weights(given, back, row, column, sizes, size)
        grads = _block(back[2], row, feature, num_rows, sizes[3])
        total += tl.dot(tl.trans(weights).to(grads.dtype), grads, input_precision="ieee")
    _store(to_v + head * sizes[3], column, feature, (num_rows, sizes[3]), total)


class _Attention(torch.autograd.Function):
    """Attention with a band, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, band: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = tuple(x.contiguous() for x in (q, k, v, band.float(), start))
        out = torch.empty_like(given[2])
        sums = q.new_empty(q.shape[:3], dtype=torch.float32)
        _read[_grid(q, v.shape[3])](given, out, sums, _sizes(q, v, band), _size(q))
        ctx.save_for_backward(*given, out, sums)
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, to_sums: Tensor) -> tuple[Tensor | None, ...]:
        *given, out, sums = ctx.saved_tensors
        q, k, v, band, _ = given
        grad = grad.contiguous()
        # The gradient of a score is its weight times this difference: to its weight, less the
        # share of its query, of which the gradient of the sum is a part.
        shares = (grad.float() * out.float()).sum(-1) - to_sums.float()
        back = (sums, shares, grad)
        sizes = _sizes(q, v, band)
        to_q, to_k, to_v, to_band = (torch.zeros_like(x) for x in (q, k, v, band))
        grid = _grid(q, q.shape[3])
        _to_queries[grid](tuple(given), back, to_q, to_band, sizes, _size(q))
        _to_keys[grid](tuple(given), back, to_k, sizes, _size(q))
        _to_values[_grid(q, v.shape[3])](tuple(given), back, to_v, sizes, _size(q))
        return to_q, to_k, to_v, to_band, None


def _sizes(q: Tensor, v: Tensor, band: Tensor) -> tuple[int, int, int, int, int]:
    """Return the numbers that all kernels get."""
    return q.shape[1], q.shape[2], q.shape[3], v.shape[3], band.shape[3]


def _size(q: Tensor) -> int:
    """Return the size of a block; the interpreter needs small ones for the tests to be quick."""
    return 64 if q.is_cuda else 16


def _grid(q: Tensor, width: int) -> tuple[int, int, int]:
    """Return the number of programs: blocks of steps, heads of all rows, blocks of features."""
    size = _size(q)
    return triton.cdiv(q.shape[2], size), q.shape[0] * q.shape[1], triton.cdiv(width, size)


def attend_fused(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B H T E"],
    v: Float[Tensor, "B H T V"],
    band: Float[Tensor, "B H T w"],
    start: Int[Tensor, "B T"],
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H T"]]:
    """Compute `attend_with_band` in kernels; scores and weights are float32 within them.

    Raises:
        UserError: There is no Triton.
    """
    if triton is None:
        raise UserError(
            "`form` 'fused' needs Triton, which comes with torch for CUDA: there is none here. Use "
            "'chunked'."
        )
    out, sums = _Attention.apply(q, k, v, band, start)  # type: ignore[no-untyped-call]
    return out, sums
