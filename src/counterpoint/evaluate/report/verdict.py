"""The conclusions that the intervals of a study allow, whichever arm wins.

A difference counts from a smallest size on, which is declared here: with enough text an interval
excludes zero for differences that do not matter, and after a few steps every difference is small.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.evaluate.report.arm_summary import ArmSummary
from counterpoint.evaluate.statistics import Interval
from counterpoint.evaluate.whole import SMALLEST_SWAP_DELTA
from counterpoint.progress import spell_minutes
from counterpoint.streams.batch import ContentUnit

SMALLEST_DIFFERENCE = 0.5
"""Percent of bits a unit by which arms must differ; training seeds alone differ by 0.2 %."""


LEAST_SHARE = 0.05
"""Share of a recipe's steps that must be taken before its arms are compared."""


def verdict(
    rows: Sequence[ArmSummary],
    pairs: Sequence[tuple[ArmSummary, ArmSummary, Interval]],
    unit: ContentUnit,
    num_seeds: int,
) -> str:
    """Return sentences that compare arms and say whether wholes are used.

    Args:
        rows: All arms.
        pairs: Tuples of an arm, the arm it is compared with, and the difference in percent.
        unit: Unit of the bits.
        num_seeds: Number of training seeds of every arm.
    """
    sentences = [
        f"{row.name} {_difference(change, unit, other.name)} {_budget(row, other)} "
        f"(95 % interval {change.low:+.1f} to {change.high:+.1f} %)."
        for row, other, change in pairs
        if not math.isnan(change.low)
    ]
    sentences += [use_sentence(row.name, row.swap_delta) for row in rows if row.swap_delta]
    return " ".join([*sentences, _covered(unit, num_seeds)])


def _covered(unit: ContentUnit, num_seeds: int) -> str:
    """Return a sentence that says what the intervals cover."""
    noun = "text" if unit == "byte" else "recordings"
    if num_seeds == 1:
        return f"One training seed: the intervals cover the choice of {noun} only."
    return f"{num_seeds} training seeds: the intervals cover them and the choice of {noun}."


def _difference(change: Interval, unit: ContentUnit, first: str) -> str:
    """Return in words how many more or fewer bits an arm needs than the first."""
    least = SMALLEST_DIFFERENCE
    if change.high <= -least:
        return f"needs {-change.value:.1f} % fewer bits a {unit} than {first}"
    if change.low >= least:
        return f"loses: it needs {change.value:.1f} % more bits a {unit} than {first}"
    if -least < change.low and change.high < least:
        return f"and {first} are equal within {least} % ({change.value:+.1f} %)"
    return f"and {first} cannot be told apart by {least} % ({change.value:+.1f} %)"


def use_sentence(name: str, swap_delta: Interval) -> str:
    """Return a sentence that says whether the whole of a model is used, and by how much.

    Args:
        name: Name of the model.
        swap_delta: Bits a byte that the whole of another document costs.
    """
    return (
        f"The whole of {name} {use_in_words(swap_delta)}: that of another document costs "
        f"{swap_delta.value:+.3f} bits a byte ({swap_delta.low:+.3f} to {swap_delta.high:+.3f})."
    )


def use_in_words(swap_delta: Interval) -> str:
    """Return in words whether a whole is used, given the cost of another document's whole."""
    if swap_delta.low >= SMALLEST_SWAP_DELTA:
        return "is used"
    if swap_delta.high < SMALLEST_SWAP_DELTA:
        return f"is not used, by the {SMALLEST_SWAP_DELTA} bits a byte that count"
    return f"is not shown to be used, by the {SMALLEST_SWAP_DELTA} bits a byte that count"


def _budget(row: ArmSummary, first: ArmSummary) -> str:
    """Return in words what budget the two arms share."""
    excess = row.training_flops / first.training_flops - 1
    with_optimizer = (1 + excess) * (1 + row.optimizer_share) / (1 + first.optimizer_share) - 1
    also = ""
    if abs(with_optimizer - excess) > 0.02:
        also = f" ({with_optimizer:+.0%} with the optimiser's own products)"
    if abs(excess) <= 0.02:
        return f"at equal training FLOPs{also} and data"
    return f"on equal data with {excess:+.0%} training FLOPs{also}"


def is_enough(about: Mapping[str, Any], steps: int) -> bool:
    """Return whether the steps taken allow a comparison; without a time budget they do.

    Args:
        about: Facts of the study; see `counterpoint.recipes.study.run_study`.
        steps: Number of steps taken.
    """
    budget = about.get("budget")
    return not budget or steps >= LEAST_SHARE * max(budget["reference_steps"].values())


def scale(about: Mapping[str, Any], steps: int) -> str:
    """Return how much of the recipe was run under a time budget; nothing if all of it was run."""
    budget = about.get("budget")
    if not budget:
        return ""
    reference = max(budget["reference_steps"].values())
    parts = []
    if steps < reference:
        parts.append(
            f"{steps:,} of its {reference:,} steps ({100 * steps / reference:.0f} %) were taken"
        )
    if budget["measured"] < 1:
        parts.append(f"{100 * budget['measured']:.0f} % of its held-out units were scored")
    if not parts:
        return ""
    text = (
        f"This is the part of the recipe that fits about {spell_minutes(budget['minutes'])} here: "
        f"{' and '.join(parts)}."
    )
    if is_enough(about, steps):
        return f"{text} The whole recipe may end otherwise."
    return (
        f"{text} That is too little to compare anything. Run it with more minutes in another "
        "folder."
    )
