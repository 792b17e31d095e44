"""The tables of the study of front-loading, from the records of its chains."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from counterpoint.data.tasks.verify import pass_at_k
from counterpoint.evaluate.report.grid_rows import SIGNIFICANT, ScoreCounts
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio, holm

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
    metrics: Sequence[str],
    splits: Sequence[str],
) -> list[PairRow]:
    """Return the comparisons for which both chains have records.

    Args:
        records: Records of the chains.
        pairs: Claim, chain that is claimed to be better, and other chain.
        metrics: Metrics that are compared.
        splits: What was scored.
    """
    found = []
    for claim, better, other in pairs:
        for split in splits:
            ours, theirs = (_of(records, arm, split) for arm in (better, other))
            for metric in metrics if ours and theirs else ():
                difference, p_value = bootstrap_difference(
                    counts(ours, metric), counts(theirs, metric), RESAMPLES
                )
                found.append((claim, better, other, split, metric, difference, p_value))
    corrected = holm([row[-1] for row in found])
    return [
        PairRow(
            claim=claim,
            better=better,
            other=other,
            split=split,
            metric=metric,
            difference=difference,
            p_value=p_value,
            num_seeds=min(len(_of(records, arm, split)) for arm in (better, other)),
        )
        for (claim, better, other, split, metric, difference, _), p_value in zip(
            found, corrected, strict=True
        )
    ]


def counts(records: Sequence[Mapping[str, Any]], metric: str) -> ScoreCounts:
    """Return numerators and denominators of a metric, for each seed and item."""
    field = {"answer": "right", "process": "sound", "bits": "bits"}[metric]
    above = np.array([record[field] for record in records], float)
    if metric == "bits":
        return above, np.array([record["symbols"] for record in records], float)
    return above, np.ones_like(above)


def score(records: Sequence[Mapping[str, Any]], metric: str) -> Interval:
    """Return a metric over seeds and items."""
    return bootstrap_ratio(*counts(records, metric), RESAMPLES)


def _of(records: Sequence[Mapping[str, Any]], arm: str, split: str) -> list[Mapping[str, Any]]:
    return [one for one in records if one["arm"] == arm and one["split"] == split]


def markdown(
    records: Sequence[Mapping[str, Any]], rows: Sequence[PairRow], splits: Sequence[str]
) -> str:
    """Return all tables as Markdown."""
    arms = list(dict.fromkeys(record["arm"] for record in records))
    parts = []
    for split in splits:
        parts += [f"### {split}", "", *_scores(records, arms, split), ""]
    parts += ["### Families", "", *_families(records, arms, splits), ""]
    parts += ["### Claims", "", *_claims(rows), ""]
    parts += ["### Ledger", "", *_ledgers(records, arms), ""]
    return "\n".join(parts)


def _scores(records: Sequence[Mapping[str, Any]], arms: Sequence[str], split: str) -> list[str]:
    lines = [
        "| chain | seeds | answer % | process % | bits a symbol | pass@1, all % | length | plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        own = _of(records, arm, split)
        if own:
            answer, process, bits = (score(own, name) for name in ("answer", "process", "bits"))
            lengths = np.mean([length for one in own for length in one["lengths"]])
            plain = np.mean([one["base_bits"] for one in own])
            lines.append(
                f"| {arm} | {len(own)} | {_percent(answer)} | {_percent(process)} | "
                f"{bits.value:.3f} [{bits.low:.3f}, {bits.high:.3f}] | {_passes(own)} | "
                f"{lengths:.0f} | {plain:.2f} |"
            )
    return lines


def _passes(records: Sequence[Mapping[str, Any]]) -> str:
    count = records[0]["num_samples"]
    if not count:
        return "-"
    right = [number for one in records for number in one["sampled_right"]]
    return ", ".join(f"{100 * pass_at_k(right, count, k):.1f}" for k in (1, count))


def _families(
    records: Sequence[Mapping[str, Any]], arms: Sequence[str], splits: Sequence[str]
) -> list[str]:
    columns = [
        (split, family)
        for split in splits
        for family in dict.fromkeys(
            name for one in records if one["split"] == split for name in one["families"]
        )
    ]
    heads = [f"{family}, {split}" for split, family in columns]
    lines = [f"| answer %, process % | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in arms:
        cells = []
        for split, family in columns:
            own = _of(records, arm, split)
            shares = [_family_mean(own, family, field) for field in ("right", "sound")]
            cells.append(", ".join(f"{100 * share:.0f}" for share in shares))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


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


def _ledgers(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """Return what the last phases of each chain have read, with the first seed."""
    lines = [
        "| chain | phase | source | tokens | with loss | items | new | FLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        record = next(one for one in records if one["arm"] == arm)
        for entry in json.loads(record["ledger"]):
            lines.append(
                f"| {arm} | {entry['phase']} | {entry['source']} | {entry['tokens']:,} | "
                f"{entry['targets']:,} | {entry['items']:,} | {entry['new_items']:,} | "
                f"{entry['flops']:.3g} |"
            )
    return lines


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
