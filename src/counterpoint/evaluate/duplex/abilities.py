"""Scores of the abilities of a model that talks, from many live trials, and their table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.evaluate.duplex.live import ModelAgent, run_trials
from counterpoint.evaluate.duplex.trials import Ability, Outcome, Trial
from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.evaluate.statistics import Interval, wilson
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.talk import Talker

if TYPE_CHECKING:
    from rich.table import Table

_SHARES = (0.5, 0.95)
_AT_A_TIME = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class AbilityScore:
    """The score of one ability over its trials.

    Attributes:
        ability: The ability.
        trials: Number of conversations.
        passed: Share of them in which the ability was shown, with its interval.
        text_right: Share in which the text was right.
        latency_s: Percentiles (by share) of the seconds until the agent answers; ``None`` if it
            never does.
        stop_s: Percentiles of the seconds until it is silent after an interruption.
        failures: Descriptions of the conversations in which either was wrong.
    """

    ability: Ability
    trials: int
    passed: Interval
    text_right: Interval
    latency_s: Mapping[float, float] | None
    stop_s: Mapping[float, float] | None
    failures: tuple[Mapping[str, Any], ...]


def hold_trials(
    agent: Talker,
    trials: Iterable[Trial],
    sampling: Callable[[int], FrameSampling],
    on_progress: Callable[[int], None],
) -> list[Outcome]:
    """Hold conversations, several at a time.

    Args:
        agent: The model that talks.
        trials: The conversations.
        sampling: Returns the sampling of the n-th conversation, counted from 1.
        on_progress: Called with the number of conversations done.
    """
    every = list(trials)
    outcomes = list[Outcome]()
    for first in range(0, len(every), _AT_A_TIME):
        samplings = [sampling(first + number) for number in range(_AT_A_TIME + 1)]
        rows = ModelAgent(talker=agent, sampling=samplings.__getitem__)
        outcomes += run_trials(rows, every[first : first + _AT_A_TIME])
        on_progress(len(outcomes))
    return outcomes


def count_outcomes(outcomes: Sequence[Outcome]) -> AbilityScore:
    """Compute the score of one ability from its conversations; at least one is needed."""
    latencies = [found for one in outcomes if (found := one.latency_s) is not None]
    stops = [found for one in outcomes if (found := one.stop_s) is not None]
    return AbilityScore(
        ability=outcomes[0].trial.ability,
        trials=len(outcomes),
        passed=wilson(sum(one.passed for one in outcomes), len(outcomes)),
        text_right=wilson(sum(one.said_right for one in outcomes), len(outcomes)),
        latency_s=_percentiles(latencies),
        stop_s=_percentiles(stops),
        failures=tuple(_described(one) for one in outcomes if not (one.passed and one.said_right)),
    )


def _percentiles(seconds: Sequence[float]) -> dict[float, float] | None:
    return {share: percentile(seconds, share) for share in _SHARES} if seconds else None


def _described(outcome: Outcome) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "order": trial.order.text,
        "interrupted_by": None if trial.second is None else trial.second.text,
        "agent_said": " ".join(word.text for word in outcome.words),
        "agent_s": [[round(edge, 2) for edge in segment] for segment in outcome.agent],
        "user_s": [[round(edge, 2) for edge in segment] for segment in outcome.turns],
        "passed": outcome.passed,
        "text_right": outcome.said_right,
    }


def abilities_table(scores: Sequence[AbilityScore]) -> "Table":
    """Return the table of all abilities for a terminal."""
    from rich.table import Table

    heads = ("ability", "shown", "text right", "latency p50 / p95", "stops after p50 / p95")
    table = Table(*heads)
    for score in scores:
        table.add_row(
            f"{score.ability} ({score.trials})",
            _share(score.passed),
            _share(score.text_right),
            _seconds(score.latency_s),
            _seconds(score.stop_s),
        )
    return table


def _share(value: Interval) -> str:
    return f"{value.value:.0%} [{value.low:.0%}, {value.high:.0%}]"


def _seconds(values: Mapping[float, float] | None) -> str:
    return "" if values is None else " / ".join(f"{value:.2f} s" for value in values.values())
