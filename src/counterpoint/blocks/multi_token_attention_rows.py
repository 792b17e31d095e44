"""Multi-Token Attention between queries, keys and values: the chunked form.

Scores of all pairs of a chunk of queries with their keys are in memory at once, and nothing else
is, so that memory grows with the number of steps and not with its square. The next chunk gets the
last rows of this one, because a convolution reads the rows of earlier queries. The gradient is
computed chunk by chunk too: each one is read again, together with the rows before it.

A pair of a query x and a key y counts for the query i >= x if x may read y and i may read y. What a
query may read is a `Span` whose ends never decrease, so this is ``start[i] <= y < stop[x]``:
nothing outside the document or the window of a query has any influence on its scores. The
convolution is computed with what each x may read. The few results that this lets reach before
``start[i]`` are then computed once more, from what i may read (`Edge`).

Source: see `multi_token_attention`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.streams.clock import Span, span_mask
from counterpoint.tracing import is_traced

WHOLE_ROWS = 64
"""Rows of up to so many steps are one chunk."""

CHUNK_ROWS = 32
"""Queries of a chunk. 2,048 steps, 16 heads of 64, one thread: 32 took 453 ms, 128 took 569 ms."""

GRADIENT_ROWS = 64
"""Queries of a chunk of the gradient, which reads up to ten rows before them once more.

1,024 steps, 8 heads of 64, one thread, everything on: 32 took 533 ms, 64 took 459 ms, 128 479 ms.
"""

LANES = 16
"""Heads that oneDNN convolves at once: numbers of 32 bits in the longest registers of a CPU."""

GPU_ROWS = 512
"""Queries of a chunk on a GPU, where small products take as long as larger ones."""

HIDDEN = -1e9
"""Score of a pair that is hidden: its weight becomes exactly zero."""


class Kernels(NamedTuple):
    """The learned part of the mixer of a layer; ``None`` for each operation that it lacks.

    Attributes:
        conv_before: Kernels of the key-query convolution of the scores, one a head: for Q queries,
            the oldest first, and R keys around that of the output.
        mix_before: Maps of scores between the heads of a group.
        conv_after: Kernels of the convolution of the weights after the softmax.
        mix_after: Maps of weights between the heads of a group.
    """

    conv_before: Float[Tensor, "H Q R"] | None = None
    mix_before: Float[Tensor, "G c c"] | None = None
    conv_after: Float[Tensor, "H Q R"] | None = None
    mix_after: Float[Tensor, "G c c"] | None = None

    @property
    def above(self) -> int:
        """Number of rows before a query that its own row is computed from."""
        return sum(kernel.shape[1] - 1 for kernel in self[::2] if kernel is not None)


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


Above = tuple[Tensor | None, ...]
"""Rows before a chunk that the convolutions before and after the softmax read: (B, H, h, K)."""


def read_rows(
    q: Float[Tensor, "B H Q E"],
    k: Float[Tensor, "B G K E"],
    v: Float[Tensor, "B G K E"],
    kernels: Kernels,
    rows: Seen,
    above: Above | None = None,
) -> tuple[Float[Tensor, "B H Q2 E"], Above]:
    """Return what the queries of a chunk read.

    Args:
        q: Rotated queries.
        k: Rotated keys; each of the G heads is shared by equally many heads of queries.
        v: Values.
        kernels: Convolutions and mixing.
        rows: What the queries may read.
        above: Seen of scores and of weights before the chunk. Without them, the first queries serve
            for this: there is no result for the first ``kernels.above`` ones.

    Returns:
        What is read, and the rows of the chunk below those that were above it.
    """
    above_logits, above_weights = above or (None, None)
    logits = scores(q, k, rows)
    all_logits = all_weights = None
    if kernels.conv_before is not None:
        all_logits = _below(logits, above_logits)
        logits = convolve(all_logits, kernels.conv_before, rows, logits.shape[2])
    weights = to_weights(logits, kernels, rows)
    if kernels.conv_after is not None:
        all_weights = _below(weights, above_weights)
        weights = convolve(all_weights, kernels.conv_after, rows, weights.shape[2])
    return weighted(weights, v, kernels, rows), (all_logits, all_weights)


def scores(
    q: Float[Tensor, "B H Q E"], k: Float[Tensor, "B G K E"], rows: Seen
) -> Float[Tensor, "B H Q K"]:
    """Return the scores of all pairs; those of hidden pairs are zero."""
    return hide(_shared(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)), rows, 0.0)


def to_weights(
    logits: Float[Tensor, "B H Q K"], kernels: Kernels, rows: Seen
) -> Float[Tensor, "B H Q K"]:
    """Mix the heads of scores, and apply the softmax; hidden pairs get a weight of zero."""
    if kernels.mix_before is not None:
        logits = mix_heads(logits, kernels.mix_before)
    logits = hide(logits, rows, HIDDEN)
    if logits.element_size() < 4:
        return torch.softmax(logits, -1, dtype=torch.float32).to(logits.dtype)
    return torch.softmax(logits, -1)


def weighted(
    weights: Float[Tensor, "B H Q K"], v: Float[Tensor, "B G K E"], kernels: Kernels, rows: Seen
) -> Float[Tensor, "B H Q E"]:
    """Mix the heads of convolved weights, and return the weighted sums of the values."""
    if kernels.conv_after is not None:
        weights = hide(weights, rows, 0.0)
    if kernels.mix_after is not None:
        weights = mix_heads(weights, kernels.mix_after)
    return _shared(weights, v)


def hide(x: Float[Tensor, "B H Q K"], rows: Seen, value: float) -> Float[Tensor, "B H Q K"]:
    """Overwrite the hidden pairs of the last queries, in place."""
    hidden = rows.hidden[:, :, -x.shape[2] :]
    if rows.first:
        x[..., rows.first :].masked_fill_(hidden, value)
        return x
    return x.masked_fill_(hidden, value)


def mix_heads(
    x: Float[Tensor, "B H Q K"], maps: Float[Tensor, "G c c"]
) -> Float[Tensor, "B H Q K"]:
    """Map the heads of each group: the head h becomes the sum of ``maps[h, g]`` times the g-th."""
    return (maps.to(x.dtype) @ x.reshape(len(x), *maps.shape[:2], -1)).view(x.shape)


def _shared(x: Float[Tensor, "B H Q M"], y: Float[Tensor, "B G M N"]) -> Float[Tensor, "B H Q N"]:
    """Return products with a factor that several heads share, of which no copy is made."""
    folded = x.reshape(len(x), y.shape[1], -1, x.shape[3])
    return (folded @ y).view(*x.shape[:3], y.shape[3])


def _below(x: Float[Tensor, "B H Q K"], above: Tensor | None) -> Float[Tensor, "B H Q2 K"]:
    return x if above is None else torch.cat((above, x), 2)


def convolve(
    x: Float[Tensor, "B H Q K"],
    kernel: Float[Tensor, "H q r"],
    rows: Seen,
    num_learned: int | None = None,
) -> Float[Tensor, "B H Q2 K"]:
    """Convolve queries and keys, each head with its kernel.

    Only taps on pairs count that both queries may read; see the top of this file.

    Args:
        x: Seen of the queries, zero where they may not read; the first ones have no result.
        kernel: The kernels.
        rows: What the queries may read; those that have a result are the last ones.
        num_learned: Number of the last rows of ``x`` that need a gradient; ``None`` means all.
    """
    kernel = kernel.to(x.dtype)
    side = kernel.shape[2] // 2
    if is_traced() or x.is_cuda or not torch.is_grad_enabled():
        y = _convolution(x, kernel)
    else:
        num_fixed = 0 if num_learned is None else x.shape[2] - num_learned
        y = _Convolution.apply(x, kernel, num_fixed)  # type: ignore[no-untyped-call]
    if rows.is_ring and side:
        ends = torch.cat((x[..., -2 * side :], x[..., : 2 * side]), 3)
        joined = _convolution(ends, kernel)
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
    x: Float[Tensor, "B H Q K"], kernel: Float[Tensor, "H q r"]
) -> Float[Tensor, "B H Q2 K"]:
    above = kernel.shape[1] - 1
    fold = _fold(x)
    taps = kernel.repeat(fold, 1, 1)[:, None]
    tiles = _tiles(x, fold, above)
    y = F.conv2d(tiles, taps, padding=(0, kernel.shape[2] // 2), groups=len(taps))
    if fold == 1:
        return y
    y = torch.cat(y.chunk(fold, 1), 2)
    num_rows = x.shape[2] - above
    # A view made here must not be written to, and `hide` does.
    return y if y.shape[2] == num_rows else y[:, :, :num_rows].clone()


def _fold(x: Float[Tensor, "B H Q K"]) -> int:
    """Return into how many tiles of rows a convolution of few heads is cut.

    On a CPU, oneDNN convolves `LANES` heads at a time, and takes as long for fewer.
    """
    return 1 if x.is_cuda or LANES % x.shape[1] else LANES // x.shape[1]


def _tiles(x: Float[Tensor, "B H Q K"], fold: int, above: int) -> Float[Tensor, "B H2 Q2 K"]:
    """Return tiles of rows, each with those above it, side by side as further heads.

    The last tile may end with rows of zeros.
    """
    if fold == 1:
        return x
    size = -((above - x.shape[2]) // fold)
    missing = size * fold + above - x.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.unfold(2, size + above, size).permute(0, 2, 1, 4, 3).flatten(1, 2)


class _Convolution(torch.autograd.Function):
    """`_convolution` with a faster gradient of the kernels, on a CPU.

    For 16 heads, 128 queries and 4,096 keys torch takes 690 ms for it, and a convolution with the
    gradient takes 89 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, num_fixed: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.num_fixed = num_fixed
        return _convolution(x, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, kernel = ctx.saved_tensors
        num_heads, num_queries, num_keys = kernel.shape
        above = num_queries - 1
        padded = F.pad(grad, (0, 0, above - ctx.num_fixed, above))
        to_x = _convolution(padded, kernel.flip(1, 2))
        to_x = F.pad(to_x, (0, 0, ctx.num_fixed, 0))
        # The gradient of the kernels is a convolution whose kernels are the gradients.
        fold = _fold(x)
        each = F.conv2d(
            _tiles(x, fold, above).flatten(0, 1)[None],
            _tiles(grad, fold, 0).flatten(0, 1)[:, None],
            padding=(0, num_keys // 2),
            groups=len(x) * num_heads * fold,
        )
        return to_x, each.unflatten(1, (-1, num_heads)).sum((0, 1)), None


class Piece(NamedTuple):
    """A chunk of whole rows.

    Attributes:
        above: First query that is read for the sake of later ones.
        row: First query with a result.
        stop: The query after the last one.
        key: First key.
        last: The key after the last one.
    """

    above: int
    row: int
    stop: int
    key: int
    last: int


def pieces(num_steps: int, window: int, size: int, above: int = 0) -> Iterator[Piece]:
    """Cut whole rows into chunks of ``size`` queries, each with ``above`` queries before it."""
    for row in range(0, num_steps, size):
        first = max(0, row - above)
        stop = min(row + size, num_steps)
        key = max(0, first - window + 1)
        last = stop if key else min(_rounded(stop), num_steps)
        yield Piece(first, row, stop, key, last)


def _rounded(number: int) -> int:
    """Return the next number of keys that chunks have, at most a sixteenth more.

    If each chunk were a little larger than the one before it, it would not fit the memory that this
    one has left, and the C library would get new memory for it.
    """
    unit = 1 << max(5, number.bit_length() - 5)
    return -(-number // unit) * unit


def chunk_rows(num_steps: int, is_cuda: bool = False) -> int:
    """Return the number of queries of a chunk of whole rows."""
    if is_cuda:
        return GPU_ROWS
    return num_steps if num_steps <= WHOLE_ROWS else CHUNK_ROWS


class RowReach(NamedTuple):
    """What the queries of whole rows may read.

    Attributes:
        start: First step that each query may read.
        window: Number of most recent steps that a query reads at most, including its own.
        is_plain: Whether every query is known to read all steps up to its own.
    """

    start: Int[Tensor, "B T"]
    window: int
    is_plain: bool

    def rows(self, piece: Piece, side: int) -> Seen:
        """Return what the queries of a chunk may read among the columns from its first key on."""
        query = torch.arange(piece.above, piece.stop, device=self.start.device)
        if self.is_plain:
            key = torch.arange(piece.above, piece.last, device=self.start.device)[None]
            seen = span_mask(Span(torch.zeros_like(query)[None], query[None] + 1), key)
            return Seen(~seen[:, None], piece.above - piece.key)
        start = self.start[:, piece.above : piece.stop]
        key = torch.arange(piece.key, piece.last, device=start.device)[None]
        seen = span_mask(Span(start, (query + 1).expand_as(start)), key)
        most = len(key[0]) - 1
        near = start[..., None] + torch.arange(2 * side, device=start.device)
        edge = Edge((near - piece.key).clamp(0, most), near <= query[:, None])
        return Seen(~seen[:, None], 0, edge)


def attend_chunked(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G T E"],
    v: Float[Tensor, "B G T E"],
    kernels: Kernels,
    reach: RowReach,
) -> Float[Tensor, "B H T E"]:
    """Return what the queries of whole rows read; memory grows with T, also for the gradient."""
    num_steps = q.shape[2]
    if is_traced() or num_steps <= WHOLE_ROWS or not torch.is_grad_enabled():
        return _attend(q, k, v, kernels, reach)
    return _Chunked.apply(q, k, v, *kernels, reach)  # type: ignore[no-untyped-call]


def _attend(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, reach: RowReach) -> Tensor:
    """Read whole rows chunk by chunk; each gets the last rows of the one before it."""
    num_steps = q.shape[2]
    above: Above = (None, None)
    read = []
    last_key = 0
    for piece in pieces(num_steps, reach.window, chunk_rows(num_steps, q.is_cuda)):
        columns = (last_key, piece.key, piece.last)
        above = tuple(
            _moved(rows, kernel, q, columns)
            for rows, kernel in zip(above, kernels[::2], strict=True)
        )
        part, above = read_rows(
            q[:, :, piece.row : piece.stop],
            k[:, :, piece.key : piece.last],
            v[:, :, piece.key : piece.last],
            kernels,
            reach.rows(piece, _side(kernels)),
            above,
        )
        read.append(part)
        last_key = piece.key
    return torch.cat(read, 2)


def _moved(
    rows: Tensor | None, kernel: Tensor | None, q: Tensor, columns: tuple[int, int, int]
) -> Tensor | None:
    """Return rows before a chunk over its columns; before the first chunk they are zeros."""
    if kernel is None:
        return None
    last_key, key, stop = columns
    num_rows = kernel.shape[1] - 1
    if rows is None:
        return q.new_zeros(*q.shape[:2], num_rows, stop - key)
    rows = rows[:, :, rows.shape[2] - num_rows :, key - last_key :]
    return F.pad(rows, (0, stop - key - rows.shape[3]))


def _side(kernels: Kernels) -> int:
    return max((kernel.shape[2] // 2 for kernel in kernels[::2] if kernel is not None), default=0)


class _Chunked(torch.autograd.Function):
    """`_attend` with a gradient that reads each chunk again instead of keeping its scores."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.reach = inputs
        ctx.save_for_backward(*tensors)
        q, k, v, *kernels = tensors
        return _attend(q, k, v, Kernels(*kernels), ctx.reach)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kernels = ctx.saved_tensors
        totals = [torch.zeros_like(one) for one in (q, k, v)]
        to_kernels = [None if one is None else torch.zeros_like(one) for one in kernels]
        learned = Kernels(*(one if one is None else _leaf(one) for one in kernels))
        size = GPU_ROWS if q.is_cuda else GRADIENT_ROWS
        cut = list(pieces(q.shape[2], ctx.reach.window, size, learned.above))
        for piece in reversed(cut):  # the largest first, whose memory the others use again
            queries = slice(piece.above, piece.stop)
            keys = slice(piece.key, piece.last)
            at = (queries, keys, keys)
            parts = [_leaf(x[:, :, here]) for x, here in zip((q, k, v), at, strict=True)]
            with torch.enable_grad():
                read = _read_again(parts, learned, ctx.reach, piece)
            wanted = [one for one in (*parts, *learned) if one is not None]
            found = torch.autograd.grad(read, wanted, grad[:, :, piece.row : piece.stop])
            places = [total[:, :, here] for total, here in zip(totals, at, strict=True)]
            places += [total for total in to_kernels if total is not None]
            for place, part in zip(places, found, strict=True):
                place += part
        return (*totals, *to_kernels, None)


def _leaf(x: Tensor) -> Tensor:
    """Return a tensor of which a gradient can be asked."""
    return x.detach().requires_grad_()


def _read_again(parts: list[Tensor], kernels: Kernels, reach: RowReach, piece: Piece) -> Tensor:
    """Read a chunk from its queries and those before it, given them, their keys and values."""
    q, k, v = parts
    rows = reach.rows(piece, _side(kernels))
    above: Above | None = None
    if not piece.above:  # the queries before it are those of the chunk's own, or none
        columns = (0, 0, piece.last)
        above = tuple(_moved(None, kernel, q, columns) for kernel in kernels[::2])
    read, _ = read_rows(q, k, v, kernels, rows, above)
    return read[:, :, piece.row - piece.stop :]
