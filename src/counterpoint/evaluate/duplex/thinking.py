"""Interruptions and calls while somebody speaks, scored from timelines; no model judges.

An attempt is one conversation with what is known about it: the time at which the first wrong word
had been said, and whether an interruption named the step that was made wrong.

Source: SHANKS (arXiv:2510.06917), section 3. Its judge is replaced by the exact position of errors
that were made on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from counterpoint.evaluate.statistics import Interval, wilson
from counterpoint.streams.timeline import Timeline

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A conversation in which the user may be wrong.

    Attributes:
        timeline: What was heard, thought and done; see `counterpoint.runtime.clocked`.
        wrong_s: Time at which the first wrong word had been said; ``None`` if all was right.
        named: Whether the answer names the wrong step.
        corrected: Whether the answer also says what is right.
    """

    timeline: Timeline
    wrong_s: float | None = None
    named: bool = False
    corrected: bool = False

    @property
    def interrupted_s(self) -> float | None:
        """Time of the interruption; ``None`` if there was none."""
        return next((event.start_s for event in self.timeline.where(kind="interruption")), None)


class InterruptionScore(NamedTuple):
    """How well somebody interrupts those who are wrong.

    Attributes:
        right: Share of the right speakers who were interrupted (false alarms).
        wrong: Share of the wrong speakers who were interrupted.
        valid: Share of the interruptions of wrong speakers that name the wrong step.
        found: Share of the wrong speakers who were interrupted and told the wrong step.
        corrected: Share of the wrong speakers who were also told what is right.
        latency_s: Seconds from the first wrong word to the interruption, for each wrong speaker
            who was interrupted; negative if the interruption came before the error.
    """

    right: Interval
    wrong: Interval
    valid: Interval
    found: Interval
    corrected: Interval
    latency_s: tuple[float, ...]

    def latency(self, quantile: float) -> float:
        """Return a quantile of the latency; ``nan`` without interruptions."""
        return float(np.quantile(self.latency_s, quantile)) if self.latency_s else float("nan")


def score_interruptions(attempts: Sequence[Attempt]) -> InterruptionScore:
    """Score attempts; shares have 95 % intervals by Wilson's score over attempts."""
    right = [one for one in attempts if one.wrong_s is None]
    wrong = [one for one in attempts if one.wrong_s is not None]
    made = [one for one in wrong if one.interrupted_s is not None]
    named = [one for one in made if one.named]
    alarms = sum(one.interrupted_s is not None for one in right)
    return InterruptionScore(
        right=wilson(alarms, len(right)),
        wrong=wilson(len(made), len(wrong)),
        valid=wilson(len(named), len(made)),
        found=wilson(len(named), len(wrong)),
        corrected=wilson(sum(one.corrected for one in named), len(wrong)),
        latency_s=tuple((one.interrupted_s or 0.0) - (one.wrong_s or 0.0) for one in made),
    )


class OperatingPoint(NamedTuple):
    """What a threshold gives.

    Attributes:
        threshold: Chance from which a user is interrupted.
        right: Share of the speakers who make no mistake that are interrupted.
        wrong: Share of the speakers who make one that are interrupted.
        latency_s: Median seconds from the wrong word to the interruption.
    """

    threshold: float
    right: float
    wrong: float
    latency_s: float


def operating_curve(
    attempts: Sequence[Attempt], thresholds: Sequence[float], tokens_per_s: float
) -> list[OperatingPoint]:
    """Return what each threshold would have given, from attempts that never interrupt.

    What is thought before the first interruption does not depend on the threshold, so the first
    token whose chance reaches it is where a model with that threshold interrupts.

    Args:
        attempts: Attempts of one model with a threshold above 1.
        thresholds: Chances from which a user is interrupted.
        tokens_per_s: Tokens written in a second.
    """
    points = []
    for threshold in thresholds:
        times = [_crossing_s(one.timeline, threshold, tokens_per_s) for one in attempts]
        pairs = [(at, one.wrong_s) for at, one in zip(times, attempts, strict=True)]
        right = [at is not None for at, wrong_s in pairs if wrong_s is None]
        wrong = [(at, wrong_s) for at, wrong_s in pairs if wrong_s is not None]
        late = [at - wrong_s for at, wrong_s in wrong if at is not None]
        points.append(
            OperatingPoint(
                threshold=threshold,
                right=sum(right) / len(right) if right else float("nan"),
                wrong=len(late) / len(wrong) if wrong else float("nan"),
                latency_s=median(late) if late else float("nan"),
            )
        )
    return points


def calibrated_threshold(
    attempts: Sequence[Attempt], most_alarms: float, tokens_per_s: float
) -> float:
    """Return the lowest threshold at which few enough right speakers are interrupted.

    Args:
        attempts: Attempts on data that is not tested on; see `operating_curve`.
        most_alarms: Largest share of the right speakers who may be interrupted.
        tokens_per_s: Tokens written in a second.

    Returns:
        One of the chances in the attempts, or 1.1, which never interrupts.
    """
    chances = {
        chance
        for one in attempts
        for event in one.timeline.where(kind="thought")
        for chance in event.payload.get("chances", [event.payload.get("interrupt")])
        if chance
    }
    for point in operating_curve(attempts, sorted(chances), tokens_per_s):
        if point.right <= most_alarms:
            return point.threshold
    return 1.1


def rises(timeline: Timeline, tokens_per_s: float) -> list[tuple[float, float]]:
    """Return where the chance of an interruption is higher than ever before in a conversation.

    The first rise to at least a threshold is where a model with that threshold interrupts. What is
    thought after the speech has ended is no interruption.

    Args:
        timeline: A conversation with a threshold above 1.
        tokens_per_s: Tokens written in a second.

    Returns:
        Pairs of a chance and the time at which its token is complete.
    """
    end_s = max((event.end_s for event in timeline.where(stream="user")), default=0.0) + _ROUNDING
    found: list[tuple[float, float]] = []
    highest = -1.0
    for event in timeline.where(kind="thought"):
        if event.start_s > end_s - 2 * _ROUNDING:
            break
        if "chances" in event.payload:
            chances = enumerate(event.payload["chances"], 1)
            scored = [(chance, event.start_s + count / tokens_per_s) for count, chance in chances]
        else:  # a judge scored the thought as a whole
            scored = [(event.payload["interrupt"], event.end_s)]
        for chance, at_s in scored:
            if chance is not None and chance > highest and at_s < end_s:
                highest = chance
                found.append((chance, at_s))
    return found


def _crossing_s(timeline: Timeline, threshold: float, tokens_per_s: float) -> float | None:
    """Return when a threshold is reached first, before the speech has ended."""
    return next(
        (at_s for chance, at_s in rises(timeline, tokens_per_s) if chance >= threshold), None
    )
