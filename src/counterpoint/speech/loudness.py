"""Loudness as the ear weighs it, by ITU-R BS.1770-4: integrated and gated."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError

_BLOCK_S = 0.4
_HOP_S = 0.1
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0
_OFFSET_LUFS = -0.691
_TAIL_S = 2.0  # after it the slowest part of the filters has decayed by 10^-150


def loudness_lufs(audio: Float[Tensor, "C N"], sample_rate: int) -> float:
    """Return the integrated loudness in LUFS; it is -inf if nothing passes the gate.

    A recording shorter than a block of 400 ms is one block, as if silence followed.

    Raises:
        UserError: There are no samples, or more than two channels, whose positions would matter.

    Source: ITU-R BS.1770-4, annex 1; filters for rates other than 48 kHz come from the bilinear
    transform of the analogue filters from which its tables are derived.
    """
    if len(audio) not in (1, 2) or not audio.shape[1]:
        raise UserError(
            f"Loudness needs one or two channels with samples: got shape {tuple(audio.shape)}."
        )
    weighted = _weighted(audio.double(), sample_rate)
    block = round(_BLOCK_S * sample_rate)
    hop = round(_HOP_S * sample_rate)
    if weighted.shape[1] < block:
        weighted = torch.nn.functional.pad(weighted, (0, block - weighted.shape[1]))
    # Sums over hops are used, because unfolding the samples would hold each of them four times.
    num_hops = weighted.shape[1] // hop
    hops = weighted[:, : num_hops * hop].square().unflatten(1, (num_hops, hop)).sum(2)
    power = hops.unfold(1, round(_BLOCK_S / _HOP_S), 1).sum((0, 2)) / block
    kept = power[_lufs(power) > _ABSOLUTE_GATE_LUFS]
    if not len(kept):
        return -math.inf
    kept = kept[_lufs(kept) > _lufs(kept.mean()) + _RELATIVE_GATE_LU]
    return _lufs(kept.mean()).item()


def normalise_loudness(
    audio: Float[Tensor, "C N"], sample_rate: int, target_lufs: float
) -> Float[Tensor, "C N"]:
    """Scale a recording to a loudness; samples may then exceed 1.

    Raises:
        UserError: The recording is silent, so that nothing passes the gate; or see
            `loudness_lufs`.
    """
    found = loudness_lufs(audio, sample_rate)
    if found == -math.inf:
        raise UserError(
            f"A recording must be louder than {_ABSOLUTE_GATE_LUFS} LUFS to be normalised: "
            "got silence."
        )
    return audio * 10 ** ((target_lufs - found) / 20)


def weighting_filters(sample_rate: int) -> Float[Tensor, "2 2 3"]:
    """Return the two K-weighting filters as (b, a), each with coefficients of z^0, z^-1, z^-2."""
    shelf = math.tan(math.pi * 1681.974450955533 / sample_rate)
    q = 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    norm = 1 + shelf / q + shelf**2
    shelf_b = [
        (high + band * shelf / q + shelf**2) / norm,
        2 * (shelf**2 - high) / norm,
        (high - band * shelf / q + shelf**2) / norm,
    ]
    shelf_a = [1.0, 2 * (shelf**2 - 1) / norm, (1 - shelf / q + shelf**2) / norm]
    cut = math.tan(math.pi * 38.13547087602444 / sample_rate)
    q = 0.5003270373238773
    norm = 1 + cut / q + cut**2
    cut_a = [1.0, 2 * (cut**2 - 1) / norm, (1 - cut / q + cut**2) / norm]
    return torch.tensor([[shelf_b, shelf_a], [[1.0, -2.0, 1.0], cut_a]], dtype=torch.float64)


def _weighted(audio: Float[Tensor, "C N"], sample_rate: int) -> Float[Tensor, "C N"]:
    """Filter by the exact response of the filters on a circle longer than their tail."""
    num_samples = audio.shape[1]
    size = num_samples + round(_TAIL_S * sample_rate)
    delay = torch.exp(-2j * torch.pi * torch.arange(size // 2 + 1, dtype=torch.float64) / size)
    powers = torch.stack((torch.ones_like(delay), delay, delay**2))
    spectrum = torch.fft.rfft(audio, size)
    for b, a in weighting_filters(sample_rate).to(powers.dtype).unbind():
        spectrum = spectrum * ((b @ powers) / (a @ powers)).to(spectrum.device)
    return torch.fft.irfft(spectrum, size)[:, :num_samples]


def _lufs(power: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return _OFFSET_LUFS + 10 * power.log10()
