"""The tables of a grid: means with intervals, floors, costs, and corrected differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.items import floors
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio, holm

SOLVED = 0.9
"""A seed has solved a task where its primary score is at least this."""

FLOOR_ITEMS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """What an arm showed on a task.

    Attributes:
        task: The task.
        arm: The arm.
        score: Mean primary score over seeds; the interval is over seeds and items.
        by_seed: Primary score of each seed.
        learning_rate: What was chosen.
        difference: To the arm that is asked about; ``None`` for itself.
        p_value: That there is none, corrected over all rows.
    """

    task: str
    arm: str
    score: Interval
    by_seed: tuple[float, ...]
    learning_rate: float
    difference: Interval | None = None
    p_value: float | None = None

    @property
    def solved(self) -> float:
        """Share of seeds that solved the task."""
        return float(np.mean([score >= SOLVED for score in self.by_seed]))


def grid_rows(records: Sequence[Mapping[str, Any]], subject: str) -> list[GridRow]:
    """Rows by task and arm, in the order of the records.

    Args:
        records: What `counterpoint.recipes.grid_run.run_grid` returned.
        subject: The arm whose differences to all others are asked about.
    """
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        cells.setdefault((record["task"], record["arm"]), []).append(record)
    rows = []
    compared = []
    for (task, arm), own in cells.items():
        difference = None
        p_value = None
        if arm != subject and (task, subject) in cells:
            pair = (_counts(cells[task, subject]), _counts(own))
            difference, p_value = bootstrap_difference(*pair)
            compared.append(p_value)
        rows.append(
            GridRow(
                task=task,
                arm=arm,
                score=bootstrap_ratio(*_counts(own)),
                by_seed=tuple(record["score"] for record in own),
                learning_rate=own[0]["learning_rate"],
                difference=difference,
                p_value=p_value,
            )
        )
    corrected = iter(holm(compared))
    return [row if row.p_value is None else replace(row, p_value=next(corrected)) for row in rows]


def grid_markdown(
    rows: Sequence[GridRow], costs: Mapping[str, Mapping[str, Any]], subject: str
) -> str:
    """All tables of a grid as Markdown.

    Args:
        rows: From `grid_rows`.
        costs: By task and arm, from `counterpoint.recipes.grid.costs`.
        subject: As for `grid_rows`.
    """
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        about = (
            f"Primary score: {TASKS[task].primary}, in %; brackets: 95 % over seeds and items. "
            f"Floors: {_floor_text(task)}."
        )
        head = (
            f"| arm | score | solved | by seed | {subject} minus it | p (Holm) | parameters | "
            "training FLOPs a tick | state bytes | learning rate |"
        )
        lines = [f"## {task}", "", about, "", head, "|" + "---|" * 10]
        for row in rows:
            if row.task == task:
                lines.append(_line(row, costs[task][row.arm]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(row: GridRow, cost: Any) -> str:
    by_seed = ", ".join(f"{100 * score:.0f}" for score in row.by_seed)
    difference = "" if row.difference is None else _percent(row.difference, sign="+")
    p_value = "" if row.p_value is None else f"{row.p_value:.3f}"
    return (
        f"| {row.arm} | {_percent(row.score)} | {row.solved:.0%} | {by_seed} | {difference} | "
        f"{p_value} | {cost.parameters:,} | {cost.flops:.3g} | {cost.state:,} | "
        f"{row.learning_rate:g} |"
    )


def _percent(interval: Interval, sign: str = "") -> str:
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _floor_text(task: str) -> str:
    found = floors(TASKS[task], FLOOR_ITEMS, seed=0)
    primary = TASKS[task].primary
    return ", ".join(f"{name} {100 * one.get(primary, 0):.1f}" for name, one in found.items())


def _counts(
    records: Sequence[Mapping[str, Any]],
) -> tuple[Float[np.ndarray, "S N"], Float[np.ndarray, "S N"]]:
    above = np.array([record["numerators"] for record in records], float)
    below = np.array([record["denominators"] for record in records], float)
    return above, below
