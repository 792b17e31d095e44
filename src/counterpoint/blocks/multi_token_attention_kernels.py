"""Kernels of the lifted form of Multi-Token Attention; `multi_token_attention_fused` runs them.

They are those of flash attention for queries, keys and values of any width, with bands that are
taken off the scores at both ends of what a query reads, and with documents and windows. A program
keeps what it computes for a block of rows in registers, in parts of some features.

Source: FlashAttention-2 (arXiv:2307.08691) for the order of the work; the rest is our own.
"""

# Kernels have no annotations that mypy would understand.
# mypy: disable-error-code="no-untyped-def, assignment"
from __future__ import annotations  # `tl` may be missing

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_has_triton = find_spec("triton") is not None  # it comes with torch for CUDA alone
triton: Any = import_module("triton") if _has_triton else None
tl: Any = import_module("triton.language") if _has_triton else None

HIDDEN = -1e9 if tl is None else tl.constexpr(-1e9)
LOG2E = 1.4426950408889634 if tl is None else tl.constexpr(1.4426950408889634)
MOST_PARTS = 8 if tl is None else tl.constexpr(8)


def jitted(function: Callable[..., Any]) -> Any:
    """Make a kernel, or a part of one. All parts get the same arguments.

    ``given`` has the queries, the keys, the values, the bands side by side, the starts and the ends
    (see `_ends`) of every row; ``back`` has the sums of the queries, their shares (see
    `_Attention.backward`) and the gradient of what was read. ``counts`` are the numbers of heads
    and steps, ``widths`` are those of `KernelWidths`, and ``blocks`` is what `KernelBlocks.cut`
    returns.
    """
    return function if triton is None else triton.jit(function)


@jitted
def _of_head(given, counts, widths: tl.constexpr):
    """Return the matrices of the head of a program."""
    head = tl.program_id(1).to(tl.int64) * counts[1]
    row = (tl.program_id(1) // counts[0]).to(tl.int64) * counts[1]
    return (
        given[0] + head * widths[0],
        given[1] + head * widths[0],
        given[2] + head * widths[1],
        given[3] + head * (widths[2] + widths[3]),
        given[4] + row,
        given[5] + row,
    )


@jitted
def _back_of_head(back, counts, widths: tl.constexpr):
    """Return what the gradient of the head of a program needs."""
    head = tl.program_id(1).to(tl.int64) * counts[1]
    return back[0] + head, back[1] + head, back[2] + head * widths[1]


@jitted
def _parts(
    base, row, first, num_rows, width: tl.constexpr, size: tl.constexpr, number: tl.constexpr
):
    """Load rows of a matrix in parts of some features, from a first one on; zero outside of it."""
    found = ()
    for place in tl.static_range(number):
        feature = first + place * size + tl.arange(0, size)
        inside = row[:, None] < num_rows
        if width % size != 0 or number * size > width:
            inside = inside & (feature[None, :] < width)
        found = found + (
            tl.load(base + row[:, None] * width + feature[None, :], mask=inside, other=0.0),
        )
    return found


@jitted
def _product(a, b, rows, num_rows, width: tl.constexpr, size: tl.constexpr):
    """Return the products of rows of two matrices, over all features.

    Narrow matrices are loaded whole, so that what does not change in a loop is loaded once.
    """
    number: tl.constexpr = (width + size - 1) // size
    total = tl.zeros((rows[0].shape[0], rows[1].shape[0]), dtype=tl.float32)
    if number <= MOST_PARTS and width <= 512:
        left = _parts(a, rows[0], 0, num_rows, width, size, number)
        right = _parts(b, rows[1], 0, num_rows, width, size, number)
        for place in tl.static_range(number):
            total = tl.dot(left[place], tl.trans(right[place]), total, input_precision="ieee")
    else:
        for first in range(0, width, size):
            left = _parts(a, rows[0], first, num_rows, width, size, 1)
            right = _parts(b, rows[1], first, num_rows, width, size, 1)
            total = tl.dot(left[0], tl.trans(right[0]), total, input_precision="ieee")
    return total


@jitted
def _add(total, weights, base, row, first, num_rows, width: tl.constexpr, size: tl.constexpr):
    """Add weighted rows of a matrix to the parts of a sum."""
    loaded = _parts(base, row, first, num_rows, width, size, len(total))
    found = ()
    for place in tl.static_range(len(total)):
        part = loaded[place]
        found = found + (
            tl.dot(weights.to(part.dtype), part, total[place], input_precision="ieee"),
        )
    return found


@jitted
def no_parts(rows: tl.constexpr, size: tl.constexpr, number: tl.constexpr):
    """Return the parts of an empty sum."""
    found = ()
    for _ in tl.static_range(number):
        found = found + (tl.zeros((rows, size), dtype=tl.float32),)
    return found


@jitted
def _store(base, row, first, num_rows, width: tl.constexpr, parts):
    """Store rows of a matrix, in parts from a feature on."""
    for place in tl.static_range(len(parts)):
        part = parts[place]
        feature = first + place * part.shape[1] + tl.arange(0, part.shape[1])
        inside = (row[:, None] < num_rows) & (feature[None, :] < width)
        at = base + row[:, None] * width + feature[None, :]
        tl.store(at, part.to(base.dtype.element_ty), mask=inside)


@jitted
def _in_bands(row, steps, counts, widths: tl.constexpr):
    """Return where the bands have what belongs to pairs, and which pairs are in the two bands."""
    base = row * (widths[2] + widths[3])
    far = widths[4] - 1 - steps
    inside = row < counts[1]
    in_near = (steps >= 0) & (steps < widths[2]) & inside
    in_far = (far >= 0) & (far < widths[3]) & inside
    return base + steps, in_near, base + widths[2] + far, in_far


@jitted
def _scores(given, rows, counts, widths: tl.constexpr, blocks: tl.constexpr, how: tl.constexpr):
    """Return the scores of a block of queries and keys, those that are not read hidden.

    ``how`` says whether the block has pairs that are not read or that a band changes, and whether
    the first axis of the result is that of the keys.
    """
    num_rows = counts[1]
    if how[1]:
        total = _product(given[1], given[0], (rows[1], rows[0]), num_rows, widths[0], blocks[3])
    else:
        total = _product(given[0], given[1], rows, num_rows, widths[0], blocks[3])
    if how[0]:
        first = tl.load(given[4] + rows[0], mask=rows[0] < num_rows, other=0)
        if how[1]:
            row = rows[0][None, :]
            column = rows[1][:, None]
            start = first[None, :]
        else:
            row = rows[0][:, None]
            column = rows[1][None, :]
            start = first[:, None]
        steps = row - column
        if widths[2] > 0:
            near, in_near, far, in_far = _in_bands(row, steps, counts, widths)
            total -= tl.load(given[3] + near, mask=in_near, other=0.0)
            if widths[3] > 0:
                total -= tl.load(given[3] + far, mask=in_far, other=0.0)
        seen = (steps >= 0) & (column >= start) & (row < num_rows)
        total = tl.where(seen, total, HIDDEN)
    return total


@jitted
def _ranges(given, counts, widths: tl.constexpr, blocks: tl.constexpr):
    """Return the keys that a block of queries reads: the first, and then where others begin.

    Keys from the second number to the third are read by all queries of the block, and no band
    changes their scores. The fourth number is the key after the last one.
    """
    own: tl.constexpr = blocks[0]
    other: tl.constexpr = blocks[1]
    top = (tl.num_programs(0) - 1 - tl.program_id(0)) * own  # the longest rows first
    stop = tl.minimum(top + own, counts[1])
    first = tl.load(given[4] + top).to(tl.int32)  # starts never decrease
    last = tl.load(given[4] + stop - 1).to(tl.int32) + widths[3]
    middle = (last + other - 1) // other * other
    near = tl.maximum(top - widths[2] + 1, 0) // other * other
    return top, first // other * other, middle, tl.maximum(near, middle), stop


@jitted
def _take(
    given,
    queries,
    column,
    state,
    counts,
    widths: tl.constexpr,
    blocks: tl.constexpr,
    masked: tl.constexpr,
):
    """Read a block of keys; the state has the highest score, the sum, and what was read."""
    other: tl.constexpr = blocks[1]
    rows = (queries, column + tl.arange(0, other))
    scores = _scores(given, rows, counts, widths, blocks, (masked, False))
    highest = tl.maximum(state[0], tl.max(scores, 1))
    faded = tl.exp2((state[0] - highest) * LOG2E)
    weights = tl.exp2(scores * LOG2E - (highest * LOG2E)[:, None])
    if masked:
        # Hidden pairs of a query without any other score would count as much as others.
        weights = tl.where(scores > HIDDEN / 2, weights, 0.0)
    read = ()
    for place in tl.static_range(len(state[2])):
        read = read + (state[2][place] * faded[:, None],)
    first = _first(blocks, widths[1])
    read = _add(read, weights, given[2], rows[1], first, counts[1], widths[1], blocks[4])
    return highest, state[1] * faded + tl.sum(weights, 1), read


@jitted
def _first(blocks: tl.constexpr, width: tl.constexpr):
    """Return the first feature that a program computes."""
    first = tl.program_id(2) * blocks[2]
    if width <= blocks[2]:
        first = 0
    return first


@jitted
def read_kernel(given, out, sums, counts, widths: tl.constexpr, blocks: tl.constexpr):
    """Compute what a block of queries reads of a slab of features of the values."""
    own: tl.constexpr = blocks[0]
    other: tl.constexpr = blocks[1]
    number: tl.constexpr = blocks[2] // blocks[4]
    given = _of_head(given, counts, widths)
    num_rows = counts[1]
    head = tl.program_id(1).to(tl.int64) * num_rows
    top, begin, middle, near, stop = _ranges(given, counts, widths, blocks)
    row = top + tl.arange(0, own)
    state = (
        tl.full((own,), HIDDEN, dtype=tl.float32),
        tl.zeros((own,), dtype=tl.float32),
        no_parts(own, blocks[4], number),
    )
    for column in range(middle, near, other):
        state = _take(given, row, column, state, counts, widths, blocks, False)
    num_first = (middle - begin) // other
    for place in range(num_first + tl.cdiv(tl.maximum(stop - near, 0), other)):
        early = begin + place * other
        column = tl.where(place < num_first, early, near + (place - num_first) * other)
        state = _take(given, row, column, state, counts, widths, blocks, True)
    total = tl.where(state[1] > 0, state[1], 1.0)
    read = ()
    for place in tl.static_range(number):
        read = read + (state[2][place] / total[:, None],)
    _store(out + head * widths[1], row, _first(blocks, widths[1]), num_rows, widths[1], read)
    tl.store(sums + head + row, state[0] + tl.log(total), mask=row < num_rows)


@jitted
def _column_ranges(given, counts, widths: tl.constexpr, blocks: tl.constexpr):
    """Return the queries that read a block of keys, as `_ranges` does for keys."""
    own: tl.constexpr = blocks[0]
    other: tl.constexpr = blocks[1]
    top = tl.program_id(0) * own
    first = tl.load(given[5] + top).to(tl.int32)  # ends never decrease
    stop = tl.load(given[5] + tl.minimum(top + own, counts[1]) - 1).to(tl.int32)
    middle = (top + own - 1 + widths[2] + other - 1) // other * other
    near = tl.maximum(first - widths[3], 0) // other * other
    return top, top // other * other, middle, tl.maximum(near, middle), stop


@jitted
def _weights(
    given, back, rows, counts, widths: tl.constexpr, blocks: tl.constexpr, how: tl.constexpr
):
    """Return the weights of a block, computed again; for ``how`` see `_scores`."""
    scores = _scores(given, rows, counts, widths, blocks, how)
    sums = tl.load(back[0] + rows[0], mask=rows[0] < counts[1], other=0.0) * LOG2E
    sums = sums[None, :] if how[1] else sums[:, None]
    weights = tl.exp2(scores * LOG2E - sums)
    return tl.where(scores > HIDDEN / 2, weights, 0.0) if how[0] else weights


@jitted
def _to_scores(
    given, back, rows, counts, widths: tl.constexpr, blocks: tl.constexpr, how: tl.constexpr
):
    """Return the gradient of the scores of a block."""
    weights = _weights(given, back, rows, counts, widths, blocks, how)
    shares = tl.load(back[1] + rows[0], mask=rows[0] < counts[1], other=0.0)
    if how[1]:
        turned = (rows[1], rows[0])
        found = (
            _product(given[2], back[2], turned, counts[1], widths[1], blocks[4]) - shares[None, :]
        )
    else:
        found = _product(back[2], given[2], rows, counts[1], widths[1], blocks[4]) - shares[:, None]
    return weights * found


@jitted
def _query_block(given, back, rows, total, out, counts, widths: tl.constexpr, how: tl.constexpr):
    """Add what a block of keys has to say about its queries; ``how`` is (blocks, masked)."""
    blocks: tl.constexpr = how[0]
    to_scores = _to_scores(given, back, rows, counts, widths, blocks, (how[1], False))
    first = _first(blocks, widths[0])
    total = _add(total, to_scores, given[1], rows[1], first, counts[1], widths[0], blocks[3])
    if how[1] and widths[2] > 0:
        steps = rows[0][:, None] - rows[1][None, :]
        near, in_near, far, in_far = _in_bands(rows[0][:, None], steps, counts, widths)
        if tl.program_id(2) == 0:
            # Every place of a band belongs to one pair, so that nothing is added up.
            tl.store(out + near, -to_scores, mask=in_near)
            if widths[3] > 0:
                tl.store(out + far, -to_scores, mask=in_far)
    return total


@jitted
def query_kernel(given, back, to_q, to_bands, counts, widths: tl.constexpr, blocks: tl.constexpr):
    """Compute the gradient of a block of queries and a slab of features, and that of the bands."""
    own: tl.constexpr = blocks[0]
    other: tl.constexpr = blocks[1]
    given = _of_head(given, counts, widths)
    back = _back_of_head(back, counts, widths)
    head = tl.program_id(1).to(tl.int64) * counts[1]
    bands = to_bands + head * (widths[2] + widths[3])
    top, begin, middle, near, stop = _ranges(given, counts, widths, blocks)
    row = top + tl.arange(0, own)
    total = no_parts(own, blocks[3], blocks[2] // blocks[3])
    for column in range(middle, near, other):
        rows = (row, column + tl.arange(0, other))
        total = _query_block(given, back, rows, total, bands, counts, widths, (blocks, False))
    num_first = (middle - begin) // other
    for place in range(num_first + tl.cdiv(tl.maximum(stop - near, 0), other)):
        early = begin + place * other
        column = tl.where(place < num_first, early, near + (place - num_first) * other)
        rows = (row, column + tl.arange(0, other))
        total = _query_block(given, back, rows, total, bands, counts, widths, (blocks, True))
    _store(to_q + head * widths[0], row, _first(blocks, widths[0]), counts[1], widths[0], total)


@jitted
def _key_block(given, back, rows, total, counts, widths: tl.constexpr, how: tl.constexpr):
    """Add what a block of queries has to say about its keys, or about its values.

    ``how`` is (blocks, masked, whether about keys).
    """
    blocks: tl.constexpr = how[0]
    width: tl.constexpr = widths[0] if how[2] else widths[1]
    part: tl.constexpr = blocks[3] if how[2] else blocks[4]
    if how[2]:
        found = _to_scores(given, back, rows, counts, widths, blocks, (how[1], True))
        base = given[0]
    else:
        found = _weights(given, back, rows, counts, widths, blocks, (how[1], True))
        base = back[2]
    return _add(total, found, base, rows[0], _first(blocks, width), counts[1], width, part)


@jitted
def key_kernel(
    given, back, out, counts, widths: tl.constexpr, blocks: tl.constexpr, to_keys: tl.constexpr
):
    """Compute the gradient of a block of keys, or of values, and a slab of features."""
    own: tl.constexpr = blocks[0]
    other: tl.constexpr = blocks[1]
    width: tl.constexpr = widths[0] if to_keys else widths[1]
    given = _of_head(given, counts, widths)
    back = _back_of_head(back, counts, widths)
    head = tl.program_id(1).to(tl.int64) * counts[1]
    top, begin, middle, near, stop = _column_ranges(given, counts, widths, blocks)
    column = top + tl.arange(0, own)
    part: tl.constexpr = blocks[3] if to_keys else blocks[4]
    total = no_parts(own, part, blocks[2] // part)
    for row in range(middle, near, other):
        rows = (row + tl.arange(0, other), column)
        total = _key_block(given, back, rows, total, counts, widths, (blocks, False, to_keys))
    num_first = (middle - begin) // other
    for place in range(num_first + tl.cdiv(tl.maximum(stop - near, 0), other)):
        early = begin + place * other
        row = tl.where(place < num_first, early, near + (place - num_first) * other)
        rows = (row + tl.arange(0, other), column)
        total = _key_block(given, back, rows, total, counts, widths, (blocks, True, to_keys))
    _store(out + head * width, column, _first(blocks, width), counts[1], width, total)
