"""Multi-Token Attention as it is written down: the form that all others are tested against.

It holds the scores of all pairs at once, and its masks are those of the definition: nothing is
carried, corrected or shared. It is slow, and its memory grows with the square of the steps.

Source: equations 5 and 6 of arXiv:2504.00927 v2, with a mask that also holds at the borders of
documents and windows; see `multi_token_attention_rows`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.multi_token_attention_rows import HIDDEN, Kernels, mix_heads


def attend_naively(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G T E"],
    v: Float[Tensor, "B G T E"],
    kernels: Kernels,
    start: Int[Tensor, "B T"],
) -> Float[Tensor, "B H T E"]:
    """Return what the queries of whole rows read.

    Args:
        q: Rotated queries.
        k: Rotated keys; each of the G heads is shared by equally many heads of queries.
        v: Values.
        kernels: Convolutions and mixing.
        start: First step that each query may read; it reads all from there to its own step.
    """
    num_sharing = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(num_sharing, 1) for x in (k, v))
    step = torch.arange(q.shape[2], device=q.device)
    seen = ((step >= start[..., None]) & (step <= step[:, None]))[:, None]
    x = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if kernels.conv_before is not None:
        x = _convolved(x, kernels.conv_before, start)
    if kernels.mix_before is not None:
        x = mix_heads(x, kernels.mix_before)
    x = torch.softmax(x.masked_fill(~seen, HIDDEN), -1)
    if kernels.conv_after is not None:
        x = _convolved(x, kernels.conv_after, start).masked_fill(~seen, 0.0)
    if kernels.mix_after is not None:
        x = mix_heads(x, kernels.mix_after)
    return x @ v


def _convolved(
    x: Float[Tensor, "B H T K"], kernel: Float[Tensor, "H q r"], start: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T K"]:
    """Add up the taps, one earlier query at a time, each over what both queries may read."""
    num_queries, num_keys = kernel.shape[1:]
    step = torch.arange(x.shape[2], device=x.device)
    total = torch.zeros_like(x)
    for back in range(num_queries):
        earlier = F.pad(x, (0, 0, back, 0))[:, :, : len(step)]
        both = (step >= start[..., None]) & (step <= step[:, None] - back)
        earlier = earlier.masked_fill(~both[:, None], 0.0)
        taps = kernel[:, None, None, num_queries - 1 - back].to(x.dtype)
        side = num_keys // 2
        total = total + F.conv2d(earlier, taps, padding=(0, side), groups=len(kernel))
    return total
