"""The operating curve of a judge that scores whole thoughts, and the threshold that it gives."""

import math

import pytest

from counterpoint.evaluate.duplex.thinking import Attempt, calibrated_threshold, operating_curve
from counterpoint.streams.timeline import Event, Timeline


def attempt(scores: list[float | None], wrong_s: float | None) -> Attempt:
    """Return a talk of 10 s with a thought every second that ends half a second later."""
    user = Event(start_s=0.0, end_s=10.0, stream="user", kind="turn")
    thoughts = [
        Event(
            start_s=1.0 + place,
            end_s=1.5 + place,
            stream="thought",
            kind="thought",
            payload={"interrupt": score},
        )
        for place, score in enumerate(scores)
    ]
    return Attempt(timeline=Timeline(events=(user, *thoughts)), wrong_s=wrong_s)


ATTEMPTS = [
    attempt([0.0, 0.2, None], None),
    attempt([0.1, 0.6], None),
    attempt([0.0, 0.0], None),
    attempt([0.0, 0.3, 0.9], 2.0),
    attempt([0.0, 0.7], 1.0),
]


def test_curve_has_recall_false_alarms_and_latency_at_every_threshold() -> None:
    low, middle, high, never = operating_curve(ATTEMPTS, [0.15, 0.65, 0.8, 1.1], 1.0)
    assert low.right == pytest.approx(2 / 3)
    assert low.wrong == 1.0
    assert low.latency_s == pytest.approx((0.5 + 1.5) / 2)
    assert (middle.right, middle.wrong) == (0.0, 1.0)
    assert middle.latency_s == pytest.approx(1.5)
    assert (high.right, high.wrong) == (0.0, 0.5)
    assert (never.right, never.wrong) == (0.0, 0.0)
    assert math.isnan(never.latency_s)


@pytest.mark.parametrize(("most", "expected"), [(0.0, 0.7), (0.34, 0.3), (1.0, 0.1)])
def test_threshold_is_the_lowest_with_few_enough_alarms(most: float, expected: float) -> None:
    assert calibrated_threshold(ATTEMPTS, most, tokens_per_s=20.0) == expected


def test_threshold_without_any_score_never_interrupts() -> None:
    assert calibrated_threshold([attempt([0.0, None], None)], 0.0, tokens_per_s=20.0) == 1.1


def test_chances_of_tokens_count_at_the_time_of_their_token() -> None:
    """Ten tokens in half a second end within the speech; at one a second most would come later."""
    user = Event(start_s=0.0, end_s=2.0, stream="user", kind="turn")
    thought = Event(
        start_s=1.0,
        end_s=1.5,
        stream="thought",
        kind="thought",
        payload={"chances": [0.1] * 8 + [0.9, 0.95]},
    )
    right = Attempt(timeline=Timeline(events=(user, thought)), wrong_s=None)
    assert calibrated_threshold([right], 0.0, tokens_per_s=20.0) == 1.1
    assert calibrated_threshold([right], 1.0, tokens_per_s=20.0) == 0.1
    assert operating_curve([right], [0.92], 20.0)[0].right == 1.0


def test_an_error_in_the_first_word_is_an_error() -> None:
    (point,) = operating_curve([attempt([0.0, 0.9], 0.0)], [0.5], 1.0)
    assert math.isnan(point.right)
    assert (point.wrong, point.latency_s) == (1.0, 2.5)
