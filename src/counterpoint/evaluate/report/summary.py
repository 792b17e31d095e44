"""The one table of a study: arms side by side, with intervals and an honest sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoint.evaluate.results import Evaluation
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.whole import WholeUse
from counterpoint.packages import optional_module

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One trained system of a study.

    Attributes:
        name: Of its run.
        run: JSON form of its run.
        metrics: Lines of its ``metrics.jsonl``.
        counters: What training took: step, size in bytes, flops, seconds.
        evaluation: What was measured.
    """

    name: str
    run: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    counters: Mapping[str, float]
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """A row of the table.

    Attributes:
        name: Of the arm.
        num_parameters: Trainable numbers.
        training_flops: Of the whole run.
        training_bytes: Bytes of text learned from, repetitions counted.
        training_seconds: Time in training steps.
        bits_per_byte: On the held-out text, over units.
        difference_percent: To the first arm, on the same units; ``None`` for the first.
        swap_delta: Bits/byte lost under the whole of another document.
        none_delta: Bits/byte lost without any whole.
        null_share: Attention on the null key.
        effective_rank: Of the whole states.
    """

    name: str
    num_parameters: int
    training_flops: float
    training_bytes: int
    training_seconds: float
    bits_per_byte: Interval
    difference_percent: Interval | None = None
    swap_delta: Interval | None = None
    none_delta: Interval | None = None
    null_share: float | None = None
    effective_rank: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a study found.

    Attributes:
        name: Of the study.
        rows: One an arm.
        verdict: In one or two sentences.
        held_out: What was scored, in words.
        about: Command, versions, machine, durations.
    """

    name: str
    rows: tuple[ArmSummary, ...]
    verdict: str
    held_out: str
    about: Mapping[str, Any] = field(default_factory=dict)


def summarize(name: str, arms: Sequence[Arm], about: Mapping[str, Any]) -> Summary:
    """Intervals and differences of all arms; the first arm is what the others are compared with.

    Raises:
        ValueError: The arms were not scored on the same units.
    """
    first = arms[0].evaluation
    rows = []
    for arm in arms:
        found = arm.evaluation
        if (found.titles, found.num_bytes) != (first.titles, first.num_bytes):
            raise ValueError(
                f"All arms must be scored on the same units: {arm.name!r} and {arms[0].name!r} "
                "were not. Delete their evaluation.json and run the study again."
            )
        num_bytes = np.array(found.num_bytes, float)
        bits = np.array(found.bits)
        difference = None
        if arm is not arms[0]:
            difference = bootstrap_ratio(bits, np.array(first.bits)).map(100, -100)
        rows.append(
            ArmSummary(
                name=arm.name,
                num_parameters=found.num_parameters,
                training_flops=float(arm.counters["flops"]),
                training_bytes=int(arm.counters["size"]),
                training_seconds=float(arm.counters["seconds"]),
                bits_per_byte=bootstrap_ratio(bits, num_bytes),
                difference_percent=difference,
                **_use_of_whole(found.whole),
            )
        )
    held_out = (
        f"{sum(first.num_bytes):,} bytes in {len(first.titles)} units of "
        f"{', '.join(dict.fromkeys(first.titles))}"
    )
    return Summary(
        name=name, rows=tuple(rows), verdict=_verdict(rows), held_out=held_out, about=about
    )


def _use_of_whole(whole: WholeUse | None) -> dict[str, Any]:
    if whole is None:
        return {}
    num_bytes = np.array(whole.num_bytes, float)
    own = np.array(whole.own_bits)
    none = np.array(whole.none_bits)
    return {
        "swap_delta": bootstrap_ratio(np.array(whole.other_bits) - own, num_bytes),
        "none_delta": bootstrap_ratio(none - own, num_bytes) if len(none) else None,
        "null_share": whole.null_share,
        "effective_rank": whole.effective_rank,
    }


def _verdict(rows: Sequence[ArmSummary]) -> str:
    """What the intervals allow to say, whoever wins."""
    sentences = []
    for row in rows[1:]:
        change = row.difference_percent
        if change is None or math.isnan(change.low):
            continue
        span = f"95 % interval {change.low:+.1f} to {change.high:+.1f} %"
        if change.high < 0:
            what = f"needs {-change.value:.1f} % fewer bits a byte than {rows[0].name}"
        elif change.low > 0:
            what = f"loses: it needs {change.value:.1f} % more bits a byte than {rows[0].name}"
        else:
            what = f"and {rows[0].name} cannot be told apart ({change.value:+.1f} %)"
        sentences.append(f"{row.name} {what} {_budget(row, rows[0])} ({span}).")
    for row in rows:
        if row.swap_delta is not None:
            used = (
                "is used"
                if row.swap_delta.low > 0
                else "is not shown to be used: the interval holds 0"
            )
            sentences.append(
                f"The whole of {row.name} {used}: another document's costs "
                f"{row.swap_delta.value:+.3f} bits a byte "
                f"({row.swap_delta.low:+.3f} to {row.swap_delta.high:+.3f})."
            )
    sentences.append("One training seed: the intervals cover the choice of text only.")
    return " ".join(sentences)


def _budget(row: ArmSummary, first: ArmSummary) -> str:
    """What the two arms share, in words."""
    excess = row.training_flops / first.training_flops - 1
    if abs(excess) <= 0.02:
        return "at equal training FLOPs and data"
    return f"on equal data with {excess:+.0%} training FLOPs"


def columns(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and cells of the table as texts."""
    heads = (
        "arm",
        "parameters",
        "training FLOPs",
        "training bytes",
        "seconds",
        "held-out bits/byte",
        f"difference to {summary.rows[0].name}",
        "swap-Δ bits/byte",
    )
    cells: list[tuple[str, ...]] = [
        (
            row.name,
            f"{row.num_parameters / 1e6:.2f} M",
            f"{row.training_flops:.3g}",
            f"{row.training_bytes / 1e6:.2f} M",
            f"{row.training_seconds:.0f}",
            spell(row.bits_per_byte, "{:.3f}"),
            spell(row.difference_percent, "{:+.1f}", " %"),
            spell(row.swap_delta, "{:+.3f}"),
        )
        for row in summary.rows
    ]
    return heads, cells


def spell(interval: Interval | None, form: str, unit: str = "") -> str:
    """``value unit [low, high]``."""
    if interval is None:
        return "–"
    value, low, high = (
        form.format(x).replace("-", "−") for x in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit} [{low}, {high}]"


def rich_table(summary: Summary) -> "Table":
    """The table for a terminal.

    Raises:
        UserError: The package ``rich`` is missing.
    """
    heads, cells = columns(summary)
    table: Table = optional_module("rich.table").Table(
        title=f"{summary.name}: held-out text is {summary.held_out}"
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "arm" else "right")
    for row in cells:
        table.add_row(*row)
    return table
