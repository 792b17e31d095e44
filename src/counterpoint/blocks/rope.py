"""Rotary position embedding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rope_tables(
    position: Int[Tensor, "B T"], head_width: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
    """Cosines and signed sines of the rotation angles, in float32.

    Args:
        position: Absolute position of every element, in steps.
        head_width: Width of a head; must be even.
        base: Longest wavelength is about ``2 pi base`` steps.

    Source: RoFormer (arXiv:2104.09864), with the halves layout of Llama.
    """
    # In float64: sessions are unbounded, and float32 angles are off by 1e-2 at a million steps.
    exponent = torch.arange(0, -head_width, -2, dtype=torch.float64, device=position.device)
    frequency = base ** (exponent / head_width)
    # Turning the first half backwards puts the signs into the sines.
    angle = position[:, None, :, None] * torch.cat((-frequency, frequency))
    return angle.cos().float(), angle.sin().float()


def rotate(
    x: Float[Tensor, "*B H T E"], cos: Float[Tensor, "#B 1 T E"], sin: Float[Tensor, "#B 1 T E"]
) -> Float[Tensor, "*B H T E"]:
    """Rotate the pairs (x[i], x[i + E/2]) by the angles of `rope_tables`; keeps the dtype."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))
