"""Sampling: from scores to ids; each row has its own settings and its own random numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError

# Constants of SplitMix64 (Steele, Lea, Flood, doi:10.1145/2714064.2660195) as signed numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

_ALL = (1 << 63) - 1  # more ids than a vocabulary has

NO_ID = -3
"""Result of `sample` for a row whose scores allow no id: all are -inf, or one is inf or NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one session chooses the next ids.

    The limits are applied in this order: temperature, `top_k`, `top_p` of what `top_k` has kept,
    `min_p`. The likeliest id is always kept.

    Attributes:
        temperature: Divisor of the scores; 0 always takes the likeliest id.
        top_k: Number of likeliest ids that are kept, or 0 for all.
        top_p: Keep the smallest number of likeliest ids that together have this probability; 1
            keeps all.
        min_p: Keep ids whose probability is at least this share of the highest one; 0 keeps all.
        seed: Seed of the session's random numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            _check_kind(name, getattr(self, name), int, float)
        for name in ("top_k", "seed"):
            _check_kind(name, getattr(self, name), int)
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, ">= 0 and finite")
        _check("top_k", self.top_k, self.top_k >= 0, ">= 0 (0 keeps all)")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps all)")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1 (0 keeps all)")
        _check("seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2**63 - 1")


def _check_kind(name: str, value: object, *kinds: type) -> None:
    if type(value) not in kinds:
        needed = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"`{name}` must be {needed}: got {value!r}.")


def _check(name: str, value: float, holds: bool, needed: str) -> None:
    if not holds:
        raise UserError(f"`{name}` must be {needed}: got {value}.")


class RowSamplings(NamedTuple):
    """The settings of all rows of a batch, as tensors for `sample`; see `Sampling`.

    Attributes:
        temperature: Divisor of the scores; 1 in rows that take the likeliest id.
        most: Largest number of ids that a row keeps; 1 in rows that take the likeliest id.
        top_p: Limits of the rows; ``None`` if no row has one.
        min_p: Limits of the rows; ``None`` if no row has one.
    """

    temperature: Float[Tensor, "B 1"]
    most: Int[Tensor, "B 1"]
    top_p: Float[Tensor, "B 1"] | None
    min_p: Float[Tensor, "B 1"] | None


def row_samplings(samplings: Sequence[Sampling], device: torch.device | str) -> RowSamplings:
    """Return the settings of every row as tensors."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)[:, None]

    most = [1 if s.temperature == 0 else s.top_k or _ALL for s in samplings]
    return RowSamplings(
        column([s.temperature or 1.0 for s in samplings]),
        column(most, torch.int64),
        column([s.top_p for s in samplings]) if any(s.top_p < 1 for s in samplings) else None,
        column([s.min_p for s in samplings]) if any(s.min_p > 0 for s in samplings) else None,
    )


def sample(
    logits: Float[Tensor, "B V"],
    rows: RowSamplings,
    number: Float[Tensor, " B"],
    ids: Int[Tensor, "B V"] | None = None,
) -> Int[Tensor, " B"]:
    """Choose one id a row, or `NO_ID` if the scores of the row allow none.

    The choice depends only on the row's scores, settings and number: not on other rows and not on
    the size of the batch.

    Args:
        logits: Scores of the ids.
        rows: Settings of each row.
        number: Random number in [0, 1) of each row; see `uniform`.
        ids: Id of each score; by default its index.

    Returns:
        The chosen ids.
    """
    scores, order = logits.double().sort(dim=-1, descending=True, stable=True)
    # The highest score is subtracted before the division, so that no temperature overflows.
    likelihood = torch.softmax((scores - scores[:, :1]) / rows.temperature, -1)
    below = likelihood.cumsum(-1)
    # The ids are sorted, so every limit keeps the first few, up to the index of the last one kept.
    last = rows.most.clamp(max=logits.shape[1]) - 1
    limits = []
    if rows.top_p is not None:
        nucleus = rows.top_p * below.gather(1, last)
        limits.append((below - likelihood < nucleus) | (rows.top_p == 1))
    if rows.min_p is not None:
        limits.append(likelihood >= rows.min_p * likelihood[:, :1])
    for limit in limits:
        last = torch.minimum(last, limit.sum(-1, keepdim=True) - 1).clamp(min=0)
    point = number[:, None] * below.gather(1, last)
    place = torch.searchsorted(below, point, right=True).minimum(last)
    chosen = order.gather(1, place) if ids is None else ids.gather(1, order.gather(1, place))
    # The sum is NaN if the highest score is NaN or not finite.
    return torch.where(below[:, -1].isnan(), NO_ID, chosen[:, 0])


def seed_hashes(seeds: Sequence[int], device: torch.device | str) -> Int[Tensor, " B"]:
    """Return hashes of the seeds of rows for `uniform`; they are computed once a session."""
    return _mix(torch.tensor(seeds, dtype=torch.int64, device=device) + _STEP)


def uniform(seed_hash: Int[Tensor, "*#B"], count: Int[Tensor, "*#B"]) -> Float[Tensor, "*B"]:
    """Return the random number with the index ``count`` of each seed: float64 in [0, 1).

    Source: SplitMix64, used as a hash of (seed, count), so that there is no state.

    Args:
        seed_hash: From `seed_hashes`.
        count: Number of random numbers that each row has drawn before.
    """
    bits = _mix(seed_hash + count * _STEP)
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Int[Tensor, "*B"], bits: int) -> Int[Tensor, "*B"]:
    """Shift the bits as unsigned numbers: zeros come in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
