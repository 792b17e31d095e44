"""Rows of results from the records of a grid: means, intervals, floors, corrected differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.items import AnyTask, all_policies, draw
from counterpoint.errors import UserError
from counterpoint.evaluate.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    seed_difference,
)

SOLVED = 0.9
"""A seed has solved a task if its primary score is at least this."""

SIGNIFICANT = 0.05
"""A difference is shown if its p-value, corrected for all comparisons, is below this."""

ORACLE = "oracle"
"""Policy that reads the whole text: no model can do better, so it is not a floor."""

DIVERGED = "diverged"
"""Only score in the record of a seed whose learning diverged, which counts as wrong throughout."""

_RESAMPLES = 5000

ScoreCounts = tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]]
"""Numerators and denominators of a score, for each training seed and item."""


class AskedTask(NamedTuple):
    """A task and its items that every arm was asked.

    Attributes:
        task: The task.
        items: The items.
    """

    task: AnyTask
    items: Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """Result of an arm, or of a policy that learns nothing, on a task.

    Attributes:
        task: The task.
        arm: The arm, or the policy.
        score: Mean primary score over seeds; the interval is over seeds and items.
        by_seed: Primary score of each seed; empty for a policy.
        diverged: Seeds whose learning diverged; their scores are 0.
        learning_rate: The chosen learning rate; ``None`` for a policy.
        difference: Score of the arm that is compared with all others, minus this score; ``None``
            for that arm itself and for policies.
        p_value: P-value of no difference, corrected for all rows.
        paired: The difference over the seeds that both have, each beside itself, for these items;
            ``None`` if they are fewer than two.
        paired_p_value: P-value of it, corrected for all rows.
        above_floors: Whether the interval lies above those of all policies that see only a part.
    """

    task: str
    arm: str
    score: Interval
    by_seed: tuple[float, ...] = ()
    diverged: tuple[int, ...] = ()
    learning_rate: float | None = None
    difference: Interval | None = None
    p_value: float | None = None
    paired: Interval | None = None
    paired_p_value: float | None = None
    above_floors: bool | None = None

    @property
    def is_policy(self) -> bool:
        """Whether the row is a policy."""
        return not self.by_seed

    @property
    def solved(self) -> float:
        """Share of seeds that solved the task."""
        return float(np.mean([score >= SOLVED for score in self.by_seed]))

    @property
    def shown(self) -> int:
        """1 if the first arm of the grid is shown to be better than this one, -1 if worse, or 0."""
        if self.p_value is None or self.difference is None or not self.p_value < SIGNIFICANT:
            return 0
        return int(math.copysign(1, self.difference.value))


def grid_rows(
    records: Sequence[Mapping[str, Any]],
    subject: str,
    asked: Mapping[str, AskedTask] | None = None,
    *,
    is_judged: bool = True,
) -> list[GridRow]:
    """Return rows by task: arms in the order of the records, then policies.

    Args:
        records: Result of `counterpoint.recipes.grid_run.run_grid`.
        subject: The arm that is compared with all others.
        asked: Tasks by name, whose items policies answer too. Without it there are no policies.
        is_judged: Whether there are p-values: they would be a verdict.
    """
    cells = by_cell(records)
    rows = list[GridRow]()
    for task in dict.fromkeys(task for task, _ in cells):
        policies = policy_rows(task, asked[task]) if asked is not None else []
        floor = max((row.score.high for row in policies if row.arm != ORACLE), default=None)
        for arm in [arm for other, arm in cells if other == task]:
            row = _arm_row(cells, task, arm, subject)
            above = None if floor is None else row.score.low > floor
            row = replace(row, above_floors=above)
            rows.append(row if is_judged else replace(row, p_value=None, paired_p_value=None))
        rows += policies
    p_values = _corrected([row.p_value for row in rows])
    paired = _corrected([row.paired_p_value for row in rows])
    return [
        replace(row, p_value=one, paired_p_value=other)
        for row, one, other in zip(rows, p_values, paired, strict=True)
    ]


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values that are corrected for all of them; ``None`` stays."""
    found = iter(holm([value for value in p_values if value is not None]))
    return [None if value is None else next(found) for value in p_values]


def policy_rows(name: str, asked: AskedTask) -> list[GridRow]:
    """Return the rows of policies, the oracle last; their intervals are over items."""
    task, items = asked
    rows = []
    for policy_name, policy in all_policies(task, items).items():
        given = [policy(item, draw(0, -1 - number)) for number, item in enumerate(items)]
        counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
        above, below = np.array(counts, float).T
        score = bootstrap_ratio(above, below, _RESAMPLES)
        rows.append(GridRow(task=name, arm=policy_name, score=score))
    return sorted(rows, key=lambda row: row.arm == ORACLE)


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Return the mean primary score over all tasks, for each arm that has all of them."""
    cells = by_cell(records)
    tasks = dict.fromkeys(task for task, _ in cells)
    return {
        arm: bootstrap_mean([counts_of(cells[task, arm]) for task in tasks])
        for arm in dict.fromkeys(arm for _, arm in cells)
        if all((task, arm) in cells for task in tasks)
    }


def by_cell(
    records: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return the records of all seeds, by task and arm.

    Raises:
        UserError: A seed of an arm and task comes twice, which would count as two runs.
    """
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        own = cells.setdefault((record["task"], record["arm"]), [])
        if any(record["seed"] == other["seed"] for other in own):
            raise UserError(
                f"Every seed must have one record for an arm and a task: {record['arm']!r} has two "
                f"for seed {record['seed']} of {record['task']!r}. Leave one of them out."
            )
        own.append(record)
    return cells


def counts_of(records: Sequence[Mapping[str, Any]]) -> ScoreCounts:
    """Return numerators and denominators of the primary score for the seeds of an arm."""
    above = np.array([record["numerators"] for record in records], float)
    below = np.array([record["denominators"] for record in records], float)
    return above, below


def _arm_row(
    cells: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], task: str, arm: str, subject: str
) -> GridRow:
    """Return a row whose p-value is not corrected yet."""
    own = cells[task, arm]
    difference = paired = None
    p_value = paired_p_value = None
    if arm != subject and (task, subject) in cells:
        first = cells[task, subject]
        difference, p_value = bootstrap_difference(counts_of(first), counts_of(own), _RESAMPLES)
        paired, paired_p_value = _by_pairs(first, own)
    return GridRow(
        task=task,
        arm=arm,
        score=bootstrap_ratio(*counts_of(own), _RESAMPLES),
        by_seed=tuple(record["score"] for record in own),
        diverged=tuple(record["seed"] for record in own if _has_diverged(record)),
        learning_rate=own[0]["learning_rate"],
        difference=difference,
        p_value=p_value,
        paired=paired,
        paired_p_value=paired_p_value,
    )


def _by_pairs(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[Interval, float] | tuple[None, None]:
    """Return the difference over the seeds that both have; ``None`` if they are fewer than two."""
    scores, others = ({one["seed"]: one["score"] for one in own} for own in (ours, theirs))
    shared = sorted(scores.keys() & others.keys())
    if len(shared) < 2:
        return None, None
    pair = (np.array([own[seed] for seed in shared], float) for own in (scores, others))
    return seed_difference(*pair)


def _has_diverged(record: Mapping[str, Any]) -> bool:
    return any(score["name"] == DIVERGED for score in record.get("scores") or ())
