"""The cost of held-out units of any data: sums of losses by stream, unit by unit.

Sums add up (`counterpoint.blocks.loss_sums.LossSums`), so bits a byte of text, bits a frame of
speech and nats a frame of each stream come from the same numbers, over some units or over all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.blocks.loss_sums import LossSums, add_losses
from counterpoint.data.source import HeldOutUnits
from counterpoint.streams.batch import Batch, ContentUnit
from counterpoint.systems.contract import System

UnitProgress = Callable[[int, int], None]
"""A function called with the numbers of units done and of all units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitScore:
    """The cost of one unit for a system.

    Attributes:
        title: Source of the unit.
        size: Size of the unit, in ``unit``.
        unit: Bytes of text, or frames of speech.
        nats: Cost of all predicted streams, without weights.
        losses: Sums by predicted stream and auxiliary term; float64, on the CPU.
    """

    title: str
    size: int
    unit: ContentUnit
    nats: float
    losses: Mapping[str, LossSums]

    @property
    def bits(self) -> float:
        """Bits of all predicted streams, without weights."""
        return self.nats / math.log(2)


def score_units(
    system: System,
    units: HeldOutUnits,
    max_units: int = 0,
    on_progress: UnitProgress | None = None,
) -> list[UnitScore]:
    """Score units one by one; every document in them is scored on its own.

    The caller sets the precision: wrap the call in `torch.autocast` to score as in training.

    Args:
        system: The system in evaluation mode.
        units: Units to score.
        max_units: Number of units that are scored, at equal distances; 0 scores all.
        on_progress: Called after each unit.
    """
    device = next(system.parameters()).device
    scores = list[UnitScore]()
    places = spread_places(len(units), max_units)
    for place in places.tolist():
        batches = list[Batch]()
        losses = list[dict[str, LossSums]]()
        for batch in units.batches(place):
            with torch.no_grad():
                found = system.losses(batch.to(device))
            batches.append(batch)
            losses.append(
                {name: LossSums(*(x.double().cpu() for x in sums)) for name, sums in found.items()}
            )
        added = add_losses(losses)
        scores.append(
            UnitScore(
                title=units.title(place),
                size=sum(batch.size for batch in batches),
                unit=batches[0].unit,
                nats=float(system.combine(added).nats),
                losses=added,
            )
        )
        if on_progress is not None:
            on_progress(len(scores), len(places))
    return scores


def spread_places(count: int, wanted: int) -> Int[np.ndarray, " _n"]:
    """Return ``wanted`` of ``count`` places at equal distances; all if it is 0 or too large."""
    if not 0 < wanted < count:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted).astype(np.int64)


def measures(system: System, scores: Sequence[UnitScore]) -> dict[str, float]:
    """Return bits a unit of all predicted streams, and the loss and its terms if it has any.

    The loss is that of all units together, not the mean of their losses.
    """
    bits = sum(score.bits for score in scores) / sum(score.size for score in scores)
    found = {f"bits_per_{scores[0].unit}": bits}
    loss = system.combine(add_losses([score.losses for score in scores]))
    if loss.terms:
        found["loss"] = float(loss.total)
        found |= {name: float(value) for name, value in loss.terms.items()}
    return found


def evaluator(
    units: HeldOutUnits | None, max_units: int
) -> Callable[[Any], dict[str, float]] | None:
    """Return a function that measures a system on some of the units; ``None`` without units."""
    if units is None or not len(units):
        return None

    def evaluate(system: Any) -> dict[str, float]:
        return measures(system, score_units(system, units, max_units))

    return evaluate
