"""Multi-Token Attention as plain attention of longer vectors: the lifted form.

Scores are bilinear, so a convolution of scores is a convolution of the vectors. The query becomes
the last queries one behind the other, and the key, for each of them, the sum of keys that a kernel
takes. What this counts although an earlier query may not read it lies in a band of some diagonals,
which is taken off. Mixing of heads lengthens queries and keys by the number of heads of a group. In
the same way a convolution and mixing of weights become longer values; what reaches beyond the query
needs only the weights of the nearest diagonals.

Where the window of a query begins is the mirror of where it ends. With a window of W steps, kernels
of Q queries and P keys on each side, and taps t:

    score[i, j]  = sum of t[a, b] q[i-a] k[j+b]         over s[i] <= j+b <= i-a
    output[i]    = sum of t[a, b] weight[i-a, y] v[y-b] over s[i] <= y <= i-a, s[i] <= y-b <= i
    s[i]         = i-W+1, or the first step of the document if that is later.

Longer vectors also count, of the scores, keys before s[i]: P of them, in the scores of the first P
keys that i reads. They count, of the outputs, the weights of keys before s[i], which i-a may read
but i may not, and what later keys give to values before s[i]: these need only the first Q-1+P
weights of every query. Both are taken off, and both are zero by themselves where a document begins
later than the window, because nothing is ever taken from another document. A pair may be counted
too much at both ends, but each tap of it at one alone; and the first Q-1+P keys of a window are
never later than its query, because a window has more steps (`MultiTokenConfig.build`).

The work is matrix products alone, more of them than in the chunked form. It pays where these are
far faster than anything else, on a GPU; `multi_token_attention_fused` computes them there.

Source: own derivation from equations 5 and 6 of arXiv:2504.00927 v2. That mixing raises the rank of
queries, keys and values is in its appendix B.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.multi_token_attention_rows import HIDDEN, Kernels, RowReach
from counterpoint.blocks.recompute import computed_again

CHUNK_ROWS = 128


class Bands(NamedTuple):
    """What is taken off the scores of each query at both ends of what it may read.

    Attributes:
        near: For the keys 0, 1, ... steps before the query.
        far: For the keys W-1, W-2, ... steps before it, in a window of W steps.
    """

    near: Float[Tensor, "B H T n"]
    far: Float[Tensor, "B H T f"]

    def taken(self, back: Int[Tensor, "*T K"], window: int) -> Tensor:
        """Return what is taken off for keys so many steps before the query, or a zero for all."""
        return _in_band(self.near, back) + _in_band(self.far, window - 1 - back)


def _in_band(band: Float[Tensor, "B H T w"], place: Int[Tensor, "*T K"]) -> Tensor:
    """Return what a band has at each place, and zero where it has none."""
    width = band.shape[3]
    if not width:
        return band.new_zeros(())
    found = band.gather(3, place.clamp(0, width - 1).expand(*band.shape[:3], place.shape[-1]))
    return found * ((place >= 0) & (place < width))


def attend_with_bands(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B H T E"],
    v: Float[Tensor, "B H T V"],
    bands: Bands,
    reach: RowReach,
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H T"]]:
    """Return what queries read, and the logarithm of the sum of their exponentials.

    Args:
        q: Queries; their products with keys are the scores.
        k: Keys.
        v: Values.
        bands: What is taken off the scores.
        reach: What each query reads.
    """
    read = []
    for row in range(0, q.shape[2], CHUNK_ROWS):
        stop = min(row + CHUNK_ROWS, q.shape[2])
        key = max(0, row - reach.window + 1)
        read.append(
            computed_again(
                _attend_chunk,
                q[:, :, row:stop],
                k[:, :, key:stop],
                v[:, :, key:stop],
                Bands(*(band[:, :, row:stop] for band in bands)),
                reach.start[:, row:stop] - key,
                reach.window,
            )
        )
    outputs, sums = zip(*read, strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, bands: Bands, start: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Read a chunk of queries, whose own keys are the last ones."""
    key = torch.arange(k.shape[2], device=q.device)
    back = key[-q.shape[2] :, None] - key
    scores = q @ k.transpose(-1, -2)
    scores = scores - bands.taken(back, window).to(scores.dtype)
    seen = (back >= 0) & (key >= start[..., None])
    scores = scores.masked_fill(~seen[:, None], HIDDEN)
    sums = scores.logsumexp(-1)
    return torch.exp(scores - sums[..., None]) @ v, sums


def lift(
    x: Float[Tensor, "B H T F"], taps: Float[Tensor, "H Q R"], start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T QF"]:
    """Return, for each query of a kernel, the sum of neighbours that its row of taps weights.

    The middle tap is that of the step itself, and the first one that of the oldest neighbour.

    Args:
        x: Vectors, of F numbers for each head and step.
        taps: Rows of R taps for each of Q queries.
        start: First step of the document of each step; nothing is taken from another document.
    """
    num_keys = taps.shape[2]
    around = torch.stack([shifted(x, num_keys // 2 - w, start) for w in range(num_keys)], 3)
    return torch.einsum("haw,bhtwf->bhtaf", taps, around).flatten(3)


def shifts(
    x: Float[Tensor, "B H T F"], number: int, start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T QF"]:
    """Return the vectors of the last steps one behind the other, that of the step itself first.

    Args:
        x: Vectors of F numbers.
        number: How many steps, Q, are put together.
        start: First step of the document of each step; vectors of other documents become zero.
    """
    return torch.cat([shifted(x, a, start) for a in range(number)], 3)


def shift_sum(
    x: Float[Tensor, "B H T QF"], number: int, start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T F"]:
    """Return the sum of the first part of each step, the second part of the step before it, ...

    Args:
        x: Vectors of Q parts, each of F numbers.
        number: Number of parts Q.
        start: First step of the document of each step; parts of other documents count as zero.
    """
    parts = x.unflatten(3, (number, -1)).unbind(3)
    total = parts[0]
    for a in range(1, number):
        total = total + shifted(parts[a], a, start)
    return total


def near(
    q: Float[Tensor, "B H T F"],
    k: Float[Tensor, "B H T F"],
    offsets: tuple[int, int, int],
    start: Int[Tensor, "B T"],
) -> Float[Tensor, "B H T n"]:
    """Return the products of each query with keys near it, at least in float32.

    Args:
        q: Queries.
        k: Keys.
        offsets: The number of keys, the step of the first one less that of the query, and what is
            added for each further one.
        start: First step of the document of each step.
    """
    number, first, step = offsets
    met = [shifted(k, -first - step * t, start) for t in range(number)]
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.stack([(q * one).sum(-1, dtype=dtype) for one in met], 3)


def spread(
    weights: Float[Tensor, "B H T n"],
    x: Float[Tensor, "B H T F"],
    offsets: tuple[int, int, int],
    start: Int[Tensor, "B T"],
) -> Float[Tensor, "B H T F"]:
    """Return the weighted sum of the vectors near each step.

    Args:
        weights: Weight of each of the n vectors.
        x: Vectors of all steps.
        offsets: Which vectors are near; see `near`.
        start: First step of the document of each step; vectors of other documents count as zero.
    """
    number, first, step = offsets
    total = torch.zeros_like(x)
    for t in range(number):
        met = shifted(x, -first - step * t, start)
        total = total + weights[..., t, None].to(x.dtype) * met
    return total


class Operations(NamedTuple):
    """What the lifted form is made of: in torch, or in kernels for a GPU.

    Attributes:
        core: Attention of long vectors; see `attend_with_bands`.
        lift: See `lift`.
        shifts: See `shifts`.
        shift_sum: See `shift_sum`.
        near: See `near`.
        spread: See `spread`.
    """

    core: Callable[[Tensor, Tensor, Tensor, Bands, RowReach], tuple[Tensor, Tensor]]
    lift: Callable[[Tensor, Tensor, Tensor], Tensor]
    shifts: Callable[[Tensor, int, Tensor], Tensor]
    shift_sum: Callable[[Tensor, int, Tensor], Tensor]
    near: Callable[[Tensor, Tensor, tuple[int, int, int], Tensor], Tensor]
    spread: Callable[[Tensor, Tensor, tuple[int, int, int], Tensor], Tensor]


TORCH = Operations(attend_with_bands, lift, shifts, shift_sum, near, spread)


def attend_lifted(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G T E"],
    v: Float[Tensor, "B G T E"],
    kernels: Kernels,
    reach: RowReach,
    by: Operations = TORCH,
) -> Float[Tensor, "B H T E"]:
    """Return what the queries of whole rows read.

    Args:
        q: Rotated queries.
        k: Rotated keys; each of the G heads is shared by equally many heads of queries.
        v: Values.
        kernels: Convolutions and mixing; they fit the window (`MultiTokenConfig.build`).
        reach: What each query may read.
        by: What computes it.
    """
    num_sharing = q.shape[1] // k.shape[1]
    if num_sharing > 1:
        k, v = (x.repeat_interleave(num_sharing, 1) for x in (k, v))
    long_q, long_k, bands = _lifted_scores(q * q.shape[3] ** -0.5, k, kernels, reach, by)
    values = _mixed_values(v, kernels.mix_after)  # (B, H, T, c, E)
    shape = values.shape[3:]
    values = values.flatten(3)
    if kernels.conv_after is None:
        read, _ = by.core(long_q, long_k, values, bands, reach)
        return _to_heads(read.unflatten(3, shape), kernels.mix_after)
    taps = kernels.conv_after.to(q.dtype).flip(1)  # the query's own first
    start = _document_start(reach)
    read, sums = by.core(long_q, long_k, by.lift(values, taps.flip(2), start), bands, reach)
    total = by.shift_sum(read, taps.shape[1], start)

    def weights(offsets: tuple[int, int, int]) -> Tensor:
        scores = by.near(long_q, long_k, offsets, start)
        return _weights_near(scores, bands, sums, offsets, reach)

    side = taps.shape[2] // 2
    if side:
        ahead = _through(weights((side, 0, -1)), _taps_ahead(taps, side), start, by)
        total = total - by.spread(ahead, values, (side, 1, 1), start)
    width = taps.shape[1] - 1 + side
    if width and reach.window < q.shape[2]:
        first = 1 - reach.window
        outside = _through(weights((width, first, 1)), _taps_outside(taps, width), start, by)
        total = total - by.spread(outside, values, (width + side, first - width, 1), start)
    return _to_heads(total.unflatten(3, shape), kernels.mix_after)


def _lifted_scores(
    q: Tensor, k: Tensor, kernels: Kernels, reach: RowReach, by: Operations
) -> tuple[Tensor, Tensor, Bands]:
    """Return long queries, long keys, and the bands, all for every head."""
    nothing = q.new_zeros(*q.shape[:3], 0)
    bands = Bands(nothing, nothing)
    if kernels.conv_before is None:
        long_q = q
        long_k = k
    else:
        start = _document_start(reach)
        taps = kernels.conv_before.to(q.dtype).flip(1)
        num_queries, num_keys = taps.shape[1:]
        long_q = by.shifts(q, num_queries, start)
        long_k = by.lift(k, taps, start)
        side = num_keys // 2
        width = num_queries - 1 + num_keys // 2
        if width:
            after = by.near(q, k, (width, 1, 1), start)
            bands = bands._replace(near=_through(after, _taps_of_band(taps, width), start, by))
        if side and reach.window < q.shape[2]:
            before = by.near(q, k, (width, 1 - reach.window - side, 1), start)
            bands = bands._replace(far=_through(before, _taps_before(taps, width), start, by))
    if kernels.mix_before is None:
        return long_q, long_k, bands
    maps = kernels.mix_before.to(q.dtype)
    grouped = long_q.unflatten(1, maps.shape[:2])
    mixed_q = torch.einsum("ghf,bfgte->bghtfe", maps, grouped.transpose(1, 2)).flatten(1, 2)
    of_group = long_k.unflatten(1, maps.shape[:2]).permute(0, 1, 3, 2, 4).flatten(3)
    return (
        mixed_q.flatten(3),
        of_group.repeat_interleave(maps.shape[1], 1),
        Bands(*(_mixed_band(band, maps) for band in bands)),
    )


def _mixed_band(
    band: Float[Tensor, "B H T w"], maps: Float[Tensor, "G c c"]
) -> Float[Tensor, "B H T w"]:
    of_group = band.unflatten(1, maps.shape[:2])
    return torch.einsum("ghf,bgftw->bghtw", maps.to(band.dtype), of_group).flatten(1, 2)


def _document_start(reach: RowReach) -> Int[Tensor, "B T"]:
    """Return the first step of the document of each step, where a step reads itself alone."""
    step = torch.arange(reach.start.shape[1], device=reach.start.device)
    return torch.where(reach.start == step, step, 0).cummax(1).values


def _through(
    found: Float[Tensor, "B H T n"],
    maps: Float[Tensor, "H Q n m"],
    start: Tensor,
    by: Operations,
) -> Float[Tensor, "B H T m"]:
    """Return the sum of linear maps of what was found at each step and the steps before it."""
    earlier = by.shifts(found, maps.shape[1], start)
    return torch.einsum("bhtn,hnm->bhtm", earlier, maps.flatten(1, 2).to(earlier.dtype))


def _taps_of_band(taps: Float[Tensor, "H Q R"], width: int) -> Float[Tensor, "H Q w w"]:
    """Return what a product with a later key counts in the band, which must be taken off.

    The second axis is how far the query of the product is before that of the band, the third how
    far its key is after it, and the last the steps from the query of the band to its key.
    """
    num_queries, num_keys = taps.shape[1:]
    back = torch.arange(num_queries, device=taps.device)[:, None, None]
    after = torch.arange(1, width + 1, device=taps.device)[:, None]
    steps = torch.arange(width, device=taps.device)
    return _chosen(taps, steps + after - back + num_keys // 2)


def _taps_before(taps: Float[Tensor, "H Q R"], width: int) -> Float[Tensor, "H Q w p"]:
    """Return what a product with a key before the window counts in the far band.

    The second axis is how far the query of the product is before that of the band, the third how
    far its key is after the first one that such a product has, and the last the steps from the
    start of the window to the key of the band.
    """
    num_queries, num_keys = taps.shape[1:]
    back = torch.arange(num_queries, device=taps.device)[:, None, None]
    found = torch.arange(width, device=taps.device)[:, None]
    steps = torch.arange(num_keys // 2, device=taps.device)
    is_before = found - back < num_keys // 2
    return _chosen(taps, torch.where(is_before, found - back - steps, -1))


def _taps_ahead(taps: Float[Tensor, "H Q R"], side: int) -> Float[Tensor, "H Q p p"]:
    """Return what a weight gives to keys after the query that reads it.

    The second axis is how far the query of the weight is before that one, the third how far its key
    is before it, and the last how far the key is after the query that reads, less one.
    """
    back = torch.arange(taps.shape[1], device=taps.device)[:, None, None]
    before = torch.arange(side, device=taps.device)[:, None]
    ahead = torch.arange(1, side + 1, device=taps.device)
    return _chosen(taps, side - back - before - ahead)


def _taps_outside(taps: Float[Tensor, "H Q R"], width: int) -> Float[Tensor, "H Q w z"]:
    """Return what a weight gives to a value, where its key or the value is before the window.

    The second axis is how far the query of the weight is before the one that reads, the third how
    far its key is after the start of the window of its own query, and the last how far the value is
    after the first one that such weights reach.
    """
    num_queries, num_keys = taps.shape[1:]
    side = num_keys // 2
    back = torch.arange(num_queries, device=taps.device)[:, None, None]
    key = torch.arange(width, device=taps.device)[:, None] - back
    value = torch.arange(width + side, device=taps.device) - width
    is_outside = (key < 0) | (value < 0)
    return _chosen(taps, torch.where(is_outside, key - value + side, -1))


def _chosen(taps: Tensor, index: Int[Tensor, "Q n m"]) -> Float[Tensor, "H Q n m"]:
    """Return taps by number, and zero for numbers that no tap has."""
    num_keys = taps.shape[2]
    there = (index >= 0) & (index < num_keys)
    padded = F.pad(taps, (0, 1))
    query = torch.arange(taps.shape[1], device=taps.device)[:, None, None]
    return padded[:, query, torch.where(there, index, num_keys)]


def _mixed_values(v: Tensor, maps: Tensor | None) -> Float[Tensor, "B H T c E"]:
    """Return for each head the values of the heads that read its weights."""
    if maps is None:
        return v[:, :, :, None]
    of_group = v.unflatten(1, maps.shape[:2]).transpose(2, 3)
    return of_group.repeat_interleave(maps.shape[1], 1)


def _to_heads(
    read: Float[Tensor, "B H T c E"], maps: Float[Tensor, "G c c"] | None
) -> Float[Tensor, "B H T E"]:
    """Mix what each head read for the heads of its group."""
    if maps is None:
        return read[:, :, :, 0]
    grouped = read.unflatten(1, maps.shape[:2])
    return torch.einsum("ghf,bgfthe->bghte", maps.to(read.dtype), grouped).flatten(1, 2)


def _weights_near(
    scores: Float[Tensor, "B H T n"],
    bands: Bands,
    sums: Float[Tensor, "B H T"],
    offsets: tuple[int, int, int],
    reach: RowReach,
) -> Float[Tensor, "B H T n"]:
    """Return the weights of keys near the query, or near the start of its window.

    Args:
        scores: Products of long queries and keys.
        bands: What is taken off them.
        sums: Logarithms of the sums of exponentials.
        offsets: Which keys these are; see `near`.
        reach: What each query may read.
    """
    number, first, step = offsets
    back = -first - step * torch.arange(number, device=scores.device)
    scores = scores - bands.taken(back, reach.window)
    query = torch.arange(scores.shape[2], device=scores.device)[:, None]
    is_read = query - back >= reach.start[..., None]
    return torch.exp((scores - sums[..., None]).masked_fill(~is_read[:, None], HIDDEN))


def shifted(x: Float[Tensor, "B H T *E"], back: int, start: Int[Tensor, "B T"]) -> Tensor:
    """Return what stands ``back`` steps before every step, and zero outside its document.

    A negative ``back`` takes what stands after it. ``start`` is the first step of the document of
    each step.
    """
    if not back:
        return x
    num_steps = x.shape[2]
    if abs(back) >= num_steps:
        return torch.zeros_like(x)
    moved = F.pad(x, (*[0, 0] * (x.ndim - 3), back, -back))
    same = F.pad(start, (back, -back), value=-1) == start
    return torch.where(same.view(len(start), 1, num_steps, *[1] * (x.ndim - 3)), moved, 0.0)
