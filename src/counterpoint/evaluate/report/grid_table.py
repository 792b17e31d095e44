"""The tables of a grid, as texts: overview, comparisons, costs, and one table for each task."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from counterpoint.data.tasks.items import asked
from counterpoint.data.tasks.named import ReadsFiles
from counterpoint.evaluate.report.grid_findings import GridFindings
from counterpoint.evaluate.report.grid_rows import ORACLE, SIGNIFICANT, SOLVED, GridRow, by_cell
from counterpoint.evaluate.report.summary import spell
from counterpoint.evaluate.statistics import Interval


class TextTable(NamedTuple):
    """Heads and cells of a table."""

    heads: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rows = [self.heads, ("---",) * len(self.heads), *self.cells]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdict(found: GridFindings) -> str:
    """Return sentences that say what is shown about the first arm, and what is not."""
    subject = found.about.subject
    if found.about.unjudged:
        return (
            f"No verdict: {found.about.unjudged}. The scores and intervals describe these runs and "
            "tell nothing about longer ones."
        )
    asked = [row for row in found.rows if row.p_value is not None]
    if not asked:
        return f"Only {subject} was run: nothing is compared."
    better, worse, neither = (sum(row.shown == sign for row in asked) for sign in (1, -1, 0))
    shown = (
        f"Of {_count(len(asked), 'difference')} between {subject} and other arms, {better} "
        f"{_is(better)} shown in favour of {subject}, {worse} against it, and {neither} "
        f"{_is(neither)} not shown (p < {SIGNIFICANT} after Holm's correction over all of them)."
    )
    reached = [row.task for row in found.rows if row.arm == subject and row.above_floors]
    floors = (
        f"{subject} lies above every policy that sees a part only on {_listed(reached)}."
        if reached
        else f"On no task does {subject} lie above every policy that sees a part only."
    )
    seeds = (
        "One training seed: intervals cover the choice of items only."
        if found.num_seeds == 1
        else f"{found.num_seeds} training seeds: intervals cover them and the items."
    )
    return f"{shown} {floors} {seeds}"


def overview(found: GridFindings, form: str = "{:.1f}") -> TextTable:
    """Return scores in % of all arms on all tasks, of the best policies, and of the oracle."""
    scores = {(row.task, row.arm): row.score for row in found.rows}
    arms = [arm for arm in found.about.arms if any(row.arm == arm for row in found.rows)]
    cells = [
        (
            arm,
            *(percent(scores.get((task, arm)), form) for task in found.tasks),
            percent(found.means.get(arm), form),
        )
        for arm in arms
    ]
    policies = {task: [row for row in found.of_task(task) if row.is_policy] for task in found.tasks}
    parts = {task: [row for row in own if row.arm != ORACLE] for task, own in policies.items()}
    if all(parts.values()):
        best = [max(parts[task], key=lambda row: row.score.value) for task in found.tasks]
        cells.append(
            ("best policy that sees a part", *(percent(row.score, form) for row in best), "")
        )
    if any(row.arm == ORACLE for own in policies.values() for row in own):
        oracles = [percent(scores.get((task, ORACLE)), form) for task in found.tasks]
        cells.append((ORACLE, *oracles, ""))
    return TextTable(("arm", *found.tasks, "mean"), cells)


def comparisons(found: GridFindings) -> TextTable:
    """Return the tasks on which the first arm is shown to be better or worse than each other."""
    cells = []
    for arm in found.about.arms[1:]:
        rows = [row for row in found.rows if row.arm == arm and row.p_value is not None]
        if rows:
            shown = (
                ", ".join(row.task for row in rows if row.shown == sign) or "–"
                for sign in (1, -1, 0)
            )
            cells.append((arm, *shown))
    subject = found.about.subject
    heads = ("compared with", f"{subject} better", f"{subject} worse", "no difference shown")
    return TextTable(heads, cells)


def task_table(found: GridFindings, task: str) -> TextTable:
    """Return the rows of a task: arms, then policies."""
    heads = (
        *("arm", "score %", f"{found.about.subject} minus this arm", "p (Holm)"),
        *("the same, paired by seed", "p (Holm)"),
        *(
            "seeds that solve the task",
            "above policies that see a part",
            "by seed",
            "learning rate",
        ),
    )
    return TextTable(heads, [_task_cells(row) for row in found.of_task(task)])


def costs_table(found: GridFindings) -> TextTable:
    """Return the cost of every arm; ranges are those over tasks."""
    about = found.about
    cells = []
    for arm in about.arms:
        own = [about.costs[task][arm] for task in about.costs]
        first = [about.costs[task][about.subject] for task in about.costs]
        pairs = list(zip(own, first, strict=True))
        shares = [cost.flops / other.flops for cost, other in pairs]
        on_tasks = [one.task_flops / other.task_flops for one, other in pairs if other.task_flops]
        latency = found.latency.get(arm)
        cells.append(
            (
                arm,
                _range([cost.parameters for cost in own], "{:,.0f}"),
                _range([cost.flops for cost in own], "{:.3g}"),
                _range(shares, "{:.2f}"),
                _range(on_tasks, "{:.2f}") if on_tasks else "–",
                _range([cost.state for cost in own], "{:,.0f}"),
                f"{latency.p50_ms:.2f} / {latency.p95_ms:.2f}" if latency else "–",
                about.unmatched.get(arm, ""),
            )
        )
    heads = (
        *("arm", "parameters", "training FLOPs a byte", f"FLOPs / {about.subject}"),
        *("the same with the words of the task", "state bytes"),
        *("ms a tick, p50 / p95", "why it need not meet the budget"),
    )
    return TextTable(heads, cells)


def about_task(found: GridFindings, task: str) -> str:
    """Return the explanation of the scores of a task."""
    read = found.about.task(task)
    digest = found.about.digests.get(task, "")[:12] if isinstance(read, ReadsFiles) else ""
    return (
        f"Primary score: {read.primary}, in %, on {found.num_items[task]:,} items that no "
        f"run has learned from; brackets: 95 % over seeds and items. A seed solves the task if its "
        f"score is at least {100 * SOLVED:.0f} %. Rows without a learning rate are policies that "
        "learn nothing; the oracle reads the whole text, the others a part of it or nothing. "
        "Differences and verdicts are Welch's over seeds and items; those paired by seed hold for "
        "these items alone." + (f" The digest of its data begins with {digest}." if digest else "")
    )


def grid_markdown(found: GridFindings) -> str:
    """Return the whole report as Markdown."""
    about = found.about
    parts = [f"# {about.name}", about.purpose, verdict(found), about.left_out]
    parts += ["## All tasks", overview(found).markdown()]
    if comparisons(found).cells:
        parts += ["## Comparisons", comparisons(found).markdown()]
    for task in found.tasks:
        parts += [f"## {task}", asked(found.about.task(task))]
        parts += [about_task(found, task), task_table(found, task).markdown()]
    parts += ["## Costs", costs_table(found).markdown()]
    if about.command:
        parts += ["## How this was made", f"    {about.command}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def running_table(
    records: Sequence[Mapping[str, Any]], arms: Sequence[str], tasks: Sequence[str]
) -> str:
    """Return the mean scores in % so far, with the number of seeds if it varies."""
    cells = by_cell(records)
    counts = {len(own) for own in cells.values()}
    texts = [("", *tasks)]
    for arm in arms:
        row = [arm]
        for task in tasks:
            own = cells.get((task, arm), ())
            text = f"{100 * np.mean([record['score'] for record in own]):.1f}" if own else "–"
            row.append(text if len(counts) == 1 or not own else f"{text} ({len(own)})")
        texts.append(tuple(row))
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in texts
    )


def percent(interval: Interval | None, form: str = "{:.1f}") -> str:
    """Return a share with its interval, in %."""
    return spell(None if interval is None else interval.map(100), form)


def _task_cells(row: GridRow) -> tuple[str, ...]:
    if row.is_policy:
        return (row.arm, percent(row.score), *[""] * 8)
    return (
        row.arm,
        percent(row.score),
        "" if row.difference is None else percent(row.difference, "{:+.1f}"),
        _spell_p(row.p_value),
        "" if row.paired is None else percent(row.paired, "{:+.1f}"),
        _spell_p(row.paired_p_value),
        f"{row.solved:.0%}",
        {True: "yes", False: "no", None: ""}[row.above_floors],
        ", ".join(f"{100 * score:.0f}" for score in row.by_seed)
        + "".join(f", seed {seed} diverged" for seed in row.diverged),
        f"{row.learning_rate:g}",
    )


def _spell_p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _range(values: Sequence[float], form: str) -> str:
    low = form.format(min(values))
    high = form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
