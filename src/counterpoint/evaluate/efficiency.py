"""Learning efficiency: how many bytes and FLOPs a run takes to reach a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from counterpoint.errors import UserError

SMOOTHED = 3
"""Number of neighbouring points of a curve whose median is compared with the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """The first time at which a learning curve is at a loss.

    Attributes:
        loss: The loss, in the unit of the curve.
        step: Step at which it is reached; between two points it is interpolated.
        num_bytes: Bytes that were read until then, answers and everything else.
        flops: Training FLOPs until then.
    """

    loss: float
    step: float
    num_bytes: float
    flops: float


def reached(
    curve: Sequence[Mapping[str, float | None]],
    loss: float,
    *,
    bytes_per_step: float,
    flops_per_step: float,
) -> Reached | None:
    """Return when a learning curve first reaches a loss, or ``None`` if it never does.

    The loss of a point is that of one batch, so the median of three neighbours is taken.

    Args:
        curve: Points with ``step`` and ``loss``; those without a loss are left out.
        loss: The loss to be reached.
        bytes_per_step: Bytes that a step reads.
        flops_per_step: Training FLOPs of a step.

    Raises:
        UserError: The curve has no losses.
    """
    points = [
        (float(point["step"] or 0), float(point["loss"]))
        for point in curve
        if point["loss"] is not None
    ]
    if not points:
        raise UserError("A learning curve must have points with a loss: it has none.")
    values = _smooth([value for _, value in points])
    before: tuple[float, float] | None = None
    for (step, _), value in zip(points, values, strict=True):
        if value <= loss:
            if before is not None:
                share = (before[1] - loss) / (before[1] - value)
                step = before[0] + share * (step - before[0])
            return Reached(
                loss=loss,
                step=step,
                num_bytes=step * bytes_per_step,
                flops=step * flops_per_step,
            )
        before = (step, value)
    return None


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the median of every value and its neighbours; the ends have one neighbour less."""
    reach = SMOOTHED // 2
    return [median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
