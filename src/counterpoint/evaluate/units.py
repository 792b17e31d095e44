"""What a system pays for held-out units of any data: sums of losses by stream, unit by unit.

Sums add up (`counterpoint.systems.contract.LossSums`), so that bits a byte of text, bits a frame of
speech and nats a frame of each stream are made of the same numbers, over some units or over all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.data.source import HeldOutUnits
from counterpoint.streams.batch import Batch, ContentUnit
from counterpoint.systems.contract import LossSums, System, add_losses

UnitProgress = Callable[[int, int], None]
"""Called with the number of units done and of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitScore:
    """What a system paid for one unit.

    Attributes:
        title: Where the unit comes from.
        size: How much it is, in ``unit``.
        unit: Bytes of text, or frames of speech.
        nats: Cost of all predicted streams, unweighted.
        losses: Sums by predicted stream and auxiliary term; float64, on the CPU.
    """

    title: str
    size: int
    unit: ContentUnit
    nats: float
    losses: Mapping[str, LossSums]

    @property
    def bits(self) -> float:
        """Bits of all predicted streams, unweighted."""
        return self.nats / math.log(2)


def score_units(
    system: System,
    units: HeldOutUnits,
    max_units: int = 0,
    on_progress: UnitProgress | None = None,
) -> list[UnitScore]:
    """Score units one by one, every document in them by itself.

    Precision is the caller's: wrap the call in `torch.autocast` to score as in training.

    Args:
        system: In evaluation mode.
        units: What is scored.
        max_units: Units at equal distances that are scored; 0 scores all.
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
    """``wanted`` of ``count`` places at equal distances, all when 0 or more are wanted."""
    if not 0 < wanted < count:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted).astype(np.int64)


def measures(system: System, scores: Sequence[UnitScore]) -> dict[str, float]:
    """Bits a unit of all predicted streams; where the loss has terms, also it and them.

    The loss is that of all units together, not a mean of theirs.
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
    """What measures a system in training, on some of the units; ``None`` where there are none."""
    if units is None or not len(units):
        return None

    def evaluate(system: Any) -> dict[str, float]:
        return measures(system, score_units(system, units, max_units))

    return evaluate
