"""Bootstrap intervals for ratios of sums, such as bits a byte over documents.

A ratio of sums weighs every document by its length. To compare two systems on the same documents in
pairs, give the sums of one as numerators and those of the other as denominators: both are then
resampled together.

Source: percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from counterpoint.errors import UserError

_NEARLY_NORMAL = 10_000.0
"""Degrees of freedom from which the t-distribution is taken to be normal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number and the ends of its 95 % interval; ``nan`` if nothing was measured."""

    value: float
    low: float
    high: float

    def map(self, scale: float, offset: float = 0.0) -> "Interval":
        """Return the interval of ``scale * x + offset``."""
        ends = sorted((scale * self.low + offset, scale * self.high + offset))
        return Interval(value=scale * self.value + offset, low=ends[0], high=ends[1])


def bootstrap_ratio(
    numerators: Float[np.ndarray, "*S N"],
    denominators: Float[np.ndarray, "*S N"],
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return ``sum(numerators) / sum(denominators)`` with its interval.

    Args:
        numerators: One for each document; or, with a further axis in front, for each training seed
            and document. Then seeds and documents are resampled independently, because all seeds
            are measured on the same documents.
        denominators: Denominator of each numerator, in the same shape.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        UserError: The shapes differ, or there is nothing to resample.
    """
    if numerators.shape != denominators.shape or not numerators.size or numerators.ndim > 2:
        raise UserError(
            f"Numerators and denominators must have the same documents (and seeds), at least one: "
            f"got shapes {numerators.shape} and {denominators.shape}."
        )
    above = np.atleast_2d(numerators)
    below = np.atleast_2d(denominators)
    samples = _resampled((above, below), np.random.default_rng(seed), num_resamples, seed)
    return _interval(float(_ratio(above.sum(), below.sum())), samples)


def bootstrap_mean(
    ratios: Sequence[tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]]],
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of several ratios of sums, such as the scores of an arm on several tasks.

    Args:
        ratios: Numerators and denominators of each ratio, for each training seed and item; the
            ratios are resampled independently of each other.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
    """
    samples = [
        _resampled(pair, np.random.default_rng((seed, number)), num_resamples, (seed, number))
        for number, pair in enumerate(ratios)
    ]
    value = float(np.mean([_ratio(above.sum(), below.sum()) for above, below in ratios]))
    return _interval(value, np.mean(samples, 0))


def bootstrap_difference(
    ours: tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]],
    theirs: tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]],
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Return the difference of two ratios of sums on the same items, and its p-value.

    In the interval, training seeds of the two are resampled independently of each other, items
    together. The p-value is that of Welch's t-test, in which the spread over items, from the same
    resamples, is added to that over seeds. A bootstrap of a few seeds alone would call nearly
    every pair of arms whose seeds do not overlap different, which two seeds each do by chance in
    one of three cases.

    Args:
        ours: Numerators and denominators, for each training seed and item.
        theirs: Those of the other system, on the same items.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        The difference with its interval, and a two-sided p-value of no difference. With one seed
        it covers the choice of items only.

    Source: Welch, Biometrika 34 (1947).
    """
    generator = np.random.default_rng(seed)
    samples = np.zeros(num_resamples)
    by_items = np.zeros(num_resamples)
    value = 0.0
    by_seeds = []
    for sign, (above, below) in ((1, ours), (-1, theirs)):
        samples += sign * _resampled((above, below), generator, num_resamples, seed)
        items = _item_draws(seed, num_resamples, above.shape[1])
        by_items += sign * _ratio(items @ above.sum(0), items @ below.sum(0))
        value += sign * float(_ratio(above.sum(), below.sum()))
        by_seeds.append(_ratio(above.sum(1), below.sum(1)))
    return _interval(value, samples), _welch(value, by_seeds, by_items)


def _welch(
    value: float, by_seeds: Sequence[Float[np.ndarray, " S"]], by_items: Float[np.ndarray, " R"]
) -> float:
    """Return the p-value of a difference, from scores by seed and differences by resample."""
    spreads = []
    for scores in by_seeds:
        known = scores[~np.isnan(scores)]
        if len(known) > 1:
            spreads.append((float(known.var(ddof=1)) / len(known), len(known) - 1))
    measured = by_items[~np.isnan(by_items)]
    if math.isnan(value) or not len(measured):
        return float("nan")
    variance = sum(spread for spread, _ in spreads) + float(measured.var())
    if variance == 0:
        return 1.0 if value == 0 else 0.0
    # The resamples of items are so many that their variance counts as known.
    unknown = sum(spread**2 / freedom for spread, freedom in spreads)
    freedom = variance**2 / unknown if unknown else math.inf
    return student_tails(abs(value) / math.sqrt(variance), freedom)


def student_tails(t: float, freedom: float) -> float:
    """Return the probability that a t-distributed number is further from zero than ``t``.

    Args:
        t: A number of standard errors, not negative.
        freedom: Degrees of freedom; infinity means a normal distribution.
    """
    if freedom > _NEARLY_NORMAL:
        return math.erfc(t / math.sqrt(2))
    # With t = sqrt(freedom) * tan(angle) the density is a power of the cosine.
    start = math.atan(t / math.sqrt(freedom))
    tail, whole = (
        np.trapezoid(np.cos(angles) ** (freedom - 1), angles)
        for angles in (np.linspace(first, math.pi / 2, 100_001) for first in (start, 0.0))
    )
    return float(tail / whole)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests so that all claims hold together.

    A value of ``nan`` stands for no test: it is kept and not counted.

    Source: Holm, Scand. J. Statist. 6 (1979).
    """
    tested = [number for number, p_value in enumerate(p_values) if not np.isnan(p_value)]
    order = sorted(tested, key=lambda number: p_values[number])
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def _resampled(
    ratio: tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]],
    generator: np.random.Generator,
    num_resamples: int,
    item_seed: int | tuple[int, ...],
) -> Float[np.ndarray, " R"]:
    """Return a ratio of sums for every resample of seeds, drawn here, and of items."""
    above, below = ratio
    items = _item_draws(item_seed, num_resamples, above.shape[1])
    seeds = _draws(generator, num_resamples, above.shape[0])
    return _ratio(
        np.einsum("rs,rs->r", seeds, items @ above.T), np.einsum("rs,rs->r", seeds, items @ below.T)
    )


def _interval(value: float, samples: Float[np.ndarray, " R"]) -> Interval:
    """Return a value with its percentiles over the resamples in which something was measured."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(value=value, low=float(low), high=float(high))


@lru_cache(maxsize=8)
def _item_draws(seed: int | tuple[int, ...], count: int, size: int) -> Float[np.ndarray, "R N"]:
    """Return how often each item is in each resample; many arms have the same items."""
    # These random numbers are independent of those for training seeds.
    return _draws(np.random.default_rng([1, *np.atleast_1d(seed)]), count, size).astype(float)


def _draws(generator: np.random.Generator, count: int, size: int) -> Int[np.ndarray, "R N"]:
    """Return how often each of ``size`` items is in each of ``count`` resamples."""
    return generator.multinomial(size, np.full(size, 1 / size), count)


def _ratio(
    above: Float[np.ndarray, "..."] | np.floating, below: Float[np.ndarray, "..."] | np.floating
) -> Float[np.ndarray, "..."]:
    """Return the quotient, ``nan`` where nothing was measured."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(below) == 0, np.nan, np.asarray(above) / np.asarray(below))


def wilson(successes: int, trials: int) -> Interval:
    """Return a share with its 95 % interval by Wilson's score; ``nan`` without trials.

    Source: Wilson, J. Amer. Statist. Assoc. 22 (1927); it also holds near 0 and 1.

    Raises:
        UserError: ``successes`` is negative or more than ``trials``.
    """
    if not 0 <= successes <= trials:
        raise UserError(f"`successes` must be 0 to {trials} trials: got {successes}.")
    if not trials:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    z = 1.959964
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return Interval(value=share, low=float(middle - half), high=float(middle + half))
