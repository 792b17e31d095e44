"""The tables of the study of front-loading, from judged records."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.verify import pass_at_k, pass_counts
from counterpoint.evaluate.report.grid_rows import SIGNIFICANT, ScoreCounts
from counterpoint.evaluate.report.grid_table import TextTable
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio, holm

RESAMPLES = 5000
LOWER_IS_BETTER = ("bits",)
SPLITS = ("in range", "more operations", "other families")
"""What is scored."""
LIKE_CORPORA = ("in range", "other families")
"""What has as many operations as the corpora; a family is in one of them."""


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
        p_value: P-value of no difference, corrected for all declared comparisons (Holm).
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

    The correction counts those without records too, as tests that show nothing: what holds when a
    study was stopped still holds, with the same records, when it has gone on.

    Args:
        records: Judged records of the chains.
        pairs: All that are declared: claim, chain that is claimed to be better, and other chain.
        compared: What was scored, and the metric.
    """
    found = []
    for (claim, better, other), (split, metric) in product(pairs, compared):
        ours, theirs = _paired(of_chain(records, better, split), of_chain(records, other, split))
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
    num_not_run = len(pairs) * len(compared) - len(found)
    corrected = holm([*(row.p_value for row in found), *[1.0] * num_not_run])
    return [replace(row, p_value=own) for row, own in zip(found, corrected, strict=False)]


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


def of_chain(records: Sequence[Mapping[str, Any]], arm: str, split: str) -> list[Mapping[str, Any]]:
    """Return the records of a chain for one of the splits, one for each seed."""
    return [one for one in records if one["arm"] == arm and one["split"] == split]


Floors = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Share of right answers of policies that learn nothing, by policy, split and family."""


def markdown(records: Sequence[Mapping[str, Any]], rows: Sequence[PairRow], floors: Floors) -> str:
    """Return all tables as Markdown.

    Args:
        records: Judged records of the chains.
        rows: Comparisons.
        floors: Policies that learn nothing, which are rows of the tables of scores. They give an
            answer without a step, so their process score is 0.
    """
    arms = list(dict.fromkeys(record["arm"] for record in records))
    parts = ["## Scores", "", _scores(records, arms, floors).markdown(), ""]
    parts += ["## Families", "", _families(records, arms, floors).markdown(), ""]
    parts += ["## Claims", "", *_claims(rows), ""]
    return "\n".join(parts)


def _scores(records: Sequence[Mapping[str, Any]], arms: Sequence[str], floors: Floors) -> TextTable:
    heads = (
        *("chain", "seeds", "answer %", "process %", "bits a symbol", "answer %, more operations"),
        *(
            "answer %, other family",
            "pass@1, 2, 4 ... %",
            "symbols written",
            "plain text, bits a byte",
        ),
    )
    rows: list[tuple[str, ...]] = []
    for name, shares in floors.items():
        inside, more_floor, other_floor = (
            _percents(shares.get(split, {}).values()) for split in SPLITS
        )
        rows.append((name, "-", inside, "0", "-", more_floor, other_floor, *["-"] * 3))
    for arm in arms:
        own, more, other = (of_chain(records, arm, split) for split in SPLITS)
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
    return ", ".join(f"{100 * pass_at_k(right, count, k):.1f}" for k in pass_counts(count))


def _percents(shares: Iterable[float]) -> str:
    """Return the mean of shares of equally many items; a dash for none."""
    known = list(shares)
    return f"{100 * float(np.mean(known)):.1f}" if known else "-"


def _families(
    records: Sequence[Mapping[str, Any]], arms: Sequence[str], floors: Floors
) -> TextTable:
    names = list(dict.fromkeys(name for one in records for name in one["families"]))
    rows = [
        (name, *(_floor(shares, family) for family in names)) for name, shares in floors.items()
    ]
    for arm in arms:
        own = [one for one in records if one["arm"] == arm and one["split"] in LIKE_CORPORA]
        cells = []
        for family in names:
            shares = [_family_mean(own, family, field) for field in ("right", "complete")]
            cells.append(", ".join(f"{100 * share:.0f}" for share in shares))
        rows.append((arm, *cells))
    return TextTable(("answer %, process %", *names), rows)


def _floor(shares: Mapping[str, Mapping[str, float]], family: str) -> str:
    """Return the scores of a policy for a family of the corpora, or else for another one."""
    own = [shares[split][family] for split in LIKE_CORPORA if family in shares.get(split, {})]
    return f"{100 * own[0]:.0f}, 0" if own else "-"


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
