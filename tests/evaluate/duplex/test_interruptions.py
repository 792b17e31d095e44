"""Stops against counts by hand: hits, early stops, false alarms, void trials, thresholds."""

import math

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.detectors import always_stop, energy_gate, never_stop
from counterpoint.evaluate.duplex.interruptions import (
    StopScores,
    StopTrial,
    best_threshold,
    judge_stops,
    operating_curve,
    stop_outcomes,
    stops_at,
)
from counterpoint.evaluate.word_errors import count_word_errors, plain_words

INTERRUPTED = StopTrial(onset_s=1.0, duration_s=4.0)
PLAIN = StopTrial(onset_s=None, duration_s=3.0)


def test_counts_are_those_of_the_paper() -> None:
    """Two hits, a late stop, an early stop, a miss; one false alarm; one speech ended before."""
    trials = [INTERRUPTED] * 5 + [PLAIN] * 2 + [StopTrial(2.0, 1.5)]
    result = judge_stops(trials, [1.4, 2.0, 2.1, 0.5, None, 1.0, None, None])
    assert (result.hits, result.early, result.false_alarms, result.num_void) == (2, 1, 1, 1)
    assert (result.num_interrupted, result.num_others) == (5, 2)
    assert result.precision.value == pytest.approx(2 / 3)
    assert result.recall.value == pytest.approx(2 / 5)
    assert result.f1.value == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert result.delay_p50_s == pytest.approx(0.4)
    assert result.delay_p95_s == pytest.approx(1.0)
    # two hits cost 0.4 s and 1 s; three misses and a false alarm 2 s each
    assert result.penalty_s == pytest.approx((0.4 + 1.0 + 4 * 2.0) / 7)
    # before onsets 1 + 1 + 1 + 0.5 + 1, then 1 and 3 s of plain trials: two stops without a cause
    assert result.false_stops_a_minute == pytest.approx(60 * 2 / 8.5)


def test_outcomes_of_trials_are_told_one_by_one() -> None:
    """A stop at the end of the second is a hit; a trial that counts nowhere has no outcome."""
    trials = [INTERRUPTED, INTERRUPTED, PLAIN, PLAIN, StopTrial(2.0, 1.5)]
    hits, misses, false_alarms = stop_outcomes(trials, [2.0, 2.01, 0.5, None, 1.0])
    assert hits.tolist() == [1, 0, 0, 0, 0]
    assert misses.tolist() == [0, 1, 0, 0, 0]
    assert false_alarms.tolist() == [0, 0, 1, 0, 0]


def test_constant_policies_fail_on_one_side() -> None:
    trials = [INTERRUPTED] * 10 + [PLAIN] * 10
    heard = torch.zeros(16_000 * 3)
    results = {}
    for policy in (always_stop, never_stop):
        scores = [policy(heard)] * 20
        results[policy.__name__] = judge_stops(trials, stops_at(trials, scores, 0.5))
    assert results["always_stop"].f1.value == 0
    assert results["always_stop"].false_alarms == 10
    assert results["never_stop"].recall.value == 0
    assert results["never_stop"].false_alarms == 0
    assert math.isnan(results["never_stop"].delay_p50_s)


def test_a_stop_is_the_first_score_above_the_threshold() -> None:
    scores = StopScores(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.7, 0.9]))
    assert scores.stop_s(0.5, 1.0) == pytest.approx(0.2)
    assert scores.stop_s(0.7, 1.0) == pytest.approx(0.3)
    assert scores.stop_s(0.1, 0.05) is None  # the speech had ended
    assert scores.stop_s(0.95, 1.0) is None


def test_a_higher_threshold_has_fewer_false_stops_and_the_best_is_found() -> None:
    torch.manual_seed(0)
    times = torch.arange(1, 61) * 0.05
    trials, scores = [], []
    for number in range(40):
        noise = 0.4 * torch.rand(60)
        if number % 2:
            noise[(times > 1.3) & (times < 1.6)] += 0.5
            trials.append(StopTrial(1.0, 3.0))
        else:
            trials.append(PLAIN)
        scores.append(StopScores(times, noise))
    thresholds = [0.1, 0.3, 0.45, 0.95]
    curve = operating_curve(trials, scores, thresholds)
    rates = [curve[threshold].false_stops_a_minute for threshold in thresholds]
    assert rates == sorted(rates, reverse=True)
    assert curve[0.45].f1.value == 1.0
    assert best_threshold(trials, scores, thresholds) == 0.45


def test_the_energy_gate_tells_levels() -> None:
    loud = torch.cat((torch.zeros(6400), torch.full((6400,), 0.1)))
    scores = energy_gate(loud)
    assert scores.stop_s(-30, 1.0) == pytest.approx(0.44)
    assert float(scores.scores[-1]) == pytest.approx(-20)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="a stop, or None, for each trial"):
        judge_stops([PLAIN], [])


def test_word_errors_are_edits_of_plain_words() -> None:
    assert plain_words("Note down 5, it's late!") == ["note", "down", "five", "it's", "late"]
    said = ["turn", "the", "lamp", "on"]
    assert count_word_errors(said, said) == 0
    assert count_word_errors(said, ["turn", "lamp", "off", "now"]) == 3
    assert count_word_errors(said, []) == 4
    assert count_word_errors([], said) == 4
