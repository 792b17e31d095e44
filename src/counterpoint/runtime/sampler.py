"""Sampling: from scores to ids, each row by its own settings and its own random numbers."""

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
"""What `sample` gives a row of which no score is finite, or one is no number: no id is possible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one session chooses among the next ids.

    The limits are applied one after the other: temperature, `top_k`, `top_p` of what `top_k` left,
    `min_p`. The likeliest id always stays.

    Attributes:
        temperature: Divides the scores; 0 always takes the likeliest id.
        top_k: Keep the likeliest ids, this many; 0 keeps all.
        top_p: Keep the fewest likeliest ids that have this probability together; 1 keeps all.
        min_p: Keep ids at least this share as likely as the likeliest; 0 keeps all.
        seed: Decides the session's random numbers.
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
    """The settings of all rows of a batch, laid out for `sample`; see `Sampling`.

    Attributes:
        temperature: What scores are divided by; 1 in rows that take the likeliest id.
        most: Ids that a row keeps at most; 1 in rows that take the likeliest id.
        top_p: ``None`` where no row limits.
        min_p: ``None`` where no row limits.
    """

    temperature: Float[Tensor, "B 1"]
    most: Int[Tensor, "B 1"]
    top_p: Float[Tensor, "B 1"] | None
    min_p: Float[Tensor, "B 1"] | None


def row_samplings(samplings: Sequence[Sampling], device: torch.device | str) -> RowSamplings:
    """The settings of every row."""

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
    """Choose one id a row, or `NO_ID` where the scores allow none.

    A choice depends on the row's scores, its settings and its number alone: not on other rows and
    not on the size of the batch.

    Args:
        logits: Scores of the ids.
        rows: Settings of each row.
        number: Decides among the ids that a row keeps; see `uniform`.
        ids: What the scores are of; by default their places.
    """
    scores, order = logits.double().sort(dim=-1, descending=True, stable=True)
    # Scores are differences to the highest before they are divided: no temperature overflows.
    likelihood = torch.softmax((scores - scores[:, :1]) / rows.temperature, -1)
    below = likelihood.cumsum(-1)
    # The ids are sorted, so that every limit keeps the first few, up to the place of the last.
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
    # The sum is no number where the highest score is none, or is not finite.
    return torch.where(below[:, -1].isnan(), NO_ID, chosen[:, 0])


class NoIdError(UserError):
    """The scores of a row allow no id; the rows that were stepped with it have gone on."""


def check_possible(rows: Sequence[int], ids: Int[Tensor, "n K"]) -> None:
    """Refuse ids among which is `NO_ID`.

    Raises:
        NoIdError: One is; the message names the first such row.
    """
    impossible = ids == NO_ID
    if impossible.any():
        row = rows[int(impossible.any(1).nonzero()[0])]
        raise NoIdError(
            f"A model must give scores that allow an id: in row {row} all are minus infinity, or "
            "one is infinite or no number. Stop the row; look at the model's weights, and at what "
            "it was given."
        )


def seed_hashes(seeds: Sequence[int], device: torch.device | str) -> Int[Tensor, " B"]:
    """What `uniform` needs of the seeds of rows: computed once for all their numbers."""
    return _mix(torch.tensor(seeds, dtype=torch.int64, device=device) + _STEP)


def uniform(seed_hash: Int[Tensor, "*#B"], count: Int[Tensor, "*#B"]) -> Float[Tensor, "*B"]:
    """Number ``count`` of the random numbers of each seed: float64 in [0, 1).

    Source: SplitMix64, as a hash of (seed, count), so that no state is kept.

    Args:
        seed_hash: From `seed_hashes`.
        count: Numbers that each row has drawn before: its place among them.
    """
    bits = _mix(seed_hash + count * _STEP)
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Int[Tensor, "*B"], bits: int) -> Int[Tensor, "*B"]:
    """Shift as unsigned numbers: zeros come in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
