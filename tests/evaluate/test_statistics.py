import math
from typing import Any

import numpy as np
import pytest

from counterpoint.errors import UserError
from counterpoint.evaluate.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    seed_difference,
    student_quantile,
    student_tails,
)


def test_ratio_weighs_documents_by_their_length() -> None:
    found = bootstrap_ratio(np.array([10.0, 1.0]), np.array([5.0, 5.0]))
    assert found.value == pytest.approx(1.1)
    assert found.low <= found.value <= found.high


def test_interval_of_equal_documents_has_no_width() -> None:
    found = bootstrap_ratio(np.full(9, 3.0), np.full(9, 2.0))
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_interval_of_two_documents_reaches_both() -> None:
    """Half of all resamples hold one document only, so its ratios are the ends."""
    found = bootstrap_ratio(np.array([1.0, 3.0]), np.ones(2))
    assert (found.low, found.high) == pytest.approx((1, 3))


def test_interval_matches_the_normal_theory_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = bootstrap_ratio(values, np.ones(400), num_resamples=20_000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_paired_ratio_is_narrower_than_its_parts() -> None:
    """Documents differ a lot, but one system always needs a tenth less."""
    first = np.random.default_rng(2).uniform(1, 9, 30)
    second = 0.9 * first + np.random.default_rng(3).normal(0, 0.01, 30)
    paired = bootstrap_ratio(second, first).map(100, -100)
    alone = bootstrap_ratio(second, np.ones(30))
    assert paired.value == pytest.approx(-10, abs=0.2)
    assert paired.high - paired.low < 0.5
    assert (alone.high - alone.low) / alone.value > 0.1


def test_map_keeps_the_ends_in_order() -> None:
    found = bootstrap_ratio(np.array([1.0, 3.0]), np.ones(2)).map(-2, 1)
    assert (found.low, found.value, found.high) == pytest.approx((-5, -3, -1))


def test_seeds_add_their_own_spread() -> None:
    documents = np.random.default_rng(4).normal(2, 0.01, 50)
    seeds = documents + np.array([[0.0], [0.5], [1.0]])
    one = bootstrap_ratio(seeds[1], np.ones(50))
    all_three = bootstrap_ratio(seeds, np.ones((3, 50)))
    assert all_three.value == pytest.approx(one.value)
    assert all_three.high - all_three.low > 20 * (one.high - one.low)


def test_nothing_measured_is_nan() -> None:
    found = bootstrap_ratio(np.zeros(3), np.zeros(3))
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the same documents"):
        bootstrap_ratio(np.zeros(0), np.zeros(0))


def test_a_difference_that_is_there_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    ones = np.ones((5, 400))

    def right(share: float) -> Any:
        return (rng.random((5, 400)) < share).astype(float), ones

    interval, p_value = bootstrap_difference(right(0.6), right(0.4))
    assert interval.low > 0.1
    assert p_value < 0.01
    interval, p_value = bootstrap_difference(right(0.5), right(0.5))
    assert interval.low < 0 < interval.high
    assert p_value > 0.05


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    untested = holm([0.01, float("nan"), 0.02])
    assert untested == pytest.approx([0.02, float("nan"), 0.02], nan_ok=True)


def test_a_mean_of_ratios_weighs_each_alike_and_has_less_spread() -> None:
    rng = np.random.default_rng(5)
    pairs = [((rng.random((3, 100)) < 0.5).astype(float), np.ones((3, 100))) for _ in range(4)]
    found = bootstrap_mean(pairs)
    alone = [bootstrap_ratio(*pair) for pair in pairs]
    assert found.value == pytest.approx(np.mean([one.value for one in alone]))
    widths = [one.high - one.low for one in alone]
    assert found.high - found.low == pytest.approx(np.mean(widths) / 2, rel=0.3)


def test_tails_are_those_of_tables() -> None:
    for t, freedom in ((12.706, 1), (2.776, 4), (2.306, 8), (1.9623, 1000), (1.96, math.inf)):
        assert student_tails(t, freedom) == pytest.approx(0.05, rel=1e-3)
        assert student_quantile(freedom) == pytest.approx(t, rel=1e-3)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_intervals_over_few_seeds_hold_the_true_value(num_seeds: int, spread: float) -> None:
    """Seeds differ, and items are drawn anew; a percentile interval of two seeds holds 78 %."""
    rng = np.random.default_rng(8)
    ones = np.ones((num_seeds, 100))
    held = []
    for _ in range(200):
        items = rng.beta(3, 3, 100)  # their mean is 1/2 over all items that could be drawn
        arms = []
        for _ in range(2):
            right = items + rng.normal(0, spread, (num_seeds, 1))
            arms.append((rng.random((num_seeds, 100)) < right).astype(float))
        mean = bootstrap_ratio(arms[0], ones, 200)
        difference, _ = bootstrap_difference((arms[0], ones), (arms[1], ones), 300)
        held.append((mean.low <= 0.5 <= mean.high, difference.low <= 0 <= difference.high))
    # The standard error of this share is 1.5 points.
    assert np.mean(held, 0).min() >= 0.91


def test_an_interval_over_seeds_is_that_of_student_where_items_do_not_matter() -> None:
    seeds = np.array([[0.2], [0.5], [0.8]])
    found = bootstrap_ratio(seeds * np.ones((3, 9)), np.ones((3, 9)))
    half = 4.3027 * 0.3 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-3)


def test_few_seeds_that_do_not_overlap_show_nothing() -> None:
    """Among equal arms with two seeds each, one pair in three does not overlap."""
    rng = np.random.default_rng(6)
    ones = np.ones((2, 200))

    def arm() -> Any:
        return (rng.random((2, 200)) < rng.uniform(0.2, 0.8, (2, 1))).astype(float), ones

    p_values = [bootstrap_difference(arm(), arm(), 500)[1] for _ in range(100)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.06
    assert np.mean(np.array(p_values) < 0.001) <= 0.02


def test_one_seed_is_tested_over_items_only() -> None:
    ones = np.ones((1, 400))
    _, p_value = bootstrap_difference((0.6 * ones, ones), (0.6 * ones, ones))
    assert p_value == 1
    right = (np.random.default_rng(7).random((2, 1, 400)) < [[[0.7]], [[0.4]]]).astype(float)
    _, p_value = bootstrap_difference((right[0], ones), (right[1], ones))
    assert p_value < 1e-6


def test_difference_over_seeds_is_the_paired_t_test() -> None:
    """Worked by hand: differences 1, 2 and 3, so a standard error of 1 / sqrt(3), and t = 3.46."""
    ours, theirs = np.array([4.0, 7.0, 5.0]), np.array([3.0, 5.0, 2.0])
    interval, p_value = seed_difference(ours, theirs)
    assert interval.value == pytest.approx(2.0)
    assert interval.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-4)
    assert interval.low == pytest.approx(4.0 - interval.high)
    assert p_value == pytest.approx(0.0742, abs=1e-4)
    unpaired = np.array([5.0, 2.0, 3.0])  # the same scores in another order
    assert seed_difference(ours, unpaired)[1] > p_value
    for constant in (0.0, 0.3):  # without a spread nothing is known of it
        same = seed_difference(ours, ours - constant)
        assert same[0].value == pytest.approx(constant)
        assert math.isnan(same[0].low)
        assert math.isnan(same[1])
    assert math.isnan(seed_difference(ours[:1], theirs[:1])[1])
    with pytest.raises(UserError, match="must be of the same seeds: got 3 and 2"):
        seed_difference(ours, theirs[:2])
