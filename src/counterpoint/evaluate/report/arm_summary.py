"""The summary of one arm of a study, which is a row of its table."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from counterpoint.evaluate.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """A row of the table.

    Attributes:
        name: The arm's name.
        num_parameters: Number of trainable parameters.
        training_flops: FLOPs of the model in the whole run.
        training_size: Bytes or frames learned from, counting repetitions.
        training_seconds: Time in training steps.
        bits_per_unit: Bits a byte or a frame on held-out units.
        difference_percent: Difference to the first arm on the same units; ``None`` for the first.
        streams: Nats a frame of each predicted stream, if several are predicted.
        swap_delta: Bits a byte lost under the whole of another document.
        none_delta: Bits a byte lost without any whole.
        null_share: Attention on the null key.
        effective_rank: Effective rank of the whole states.
        optimizer_share: What the optimiser's own products add to the training FLOPs, as a share.
    """

    name: str
    num_parameters: int
    training_flops: float
    training_size: int
    training_seconds: float
    bits_per_unit: Interval
    difference_percent: Interval | None = None
    streams: Mapping[str, Interval] = field(default_factory=dict)
    swap_delta: Interval | None = None
    none_delta: Interval | None = None
    null_share: float | None = None
    effective_rank: float | None = None
    optimizer_share: float = 0.0
