"""The tables and the picture of the study of front-loading, from judged records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.verify import pass_at_k
from counterpoint.evaluate.report.figures import PALETTE, new_figure
from counterpoint.evaluate.report.grid_rows import SIGNIFICANT, ScoreCounts
from counterpoint.evaluate.report.grid_table import TextTable
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio, holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 5000
LOWER_IS_BETTER = ("bits",)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRow:
    """A declared comparison of two chains.

    Attributes:
        claim: The claim that it tests.
        better: The chain that is claimed to be better.
        other: The other chain.
        split: What was scored.
        metric: Metric.
        difference: Metric of the first minus that of the second, with its paired interval.
        p_value: P-value of no difference, corrected for all comparisons (Holm).
        num_seeds: Number of training seeds of the chain that has fewer.
    """

    claim: str
    better: str
    other: str
    split: str
    metric: str
    difference: Interval
    p_value: float
    num_seeds: int

    @property
    def verdict(self) -> str:
        """Return "holds", "fails" (shown to be the other way round), or "undecided".

        One seed decides nothing.
        """
        if self.num_seeds < 2 or not self.p_value < SIGNIFICANT:
            return "undecided"
        sign = math.copysign(1, self.difference.value)
        return "holds" if (sign > 0) != (self.metric in LOWER_IS_BETTER) else "fails"


def pair_rows(
    records: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str, str]],
    compared: Sequence[tuple[str, str]],
) -> list[PairRow]:
    """Return the comparisons for which both chains have records, with the seeds of both.

    Args:
        records: Judged records of the chains.
        pairs: Claim, chain that is claimed to be better, and other chain.
        compared: What was scored, and the metric.
    """
    found = []
    for (claim, better, other), (split, metric) in product(pairs, compared):
        ours, theirs = _paired(_of(records, better, split), _of(records, other, split))
        if ours and theirs:
            difference, p_value = bootstrap_difference(
                counts(ours, metric), counts(theirs, metric), RESAMPLES
            )
            found.append(
                PairRow(
                    claim=claim,
                    better=better,
                    other=other,
                    split=split,
                    metric=metric,
                    difference=difference,
                    p_value=p_value,
                    num_seeds=len(ours),
                )
            )
    corrected = holm([row.p_value for row in found])
    return [replace(row, p_value=own) for row, own in zip(found, corrected, strict=True)]


def _paired(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the records of the seeds that both have."""
    common = {one["seed"] for one in ours} & {one["seed"] for one in theirs}
    first, second = ([one for one in some if one["seed"] in common] for some in (ours, theirs))
    return first, second


def counts(records: Sequence[Mapping[str, Any]], metric: str) -> ScoreCounts:
    """Return numerators and denominators of a metric, for each seed and item."""
    field = {"answer": "right", "process": "complete", "bits": "bits"}[metric]
    above = np.array([record[field] for record in records], float)
    if metric == "bits":
        return above, np.array([record["symbols"] for record in records], float)
    return above, np.ones_like(above)


def score(records: Sequence[Mapping[str, Any]], metric: str) -> Interval:
    """Return a metric over seeds and items."""
    return bootstrap_ratio(*counts(records, metric), RESAMPLES)


def _of(records: Sequence[Mapping[str, Any]], arm: str, split: str) -> list[Mapping[str, Any]]:
    return [one for one in records if one["arm"] == arm and one["split"] == split]


def markdown(records: Sequence[Mapping[str, Any]], rows: Sequence[PairRow]) -> str:
    """Return all tables as Markdown."""
    arms = list(dict.fromkeys(record["arm"] for record in records))
    parts = ["## Scores", "", _scores(records, arms).markdown(), ""]
    parts += ["## Families", "", _families(records, arms).markdown(), ""]
    parts += ["## Claims", "", *_claims(rows), ""]
    return "\n".join(parts)


def _scores(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> TextTable:
    heads = (
        *("chain", "seeds", "answer %", "process %", "bits a symbol", "answer %, more operations"),
        *("answer %, other family", "pass@1, all %", "symbols written", "plain text, bits a byte"),
    )
    rows = []
    for arm in arms:
        own, more, other = (
            _of(records, arm, split) for split in ("in range", "more operations", "other families")
        )
        if not own:
            continue
        bits = score(own, "bits")
        lengths = np.mean([length for one in own for length in one["lengths"]])
        plain = np.mean([one["base_bits"] for one in own])
        cells = (
            arm,
            str(len(own)),
            _percent(score(own, "answer")),
            _percent(score(own, "process")),
            f"{bits.value:.2f} [{bits.low:.2f}, {bits.high:.2f}]",
            _percent(score(more, "answer")),
            _percent(score(other, "answer")),
            _passes(own),
            f"{lengths:.0f}",
            f"{plain:.2f}",
        )
        rows.append(cells)
    return TextTable(heads, rows)


def _passes(records: Sequence[Mapping[str, Any]]) -> str:
    count = records[0]["num_samples"]
    if not count:
        return "-"
    right = [number for one in records for number in one["sampled_right"]]
    return ", ".join(f"{100 * pass_at_k(right, count, k):.1f}" for k in (1, count))


def _families(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> TextTable:
    names = list(dict.fromkeys(name for one in records for name in one["families"]))
    rows = []
    for arm in arms:
        own = [one for one in records if one["arm"] == arm and one["split"] != "more operations"]
        cells = []
        for family in names:
            shares = [_family_mean(own, family, field) for field in ("right", "complete")]
            cells.append(", ".join(f"{100 * share:.0f}" for share in shares))
        rows.append((arm, *cells))
    return TextTable(("answer %, process %", *names), rows)


def _family_mean(records: Sequence[Mapping[str, Any]], family: str, field: str) -> float:
    found: list[Float[np.ndarray, " n"]] = [
        np.array(one[field], float)[np.array(one["families"]) == family] for one in records
    ]
    return float(np.concatenate(found).mean()) if found else math.nan


def _claims(rows: Sequence[PairRow]) -> list[str]:
    lines = []
    for claim in dict.fromkeys(row.claim for row in rows):
        lines += [
            f"**{claim}**",
            "",
            "| better, it is claimed | other | scored | metric | difference | p | seeds | |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row.claim == claim:
                value = row.difference
                shown = f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
                lines.append(
                    f"| {row.better} | {row.other} | {row.split} | {row.metric} | {shown} | "
                    f"{row.p_value:.2g} | {row.num_seeds} | {row.verdict} |"
                )
        lines.append("")
    return lines


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def catch_up_figure(
    records: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[int, str]],
    levels: Mapping[str, str],
) -> "Figure":
    """Return the picture of right answers in range by the length of fine-tuning.

    Args:
        records: Judged records.
        curves: For each curve the chain at each number of times.
        levels: Chains with one length, drawn as a line, by label.
    """
    figure = new_figure(6.0, 3.4)
    axes = figure.subplots()
    for number, (label, chains) in enumerate(curves.items()):
        known = {times: _of(records, arm, "in range") for times, arm in chains.items()}
        scores = {times: score(own, "answer") for times, own in known.items() if own}
        if not scores:
            continue
        means = [one.value for one in scores.values()]
        below = [one.value - one.low for one in scores.values()]
        above = [one.high - one.value for one in scores.values()]
        axes.errorbar(
            [*scores], means, (below, above), label=label, color=PALETTE[1 + number], marker="o"
        )
    for number, (label, arm) in enumerate(levels.items()):
        own = _of(records, arm, "in range")
        if own:
            level = score(own, "answer").value
            axes.axhline(level, color=PALETTE[3 + number], linestyle="--", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlabel("times as much fine-tuning")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
