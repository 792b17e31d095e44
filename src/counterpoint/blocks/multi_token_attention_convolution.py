"""Convolutions of rows of scores or weights over queries and keys, for Multi-Token Attention.

A pair of a query x and a key y counts for the query i >= x if x may read y and i may read y. What a
query may read is a `Span` whose ends never decrease, so this is ``start[i] <= y < stop[x]``:
nothing outside the document or the window of a query has any influence on its scores. The
convolution is computed with what each x may read. The few results that this lets reach before
``start[i]`` are then computed once more, from what i may read (`Edge`).

Source: see `multi_token_attention`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.tracing import is_traced

LANES = 16
"""Heads that oneDNN convolves at once: numbers of 32 bits in the longest registers of a CPU."""


class Edge(NamedTuple):
    """The first keys that each query of a chunk reads, twice as many as a kernel has on one side.

    Attributes:
        column: Their columns.
        is_read: Which of them exist; the query may read fewer.
    """

    column: Int[Tensor, "B Q r"]
    is_read: Bool[Tensor, "B Q r"]

    def last(self, num_rows: int) -> "Edge":
        """Return the edge of the last queries."""
        return Edge(self.column[:, -num_rows:], self.is_read[:, -num_rows:])


class Seen(NamedTuple):
    """What the queries of a chunk may read, among columns of keys.

    Attributes:
        hidden: Whether the query must not read the key, for the columns from ``first`` on.
        first: All queries read all columns before this one.
        edge: See `Edge`; ``None`` if all queries of the chunk begin to read at one key.
        is_ring: Whether the first column follows the last one.
    """

    hidden: Bool[Tensor, "B 1 Q K"]
    first: int = 0
    edge: Edge | None = None
    is_ring: bool = False


def convolve(
    x: Float[Tensor, "B H Q K"],
    kernel: Float[Tensor, "H q r"],
    rows: Seen,
    num_learned: int | None = None,
) -> Float[Tensor, "B H Q2 K"]:
    """Convolve queries and keys, each head with its kernel.

    Only taps on pairs count that both queries may read; see the top of this file.

    Args:
        x: Rows of the queries, zero where they may not read; the first ones have no result.
        kernel: The kernels.
        rows: What the queries may read; those that have a result are the last ones.
        num_learned: Number of the last rows of ``x`` that need a gradient; ``None`` means all.
    """
    kernel = kernel.to(x.dtype)
    side = kernel.shape[2] // 2
    if is_traced() or x.is_cuda or not torch.is_grad_enabled():
        y, _ = _convolution(x, kernel)
    else:
        num_fixed = 0 if num_learned is None else x.shape[2] - num_learned
        y = _Convolution.apply(x, kernel, num_fixed)  # type: ignore[no-untyped-call]
    if rows.is_ring and side:
        ends = torch.cat((x[..., -2 * side :], x[..., : 2 * side]), 3)
        joined, _ = _convolution(ends, kernel)
        y[..., -side:] = joined[..., side : 2 * side]
        y[..., :side] = joined[..., 2 * side : 3 * side]
    if rows.edge is not None and side and kernel.shape[1] > 1:
        return _with_edge(x, kernel, rows.edge.last(y.shape[2]), y)
    return y


def _with_edge(x: Tensor, kernel: Tensor, edge: Edge, y: Tensor) -> Tensor:
    """Return results whose first keys of each query come from taps alone that it may read."""
    num_rows, num_near = edge.column.shape[1:]
    side = num_near // 2
    row = torch.arange(num_rows, device=x.device)[:, None]
    row = row + torch.arange(kernel.shape[1], device=x.device)
    place = row[..., None] * x.shape[3] + edge.column[:, :, None]
    found = x.flatten(2).gather(2, _heads(place.flatten(1), x))
    found = found.unflatten(2, place.shape[1:]) * edge.is_read[:, None, :, None]
    near = torch.arange(num_near, device=x.device)
    tap = near[:, None] - near[:side] + side
    taps = kernel[:, :, tap.clamp(max=2 * side)] * (tap <= 2 * side)
    result = torch.einsum("bhqan,hans->bhqs", found, taps)
    # A key that the query does not read has no place of its own: it repeats that of the first one.
    is_read = edge.is_read[..., :side]
    column = torch.where(is_read, edge.column[..., :side], edge.column[..., :1])
    result = torch.where(is_read[:, None], result, result[..., :1].detach())
    return y.scatter(3, _heads(column, y), result)


def _heads(index: Int[Tensor, "B *K"], like: Tensor) -> Int[Tensor, "B H *K"]:
    return index[:, None].expand(len(like), like.shape[1], *index.shape[1:])


def _convolution(
    x: Float[Tensor, "B H Q K"],
    kernel: Float[Tensor, "H q r"],
    zeros: tuple[int, int] = (0, 0),
) -> tuple[Float[Tensor, "B H Q2 K"], Float[Tensor, "B H2 Q3 K"]]:
    """Convolve rows with so many rows of zeros before and after them; also return their tiles."""
    above = kernel.shape[1] - 1
    num_rows = x.shape[2] + sum(zeros) - above
    fold = _fold(x, num_rows)
    tiles = _tiles(x, fold, above, zeros)
    taps = kernel if fold == 1 else kernel.repeat(fold, 1, 1)
    y = F.conv2d(tiles, taps[:, None], padding=(0, kernel.shape[2] // 2), groups=len(taps))
    if fold > 1:
        # A view must not be returned, because `hide` writes to the result.
        y = torch.cat(y.chunk(fold, 1), 2)
        y = y if y.shape[2] == num_rows else y[:, :, :num_rows].clone()
    return y, tiles


def _fold(x: Float[Tensor, "B H Q K"], num_rows: int) -> int:
    """Return into how many tiles of rows a convolution of few heads is cut.

    On a CPU, oneDNN convolves `LANES` heads at a time, and takes as long for fewer. `_tiles` writes
    to memory, which a trace does not allow.
    """
    if x.is_cuda or is_traced():
        return 1
    return _num_tiles(x.shape[1], num_rows)


def _num_tiles(num_heads: int, num_rows: int) -> int:
    fold = LANES // num_heads
    return 1 if fold > num_rows or fold * num_heads != LANES else fold


def tiled_rows(num_heads: int, num_rows: int) -> int:
    """Return how many rows a CPU convolves: a few more where tiles are not full."""
    fold = _num_tiles(num_heads, num_rows)
    return -(-num_rows // fold) * fold


def _tiles(
    x: Float[Tensor, "B H Q K"], fold: int, above: int, zeros: tuple[int, int] = (0, 0)
) -> Float[Tensor, "B H2 Q2 K"]:
    """Return tiles of rows, each with those above it, side by side as further heads.

    There are rows of zeros before and after the rows, and the last tile may end with more of them.
    """
    if fold == 1:
        return F.pad(x, (0, 0, *zeros)) if any(zeros) else x
    num_rows = x.shape[2]
    size = -((above - num_rows - sum(zeros)) // fold)
    tiles = x.new_empty(len(x), fold, x.shape[1], size + above, x.shape[3])
    for number, tile in enumerate(tiles.unbind(1)):
        top = number * size - zeros[0]
        begin = min(max(top, 0), num_rows)
        end = min(max(top + size + above, 0), num_rows)
        tile[:, :, : begin - top] = 0
        tile[:, :, begin - top : end - top] = x[:, :, begin:end]
        tile[:, :, max(end - top, 0) :] = 0
    return tiles.flatten(1, 2)


class _Convolution(torch.autograd.Function):
    """`_convolution` with a faster gradient of the kernels, on a CPU.

    For 16 heads, 128 queries and 4,096 keys torch takes 690 ms for it, and a convolution with the
    gradient takes 89 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, num_fixed: int) -> Tensor:
        y, tiles = _convolution(x, kernel)
        ctx.save_for_backward(tiles, kernel)
        ctx.num_fixed = num_fixed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        tiles, kernel = ctx.saved_tensors
        num_heads, num_queries, num_keys = kernel.shape
        above = num_queries - 1
        to_x, _ = _convolution(grad, kernel.flip(1, 2), (above - ctx.num_fixed, above))
        if ctx.num_fixed:
            to_x = F.pad(to_x, (0, 0, ctx.num_fixed, 0))
        # The gradient of the kernels is a convolution whose kernels are the gradients.
        weights = _tiles(grad, tiles.shape[1] // num_heads, 0).flatten(0, 1)
        each = F.conv2d(
            tiles.flatten(0, 1)[None],
            weights[:, None],
            padding=(0, num_keys // 2),
            groups=len(weights),
        )
        return to_x, each.unflatten(1, (-1, num_heads)).sum((0, 1)), None
