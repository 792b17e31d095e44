"""Rotary position embedding."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling:
    """Positions divided by a factor, so that rows may be longer than in training.

    Attributes:
        factor: Number by which positions are divided.

    Source: position interpolation (arXiv:2306.15595).
    """

    factor: float

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise UserError(f"`factor` of a scaling must be >= 1: got {self.factor}.")

    def apply(self, frequency: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """Return the scaled frequencies, in radians a step."""
        return frequency / self.factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """Long wavelengths are stretched by a factor, short ones kept, those between interpolated.

    Attributes:
        factor: Number by which the longest wavelengths are multiplied.
        low_frequency_factor: Wavelengths above ``original_steps`` divided by this are stretched.
        high_frequency_factor: Wavelengths below ``original_steps`` divided by this are kept.
        original_steps: Length of the rows on which the model was trained before the scaling.

    Source: Llama 3.1 (arXiv:2407.21783); the formula is that of its published code and of
    `transformers` (``rope_type="llama3"``).
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_steps: int = 8192

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise UserError(f"`factor` of a scaling must be >= 1: got {self.factor}.")
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UserError(
                "`low_frequency_factor` must be above 0 and below `high_frequency_factor`: got "
                f"{self.low_frequency_factor} and {self.high_frequency_factor}."
            )
        if self.original_steps < 1:
            raise UserError(f"`original_steps` must be >= 1: got {self.original_steps}.")

    def apply(self, frequency: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """Return the scaled frequencies, in radians a step."""
        turns = self.original_steps * frequency / (2 * math.pi)
        low = self.low_frequency_factor
        high = self.high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Frequencies with which pairs of features rotate.

    Attributes:
        base: The longest wavelength is about ``2 pi base`` steps, before scaling.
        scaling: Scaling of the frequencies for rows longer than in training; ``None`` for none.
    """

    base: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise UserError(f"`base` of rotary positions must be above 1: got {self.base}.")

    def frequencies(self, head_width: int, device: torch.device) -> Float[Tensor, " E"]:
        """Return the radians a step of each pair of features, in float64, fastest first."""
        # Sessions are unbounded, and angles in float32 are off by 1e-2 at a million steps.
        exponent = torch.arange(0, -head_width, -2, dtype=torch.float64, device=device)
        frequency = self.base ** (exponent / head_width)
        return frequency if self.scaling is None else self.scaling.apply(frequency)


PLAIN_ROPE = RopeConfig()
"""The rotation of the original paper, RoFormer."""


def rope_tables(
    position: Int[Tensor, "B T"], head_width: int, rope: RopeConfig = PLAIN_ROPE
) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
    """Return the cosines and signed sines of the rotation angles, in float32.

    Args:
        position: Position of every element, in steps.
        head_width: Width of a head; must be even.
        rope: Rotary frequencies.

    Source: RoFormer (arXiv:2104.09864), with the halves layout of Llama.
    """
    frequency = rope.frequencies(head_width, position.device)
    # Negative frequencies in the first half give the sines their signs.
    angle = position[:, None, :, None] * torch.cat((-frequency, frequency))
    return angle.cos().float(), angle.sin().float()


def rotate(
    x: Float[Tensor, "*B H T E"], cos: Float[Tensor, "#B 1 T E"], sin: Float[Tensor, "#B 1 T E"]
) -> Float[Tensor, "*B H T E"]:
    """Rotate the pairs (x[i], x[i + E/2]) by the angles of `rope_tables`; the dtype is kept."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))
