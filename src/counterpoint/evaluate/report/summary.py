"""The table of a study: all arms with intervals, and a sentence that the intervals allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoint.errors import UserError
from counterpoint.evaluate.report.arm_summary import ArmSummary
from counterpoint.evaluate.report.verdict import is_enough, scale, verdict
from counterpoint.evaluate.results import Evaluation
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.streams.batch import ContentUnit

if TYPE_CHECKING:
    from rich.table import Table

_MAX_TITLES = 20  # there may be thousands of recordings


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One trained system of a study.

    Attributes:
        name: The name of its run.
        run: JSON form of its run.
        metrics: Lines of its ``metrics.jsonl``.
        counters: Totals of the training: step, size in bytes, flops, seconds.
        evaluation: Its measurements.
        others: Measurements of its other training seeds; `run`, `metrics` and `counters` are those
            of the first seed.
    """

    name: str
    run: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    counters: Mapping[str, float]
    evaluation: Evaluation
    others: tuple[Evaluation, ...] = ()

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The measurements, one a training seed."""
        return (self.evaluation, *self.others)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """The difference between two arms on the same units.

    Attributes:
        arm: The arm's name.
        other: Name of the arm that it is compared with.
        difference_percent: Percent more bits that it needs.
    """

    arm: str
    other: str
    difference_percent: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The findings of a study.

    Attributes:
        name: The study's name.
        unit: Unit of sizes: bytes of text, or frames of speech.
        rows: One summary an arm.
        verdict: Conclusion that the intervals allow, in one or two sentences.
        held_out: Held-out data, in words.
        about: Command, versions, machine, durations.
        contrasts: Pairs of arms that the study declares, in addition to those with the first arm.
    """

    name: str
    unit: ContentUnit
    rows: tuple[ArmSummary, ...]
    verdict: str
    held_out: str
    about: Mapping[str, Any] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()


def summarize(name: str, arms: Sequence[Arm], about: Mapping[str, Any]) -> Summary:
    """Compute intervals, differences of all arms to the first, and the declared contrasts.

    Args:
        name: The study's name.
        arms: Its arms, in their order.
        about: Facts of the study folder; "contrasts" are pairs of names.

    Raises:
        UserError: The arms were not scored on the same units.
    """
    first = arms[0].evaluation
    rows = []
    for arm in arms:
        _check_comparable(arm, arms[0])
        bits = np.array([found.bits for found in arm.evaluations])
        sizes = np.array([found.sizes for found in arm.evaluations], float)
        difference = None if arm is arms[0] else _difference(arm, arms[0])
        rows.append(
            ArmSummary(
                name=arm.name,
                num_parameters=arm.evaluation.num_parameters,
                training_flops=float(arm.counters["flops"]),
                optimizer_share=about.get("optimizer_shares", {}).get(arm.name, 0.0),
                training_size=int(arm.counters["size"]),
                training_seconds=float(arm.counters["seconds"]),
                bits_per_unit=bootstrap_ratio(bits, sizes),
                difference_percent=difference,
                streams=by_stream(arm.evaluations),
                **use_of_whole(arm.evaluations),
            )
        )
    by_name = {arm.name: arm for arm in arms}
    contrasts = tuple(
        Contrast(arm=a, other=b, difference_percent=_difference(by_name[a], by_name[b]))
        for a, b in about.get("contrasts", ())
    )
    titles = [*dict.fromkeys(title or "documents without a title" for title in first.titles)]
    named = titles if len(titles) <= _MAX_TITLES else [*titles[:_MAX_TITLES], "others"]
    held_out = (
        f"{sum(first.sizes):,} {first.unit}s in {len(first.titles)} units of {', '.join(named)}"
    )
    steps = int(arms[0].counters["step"])
    part_of = scale(about, steps)
    row_of = {row.name: row for row in rows}
    pairs = [(row, rows[0], row.difference_percent) for row in rows[1:] if row.difference_percent]
    pairs += [(row_of[one.arm], row_of[one.other], one.difference_percent) for one in contrasts]
    found = ""
    if is_enough(about, steps):
        found = verdict(rows, pairs, first.unit, len(arms[0].evaluations))
    return Summary(
        name=name,
        unit=first.unit,
        rows=tuple(rows),
        verdict=" ".join(part for part in (part_of, found) if part),
        held_out=held_out,
        about=about,
        contrasts=contrasts,
    )


def _difference(arm: Arm, other: Arm) -> Interval:
    """Return by how many percent an arm needs more bits than another one, on the same units."""
    own, control = (np.array([e.bits for e in one.evaluations]) for one in (arm, other))
    return bootstrap_ratio(own, control).map(100, -100)


def _check_comparable(arm: Arm, first: Arm) -> None:
    expected = first.evaluation
    for found in arm.evaluations:
        if (found.titles, found.sizes) != (expected.titles, expected.sizes):
            raise UserError(
                f"All arms must be scored on the same units: {arm.name!r} and {first.name!r} "
                "were not. Delete their evaluation.json and run the study again."
            )
    if len(arm.evaluations) != len(first.evaluations):
        raise UserError(
            f"All arms must be trained with equally many seeds: {arm.name!r} has "
            f"{len(arm.evaluations)} and {first.name!r} {len(first.evaluations)}. Run the study "
            "again."
        )


def by_stream(evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """Return the nats a frame of each stream, over units and seeds."""
    costs = {
        name: [found.streams[name] for found in evaluations] for name in evaluations[0].streams
    }
    return {
        name: bootstrap_ratio(
            np.array([one.nats for one in own]), np.array([one.num_ticks for one in own])
        )
        for name, own in costs.items()
    }


def use_of_whole(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return how the whole is used, over units and seeds; nothing if it was not measured."""
    wholes = [found.whole for found in evaluations if found.whole is not None]
    if not wholes:
        return {}
    num_bytes = np.array([whole.num_bytes for whole in wholes], float)
    own = np.array([whole.own_bits for whole in wholes])
    other = np.array([whole.other_bits for whole in wholes])
    none = np.array([whole.none_bits for whole in wholes])
    return {
        "swap_delta": bootstrap_ratio(other - own, num_bytes),
        "none_delta": bootstrap_ratio(none - own, num_bytes) if none.size else None,
        "null_share": float(np.mean([whole.null_share for whole in wholes])),
        "effective_rank": float(np.mean([whole.effective_rank for whole in wholes])),
    }


def columns(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and cells of the table as texts."""
    counted = any(row.optimizer_share for row in summary.rows)
    heads: tuple[str, ...] = (
        "arm",
        "parameters",
        f"training FLOPs{' (with the optimiser)' if counted else ''}",
        f"training {summary.unit}s",
        "seconds",
        f"held-out bits/{summary.unit}",
        f"difference to {summary.rows[0].name}",
    )
    cells: list[tuple[str, ...]] = [
        (
            row.name,
            f"{row.num_parameters / 1e6:.2f} M",
            _flops(row.training_flops, row.optimizer_share),
            f"{row.training_size / 1e6:.2f} M",
            f"{row.training_seconds:.0f}",
            spell(row.bits_per_unit, "{:.3f}"),
            spell(row.difference_percent, "{:+.1f}", " %"),
        )
        for row in summary.rows
    ]
    if summary.unit == "byte":
        heads += ("swap-Δ bits/byte",)
        cells = [
            (*cell, spell(row.swap_delta, "{:+.3f}"))
            for cell, row in zip(cells, summary.rows, strict=True)
        ]
    return heads, cells


def _flops(model: float, share: float) -> str:
    """Return the FLOPs of the model, and with those of the optimiser's products if it has any."""
    return f"{model:.3g}" + (f" ({model * (1 + share):.3g})" if share else "")


def spell(interval: Interval | None, form: str, unit: str = "") -> str:
    """Return ``value unit [low, high]``, or a dash for ``None``.

    Args:
        interval: The number and its interval.
        form: Format of each number, such as "{:.3f}".
        unit: What stands after the value, with a space before it if there is one.
    """
    if interval is None:
        return "–"
    value, low, high = (
        form.format(x).replace("-", "−") for x in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit} [{low}, {high}]"


def rich_table(summary: Summary) -> "Table":
    """Return the table for a terminal."""
    from rich.table import Table

    heads, cells = columns(summary)
    table = Table(title=f"{summary.name}: held out are {summary.held_out}")
    for head in heads:
        table.add_column(head, justify="left" if head == "arm" else "right")
    for row in cells:
        table.add_row(*row)
    return table
