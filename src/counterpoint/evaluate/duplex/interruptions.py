"""Whether a speaker stops when it is interrupted, and only then: hits, false stops and delays.

A speaker gives a *stop score* at the end of each frame that it hears: the probability that it stops
there, a level, or what a detector says. It stops at the first score above a threshold. So a model,
a wake word detector, a voice detector and constant policies are measured by the same functions, at
any threshold, from one pass over the trials.

The published count: a trial with an interruption is a true positive if the stop comes within 1 s
after its onset, and a false negative otherwise; a trial without one is a false positive if the
speaker stops. A trial in which the speaker had ended before the onset counts nowhere.

Source: LSLM (arXiv:2408.02622), section 5.3. The *penalty* is one number that punishes false alarms
and delay, after the idea of APT in SID-Bench (arXiv:2603.24144); its definition is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio, wilson

WINDOW_S = 1.0
"""Seconds after the onset in which a stop is a hit: twice the 0.5 s that are trained."""

PENALTY_S = 2.0
"""Penalty of a miss and of a false alarm, in seconds; a hit costs its delay."""


class StopTrial(NamedTuple):
    """One utterance.

    Attributes:
        onset_s: Time at which the interruption begins; ``None`` if there is none.
        duration_s: Time until which the speaker speaks if it does not stop.
    """

    onset_s: float | None
    duration_s: float

    @property
    def counts(self) -> bool:
        """Whether the speaker still speaks when it is interrupted."""
        return self.onset_s is None or self.onset_s < self.duration_s


class StopScores(NamedTuple):
    """Stop scores of one trial.

    Attributes:
        times_s: Times at which the scores are known, in order.
        scores: A score for each time.
    """

    times_s: Float[Tensor, " T"]
    scores: Float[Tensor, " T"]

    def stop_s(self, threshold: float, duration_s: float) -> float | None:
        """Return the first time with a score above the threshold, before the speech has ended."""
        above = (self.scores > threshold) & (self.times_s < duration_s)
        found = above.nonzero()[:, 0]
        return float(self.times_s[found[0]]) if len(found) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StopResult:
    """How well a speaker stops.

    Attributes:
        precision: Share of the true positives among all positives.
        recall: Share of the interruptions that are hit.
        f1: Harmonic mean of both.
        num_interrupted: Number of trials with an interruption that count.
        num_others: Number of trials without one.
        num_void: Number of trials in which the speech ended before the interruption.
        hits: Number of true positives.
        early: Number of stops before the interruption of a trial; they are false negatives.
        false_alarms: Number of trials without an interruption in which the speaker stops.
        false_stops_a_minute: Stops without a cause in a minute of uninterrupted speech.
        delay_p50_s: Median delay of the hits.
        delay_p95_s: Its 95th percentile.
        penalty_s: Mean of the delays of hits, 2 s for a miss, an early stop or a false alarm, and
            0 s for an utterance that is rightly finished.
    """

    precision: Interval
    recall: Interval
    f1: Interval
    num_interrupted: int
    num_others: int
    num_void: int
    hits: int
    early: int
    false_alarms: int
    false_stops_a_minute: float
    delay_p50_s: float
    delay_p95_s: float
    penalty_s: float


class StopOutcomes(NamedTuple):
    """What became of each trial: 1 if it is so, otherwise 0; only zeros if it counts nowhere.

    Attributes:
        hits: Whether the speaker stopped within 1 s after the onset.
        misses: Whether it did not, although it was interrupted.
        false_alarms: Whether it stopped although it was not interrupted.
    """

    hits: Float[np.ndarray, " N"]
    misses: Float[np.ndarray, " N"]
    false_alarms: Float[np.ndarray, " N"]


def stop_outcomes(trials: Sequence[StopTrial], stops_s: Sequence[float | None]) -> StopOutcomes:
    """Return what became of each trial; for the arguments see `judge_stops`."""
    found = np.zeros((3, len(trials)))
    for number, (trial, stop_s) in enumerate(zip(trials, stops_s, strict=True)):
        if not trial.counts:
            continue
        if trial.onset_s is None:
            found[2, number] = stop_s is not None
            continue
        is_hit = stop_s is not None and 0 <= stop_s - trial.onset_s <= WINDOW_S
        found[0, number] = is_hit
        found[1, number] = not is_hit
    return StopOutcomes(*found)


def judge_stops(trials: Sequence[StopTrial], stops_s: Sequence[float | None]) -> StopResult:
    """Return how well a speaker stops.

    Args:
        trials: The trials.
        stops_s: For each trial, the time at which the speaker stops; ``None`` if it does not.

    Raises:
        UserError: There are no trials, or their numbers differ.
    """
    if not trials or len(trials) != len(stops_s):
        raise UserError(
            "There must be a stop, or None, for each trial, and at least one trial: got "
            f"{len(stops_s)} for {len(trials)} trials."
        )
    outcomes = stop_outcomes(trials, stops_s)
    counted = [pair for pair in zip(trials, stops_s, strict=True) if pair[0].counts]
    interrupted = [(trial.onset_s, stop) for trial, stop in counted if trial.onset_s is not None]
    others = [stop for trial, stop in counted if trial.onset_s is None]
    delays = [
        stop - onset
        for onset, stop in interrupted
        if stop is not None and 0 <= stop - onset <= WINDOW_S
    ]
    early = sum(stop is not None and stop < onset for onset, stop in interrupted)
    false_alarms = int(outcomes.false_alarms.sum())
    uninterrupted_s = sum(_uninterrupted_s(trial, stop) for trial, stop in counted)
    missed = len(interrupted) - len(delays)
    wrong = outcomes.misses + outcomes.false_alarms
    penalty_s = sum(delays) + PENALTY_S * (missed + false_alarms)
    return StopResult(
        precision=wilson(len(delays), len(delays) + false_alarms),
        recall=wilson(len(delays), len(interrupted)),
        f1=bootstrap_ratio(2 * outcomes.hits, 2 * outcomes.hits + wrong),
        num_interrupted=len(interrupted),
        num_others=len(others),
        num_void=len(trials) - len(counted),
        hits=len(delays),
        early=early,
        false_alarms=false_alarms,
        false_stops_a_minute=60 * (early + false_alarms) / max(uninterrupted_s, 1e-9),
        delay_p50_s=percentile(delays, 0.5),
        delay_p95_s=percentile(delays, 0.95),
        penalty_s=penalty_s / max(len(counted), 1),
    )


def stops_at(
    trials: Sequence[StopTrial], scores: Sequence[StopScores], threshold: float
) -> list[float | None]:
    """Return when the speaker stops in each trial, in seconds; ``None`` where it does not.

    Args:
        trials: The trials.
        scores: For each trial, how likely it is at each time that the speaker is interrupted.
        threshold: The speaker stops at the first score above this.
    """
    return [
        own.stop_s(threshold, trial.duration_s) for trial, own in zip(trials, scores, strict=True)
    ]


def operating_curve(
    trials: Sequence[StopTrial], scores: Sequence[StopScores], thresholds: Sequence[float]
) -> dict[float, StopResult]:
    """Return the result at each threshold; for the arguments see `stops_at`."""
    return {
        threshold: judge_stops(trials, stops_at(trials, scores, threshold))
        for threshold in thresholds
    }


def best_threshold(
    trials: Sequence[StopTrial], scores: Sequence[StopScores], thresholds: Sequence[float]
) -> float:
    """Return the threshold with the highest F1, the lowest penalty among equals.

    Choose it on other trials than those whose result is reported. For the arguments see `stops_at`.
    """
    curve = operating_curve(trials, scores, thresholds)
    return max(curve, key=lambda one: (curve[one].f1.value, -curve[one].penalty_s))


def _uninterrupted_s(trial: StopTrial, stop_s: float | None) -> float:
    """Return for how long the speaker spoke before an interruption, or until it stopped."""
    ends = (trial.onset_s, stop_s)
    return min([trial.duration_s, *(end for end in ends if end is not None)])
