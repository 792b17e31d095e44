"""Multi-Token Attention between queries, keys and values: the chunked form.

Scores of all pairs of a chunk of queries with their keys are in memory at once, and nothing else
is, so that memory grows with the number of steps and not with its square. The next chunk gets the
last rows of this one, because a convolution reads the rows of earlier queries. The gradient is
computed chunk by chunk too: each one is read again, together with the rows before it.

`multi_token_attention_convolution` says which pairs count.

Source: see `multi_token_attention`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from counterpoint.blocks.multi_token_attention_convolution import Edge, Seen, convolve
from counterpoint.streams.clock import Span, span_mask
from counterpoint.tracing import is_traced, tracing

WHOLE_ROWS = 64
"""Rows of up to so many steps are one chunk."""

CHUNK_ROWS = 32
"""Queries of a chunk. 2,048 steps, 16 heads of 64, one thread: 32 took 453 ms, 128 took 569 ms."""

FEW_HEADS_ROWS = 64
"""Queries of a chunk of at most 8 heads. 1,024 steps, 8 heads: 32 took 83 ms, 64 took 70 ms."""

GRADIENT_ROWS = 64
"""Queries of a chunk of the gradient, which reads up to ten rows before them once more.

1,024 steps, 8 heads of 64, one thread, everything on: 32 took 533 ms, 64 took 459 ms, 128 479 ms.
"""

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

    The two convolutions may have different numbers of queries. The chunked form needs equally many
    keys in both, because the edges of what is read are found once for both (`Edge`).
    """

    conv_before: Float[Tensor, "H Q R"] | None = None
    mix_before: Float[Tensor, "G c c"] | None = None
    conv_after: Float[Tensor, "H Q R"] | None = None
    mix_after: Float[Tensor, "G c c"] | None = None

    @property
    def above(self) -> int:
        """Number of rows before a query that its own row is computed from."""
        return sum(kernel.shape[1] - 1 for kernel in self[::2] if kernel is not None)


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
        above: Rows of scores and of weights before the chunk. Without them, the first queries serve
            for this: there is no result for the first ``kernels.above`` ones.

    Returns:
        What is read, and the rows of the chunk below those that were above it.
    """
    above_logits, above_weights = above or (None, None)
    logits = scores(q, k)
    all_logits = all_weights = None
    if kernels.conv_before is not None:
        all_logits = _below(hide(logits, rows, 0.0), above_logits)
        logits = convolve(all_logits, kernels.conv_before, rows, logits.shape[2])
    weights = to_weights(logits, kernels, rows)
    if kernels.conv_after is not None:
        all_weights = _below(weights, above_weights)
        weights = convolve(all_weights, kernels.conv_after, rows, weights.shape[2])
    return weighted(weights, v, kernels, rows), (all_logits, all_weights)


def scores(q: Float[Tensor, "B H Q E"], k: Float[Tensor, "B G K E"]) -> Float[Tensor, "B H Q K"]:
    """Return the scores of Q queries with K keys, also of hidden pairs.

    Args:
        q: Queries of H heads.
        k: Keys of G heads; H / G heads of queries share each.
    """
    return _shared(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))


def to_weights(
    logits: Float[Tensor, "B H Q K"], kernels: Kernels, rows: Seen
) -> Float[Tensor, "B H Q K"]:
    """Return the weights of Q queries over K keys; hidden pairs get a weight of zero.

    Args:
        logits: Scores, after their convolution if there is one.
        kernels: Its ``mix_before`` mixes the heads of the scores before the softmax.
        rows: Which pairs are hidden.
    """
    if kernels.mix_before is not None:
        logits = mix_heads(logits, kernels.mix_before)
    logits = hide(logits, rows, HIDDEN)
    if logits.element_size() < 4:
        return torch.softmax(logits, -1, dtype=torch.float32).to(logits.dtype)
    return torch.softmax(logits, -1)


def weighted(
    weights: Float[Tensor, "B H Q K"], v: Float[Tensor, "B G K E"], kernels: Kernels, rows: Seen
) -> Float[Tensor, "B H Q E"]:
    """Return the weighted sums of the values.

    Args:
        weights: Weights, after their convolution if there is one.
        v: Values of G heads; H / G heads of weights share each.
        kernels: Its ``mix_after`` mixes the heads of the weights first.
        rows: Which pairs are hidden; a convolution may have given them weight.
    """
    if kernels.conv_after is not None:
        weights = hide(weights, rows, 0.0)
    if kernels.mix_after is not None:
        weights = mix_heads(weights, kernels.mix_after)
    return _shared(weights, v)


def hide(x: Float[Tensor, "B H Q K"], rows: Seen, value: float) -> Float[Tensor, "B H Q K"]:
    """Overwrite the hidden pairs of the last queries, in place, and return the same tensor.

    Args:
        x: Scores or weights of Q queries and K keys.
        rows: Which pairs are hidden.
        value: What hidden pairs get.
    """
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
    """Cut whole rows into chunks.

    Args:
        num_steps: Number of steps of the rows.
        window: Number of most recent steps that a query reads, its own included.
        size: Number of queries of a chunk that have a result.
        above: Number of queries before them that are read too, because convolutions need their
            rows.
    """
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


def chunk_rows(num_steps: int, num_heads: int, is_cuda: bool = False) -> int:
    """Return the number of queries of a chunk of whole rows."""
    if is_cuda:
        return GPU_ROWS
    if num_steps <= WHOLE_ROWS:
        return num_steps
    return FEW_HEADS_ROWS if num_heads <= 8 else CHUNK_ROWS


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
    """Return what the queries of whole rows read; memory grows with T, also for the gradient.

    ``q`` and ``k`` are rotated. Each of the G heads of ``k`` and ``v`` is shared by equally many
    heads of queries.
    """
    num_steps = q.shape[2]
    if reach.is_plain and not any(kernel is not None for kernel in kernels):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if num_steps <= WHOLE_ROWS or not torch.is_grad_enabled():
        return _attend(q, k, v, kernels, reach)
    return _Chunked.apply(*reach, q, k, v, *kernels)  # type: ignore[no-untyped-call]


def _attend(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, reach: RowReach) -> Tensor:
    """Read whole rows chunk by chunk; each gets the last rows of the one before it."""
    num_steps = q.shape[2]
    k = _turned(k)
    above: Above = (None, None)
    read: Tensor | None = None
    last_key = 0
    for piece in pieces(num_steps, reach.window, chunk_rows(num_steps, q.shape[1], q.is_cuda)):
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
        if read is None:
            # One tensor for all results: small ones among the scores of chunks would keep the C
            # library from using freed memory again (4,096 steps, 16 heads: 137 instead of 490 MB).
            read = part.new_empty(*part.shape[:2], num_steps, part.shape[3])
        read[:, :, piece.row : piece.stop] = part
        last_key = piece.key
    if read is None:
        raise AssertionError("rows have at least one step")
    return read


def _turned(k: Float[Tensor, "B G T E"]) -> Float[Tensor, "B G T E"]:
    """Return keys that are stored feature by feature.

    For 16 heads, 32 queries and 2,048 keys, scores then take 1.4 ms instead of 2.2 ms.
    """
    return k.transpose(-1, -2).contiguous().transpose(-1, -2)


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
    return max([0, *(kernel.shape[2] // 2 for kernel in kernels[::2] if kernel is not None)])


class _Chunked(torch.autograd.Function):
    """`_attend` with a gradient that reads each chunk again instead of keeping its scores.

    It can be compiled and mapped over lanes. (`torch.utils.checkpoint` cannot be mapped: it would
    compute again outside the map.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        start: Tensor, window: int, is_plain: bool, q: Tensor, k: Tensor, v: Tensor, *kernels: Any
    ) -> Tensor:
        return _attend(q, k, v, Kernels(*kernels), RowReach(start, window, is_plain))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        start, ctx.window, ctx.is_plain, *tensors = inputs
        ctx.save_for_backward(start, *tensors)
        ctx.is_mapped = is_traced() and not torch.compiler.is_compiling()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start, q, k, v, *kernels = ctx.saved_tensors
        reach = RowReach(start, ctx.window, ctx.is_plain)
        # The gradient of a map is computed after the map, and must not read values either.
        with tracing() if ctx.is_mapped else nullcontext():
            return (None, None, None, *_gradients(q, k, v, Kernels(*kernels), reach, grad))


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, reach: RowReach, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of queries, keys, values and kernels, computed chunk by chunk."""
    turned = _turned(k)
    totals = [one.new_zeros(one.shape) for one in (q, k, v)]
    to_kernels = [None if one is None else torch.zeros_like(one) for one in kernels]
    size = GPU_ROWS if q.is_cuda else GRADIENT_ROWS
    cut = list(pieces(q.shape[2], reach.window, size, kernels.above))
    for piece in reversed(cut):  # the largest first, whose memory the others use again
        queries = slice(piece.above, piece.stop)
        keys = slice(piece.key, piece.last)
        chunk = _Chunk(q[:, :, queries], k[:, :, keys], v[:, :, keys], turned[:, :, keys])
        own = [total[:, :, at] for total, at in zip(totals, (queries, keys, keys), strict=True)]
        part = grad[:, :, piece.row : piece.stop]
        found = _add_gradient(own, chunk, kernels, reach, piece, part)
        for kernel, more in zip(to_kernels, found, strict=True):
            if kernel is not None and more is not None:
                kernel += more
    return (*totals, *to_kernels)


class _Chunk(NamedTuple):
    """Queries, keys and values of a chunk, and the same keys as `_turned` stores them."""

    q: Float[Tensor, "B H Q E"]
    k: Float[Tensor, "B G K E"]
    v: Float[Tensor, "B G K E"]
    turned: Float[Tensor, "B G K E"]


def _add_gradient(
    totals: Sequence[Tensor],
    chunk: _Chunk,
    kernels: Kernels,
    reach: RowReach,
    piece: Piece,
    grad: Float[Tensor, "B H R E"],
) -> Kernels:
    """Read a chunk again, and return the gradients of the kernels.

    Those of queries, keys and values are added to ``totals``. Only a convolution leaves its
    gradient to torch.
    """
    to_q, to_k, to_v = totals
    rows = reach.rows(piece, _side(kernels))
    nothing: list[Tensor | None] = [None, None]
    if not piece.above:  # the queries before it are those of the chunk's own, or none
        nothing = [_moved(None, one, chunk.q, (0, 0, piece.last)) for one in kernels[::2]]
    logits = scores(chunk.q, chunk.turned)
    if kernels.conv_before is not None:
        hide(logits, rows, 0.0)
    convolved, convolution_before = _convolved(logits, kernels.conv_before, rows, nothing[0])
    weights = to_weights(convolved, kernels, rows)
    spread, convolution_after = _convolved(weights, kernels.conv_after, rows, nothing[1])
    mixed = spread
    if kernels.conv_after is not None:
        hide(spread, rows, 0.0)
    if kernels.mix_after is not None:
        mixed = mix_heads(spread, kernels.mix_after)

    grad = F.pad(grad, (0, 0, mixed.shape[2] - grad.shape[2], 0))
    _add_shared_back(to_v, mixed, grad)
    to_x = _shared(grad, chunk.v.transpose(-1, -2))
    to_x, mix_after = _mixed_back(to_x, spread, kernels.mix_after)
    if kernels.conv_after is not None:
        hide(to_x, rows, 0.0)
    to_x, conv_after = convolution_after(to_x)
    wide = torch.float32 if to_x.element_size() < 4 else to_x.dtype
    to_x = torch.ops.aten._softmax_backward_data(to_x.to(wide), weights.to(wide), -1, wide)
    to_x, mix_before = _mixed_back(to_x.to(weights.dtype), convolved, kernels.mix_before)
    to_x, conv_before = convolution_before(to_x)
    if kernels.conv_before is not None:
        hide(to_x, rows, 0.0)
    scale = chunk.q.shape[-1] ** -0.5
    to_q += _shared(to_x, chunk.k) * scale
    _add_shared_back(to_k, to_x, chunk.q * scale)
    return Kernels(conv_before, mix_before, conv_after, mix_after)


def _add_shared_back(
    total: Float[Tensor, "B G K E"], x: Float[Tensor, "B H Q K"], grad: Float[Tensor, "B H Q E"]
) -> None:
    """Add the gradient of the factor that several heads share; see `_shared`."""
    folded = [one.reshape(len(one), total.shape[1], -1, one.shape[3]) for one in (x, grad)]
    total += folded[0].transpose(-1, -2) @ folded[1]


def _mixed_back(
    grad: Float[Tensor, "B H Q K"], x: Float[Tensor, "B H Q K"], maps: Tensor | None
) -> tuple[Float[Tensor, "B H Q K"], Tensor | None]:
    """Return the gradients of `mix_heads`: of what is mixed, and of the maps."""
    if maps is None:
        return grad, None
    groups = [one.reshape(len(x), *maps.shape[:2], -1) for one in (grad, x)]
    to_maps = (groups[0] @ groups[1].transpose(-1, -2)).sum(0)
    return mix_heads(grad, maps.transpose(-1, -2)), to_maps


def _convolved(
    x: Float[Tensor, "B H Q K"], kernel: Tensor | None, rows: Seen, above: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return convolved rows, and a function from their gradient to those of rows and kernels."""
    if kernel is None:
        return x, lambda grad: (grad, None)

    def convolved(x: Tensor, kernel: Tensor) -> Tensor:
        return convolve(_below(x, above), kernel, rows, x.shape[2])

    if is_traced():
        y, back = torch.func.vjp(convolved, x, kernel)[:2]
        return y, back
    inputs = (x.requires_grad_(), kernel.detach().requires_grad_())
    with torch.enable_grad():
        y = convolved(*inputs)
    return y.detach(), lambda grad: torch.autograd.grad(y, inputs, grad)
