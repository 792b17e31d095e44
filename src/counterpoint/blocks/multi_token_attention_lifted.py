"""Multi-Token Attention as plain attention of longer vectors: the lifted form.

Scores are bilinear, so a convolution of scores is a convolution of the vectors. The query becomes
the last queries one behind the other, and the key, for each of them, the sum of keys that a kernel
takes. What this counts although an earlier query may not read it lies in a band of some diagonals,
which is taken off. Mixing of heads lengthens queries and keys by the number of heads of a group. In
the same way a convolution and mixing of weights become longer values; what reaches beyond the query
needs only the weights of the nearest diagonals.

The work is matrix products alone, more of them than in the chunked form. It pays where these are
far faster than anything else, on a GPU; `multi_token_attention_fused` computes them there.

Source: own derivation from equations 5 and 6 of arXiv:2504.00927 v2. That mixing raises the rank of
queries, keys and values is in its appendix B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.multi_token_attention_rows import HIDDEN, Kernels
from counterpoint.blocks.recompute import computed_again

CHUNK_ROWS = 128

Core = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Attention of long vectors; see `attend_with_band`."""

Staging = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Returns a function, or a faster one that does the same."""


class Lifted(NamedTuple):
    """Long vectors, and what is taken off their scores; see `attend_with_band`."""

    q: Float[Tensor, "B H T F"]
    k: Float[Tensor, "B H T F"]
    v: Float[Tensor, "B H T V"]
    band: Float[Tensor, "B H T w"]


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself; see `Staging`."""
    return function


def attend_with_band(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B H T E"],
    v: Float[Tensor, "B H T V"],
    band: Float[Tensor, "B H T w"],
    start: Int[Tensor, "B T"],
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H T"]]:
    """Return what queries read, and the logarithm of the sum of their exponentials.

    Args:
        q: Queries; their products with keys are the scores.
        k: Keys.
        v: Values.
        band: What is taken off the scores of each query and the keys 0, 1, ... steps before it.
        start: First step that each query reads.
    """
    read = []
    for row in range(0, q.shape[2], CHUNK_ROWS):
        stop = min(row + CHUNK_ROWS, q.shape[2])
        read.append(
            computed_again(
                _attend_chunk,
                q[:, :, row:stop],
                k[:, :, :stop],
                v[:, :, :stop],
                band[:, :, row:stop],
                start[:, row:stop],
            )
        )
    outputs, sums = zip(*read, strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, band: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    num_rows = q.shape[2]
    key = torch.arange(k.shape[2], device=q.device)
    back = key[-num_rows:, None] - key
    scores = q @ k.transpose(-1, -2)
    width = band.shape[3]
    if width:
        near = ((back >= 0) & (back < width)).expand(scores.shape)
        taken = band.gather(3, back.clamp(0, width - 1).expand(scores.shape))
        scores = scores - (taken * near).to(scores.dtype)
    seen = (back >= 0) & (key >= start[..., None])
    scores = scores.masked_fill(~seen[:, None], HIDDEN)
    sums = scores.logsumexp(-1)
    return torch.exp(scores - sums[..., None]) @ v, sums


def attend_lifted(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G T E"],
    v: Float[Tensor, "B G T E"],
    kernels: Kernels,
    start: Int[Tensor, "B T"],
    core: Core = attend_with_band,
    stage: Staging = uncompiled,
) -> Float[Tensor, "B H T E"]:
    """Return what the queries of whole rows read.

    Args:
        q: Rotated queries.
        k: Rotated keys; each of the G heads is shared by equally many heads of queries.
        v: Values.
        kernels: Convolutions and mixing.
        start: First step of the document of each query, which reads all from there to its own step.
        core: Attention of the lifted vectors.
        stage: Applied to the functions that make the long vectors and read the long results.
    """
    num_sharing = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(num_sharing, 1) for x in (k, v))
    lifted = stage(_lifted)(q * q.shape[3] ** -0.5, k, v, kernels, start)
    read, sums = core(lifted.q, lifted.k, lifted.v, lifted.band, start)
    return stage(_lowered)(read, sums, v, lifted, kernels, start)


def _lifted(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, start: Tensor) -> Lifted:
    long_q, long_k, band = _lifted_scores(q, k, kernels, start)
    values = _mixed_values(v, kernels.mix_after)
    if kernels.conv_after is not None:
        taps = kernels.conv_after.to(q.dtype).flip(1)  # the query's own first
        num_keys = taps.shape[2]
        around = [shifted(values, tap - num_keys // 2, start) for tap in range(num_keys)]
        values = torch.einsum("haw,bhtcwe->bhtace", taps, torch.stack(around, 4))
    return Lifted(long_q, long_k, values.flatten(3), band)


def _lowered(
    read: Tensor, sums: Tensor, v: Tensor, lifted: Lifted, kernels: Kernels, start: Tensor
) -> Tensor:
    """Return what every head read from what was read of the long values."""
    values = _mixed_values(v, kernels.mix_after)  # (B, H, T, c, E)
    if kernels.conv_after is None:
        return _to_heads(read.unflatten(3, values.shape[3:]), kernels.mix_after)
    taps = kernels.conv_after.to(v.dtype).flip(1)
    num_queries = taps.shape[1]
    side = taps.shape[2] // 2
    read = read.unflatten(3, (num_queries, *values.shape[3:]))
    total = read[:, :, :, 0]
    for a in range(1, num_queries):
        total = total + shifted(read[:, :, :, a], a, start)
    if side:
        weights = _nearest_weights(lifted, sums, side, start)
        ahead = _weights_ahead(weights, taps, start).to(v.dtype)
        for e in range(1, side + 1):
            total = total - ahead[..., e - 1, None, None] * shifted(values, -e, start)
    return _to_heads(total, kernels.mix_after)


def _lifted_scores(
    q: Tensor, k: Tensor, kernels: Kernels, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return long queries, long keys, and the band, all for every head."""
    if kernels.conv_before is None:
        long_q = q
        long_k = k
        band = q.new_zeros(*q.shape[:3], 0)
    else:
        taps = kernels.conv_before.to(q.dtype).flip(1)
        num_queries, num_keys = taps.shape[1:]
        side = num_keys // 2
        long_q = torch.cat([shifted(q, a, start) for a in range(num_queries)], 3)
        around = torch.stack([shifted(k, side - w, start) for w in range(num_keys)], 3)
        long_k = torch.einsum("haw,bhtwe->bhtae", taps, around).flatten(3)
        band = _band(q, k, taps, start)
    if kernels.mix_before is None:
        return long_q, long_k, band
    maps = kernels.mix_before.to(q.dtype)
    grouped = long_q.unflatten(1, maps.shape[:2])
    mixed_q = torch.einsum("ghf,bfgte->bghtfe", maps, grouped.transpose(1, 2)).flatten(1, 2)
    of_group = long_k.unflatten(1, maps.shape[:2]).permute(0, 1, 3, 2, 4).flatten(3)
    mixed_band = torch.einsum("ghf,bgftw->bghtw", maps, band.unflatten(1, maps.shape[:2]))
    return (
        mixed_q.flatten(3),
        of_group.repeat_interleave(maps.shape[1], 1),
        mixed_band.flatten(1, 2),
    )


def _band(
    q: Tensor, k: Tensor, taps: Float[Tensor, "H Q R"], start: Tensor
) -> Float[Tensor, "B H T w"]:
    """Return what taps add that an earlier query may not read, by steps from query to key."""
    num_queries, num_keys = taps.shape[1:]
    side = num_keys // 2
    width = num_queries - 1 + side
    if not width:
        return q.new_zeros(*q.shape[:3], 0)
    ahead = torch.stack(
        [_products(q, shifted(k, -e, start)) for e in range(1, width + 1)], 3
    )  # with keys after the queries
    bands = []
    for back in range(width):
        part = torch.zeros_like(ahead[..., 0])
        for a in range(num_queries):
            # The tap w of the query a steps before meets the key a - back + w - side after it.
            first = max(0, back + side - a + 1)
            if first >= num_keys:
                continue
            nearest = first - back - side + a - 1
            met = shifted(ahead, a, start)[..., nearest : nearest + num_keys - first]
            part = part + (met * taps[:, a, first:][:, None]).sum(-1)
        bands.append(part)
    return torch.stack(bands, 3)


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


def _nearest_weights(
    lifted: Lifted, sums: Tensor, num_back: int, start: Tensor
) -> Float[Tensor, "B H T p"]:
    """Return the weights of the query's own key and of those just before it."""
    found = []
    step = torch.arange(start.shape[1], device=start.device)
    for back in range(num_back):
        scores = _products(lifted.q, shifted(lifted.k, back, start))
        if back < lifted.band.shape[3]:
            scores = scores - lifted.band[..., back]
        is_read = (step - back >= start)[:, None]
        found.append(torch.exp((scores - sums).masked_fill(~is_read, HIDDEN)))
    return torch.stack(found, 3)


def _weights_ahead(
    weights: Float[Tensor, "B H T p"], taps: Float[Tensor, "H Q R"], start: Tensor
) -> Float[Tensor, "B H T p"]:
    """Return the weights that convolution gives to the keys after each query, the nearest first."""
    num_queries = taps.shape[1]
    side = weights.shape[3]
    ahead = []
    for e in range(1, side + 1):
        part = torch.zeros_like(weights[..., 0])
        for a in range(num_queries):
            # Tap w of the key ``back`` steps before the earlier query reaches the key e.
            num_back = side - a - e + 1
            if num_back <= 0:
                continue
            met = shifted(weights[..., :num_back], a, start)
            last = side - a - e + 1
            part = part + (met * taps[:, a, last - num_back : last].flip(1)[:, None]).sum(-1)
        ahead.append(part)
    return torch.stack(ahead, 3)


def shifted(x: Float[Tensor, "B H T *E"], back: int, start: Int[Tensor, "B T"]) -> Tensor:
    """Return what stands ``back`` steps before every step, and zero outside its document."""
    if not back:
        return x
    num_steps = x.shape[2]
    if abs(back) >= num_steps:
        return torch.zeros_like(x)
    moved = F.pad(x, (*[0, 0] * (x.ndim - 3), back, -back))
    same = F.pad(start, (back, -back), value=-1) == start
    return torch.where(same.view(len(start), 1, num_steps, *[1] * (x.ndim - 3)), moved, 0.0)


def _products(q: Float[Tensor, "B H T F"], k: Float[Tensor, "B H T F"]) -> Float[Tensor, "B H T"]:
    """Return the product of each query with the key at its place, at least in float32."""
    return (q * k).sum(-1, dtype=torch.promote_types(q.dtype, torch.float32))
