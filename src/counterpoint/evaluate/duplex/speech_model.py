"""What a Moshi pays for rows of held-out dialogues, by stream."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from counterpoint.data.loader import Rows
from counterpoint.systems.contract import LossSums, System, add_losses

Progress = Callable[[int, int], None]
"""Called with the number of rows done and of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScore:
    """What a model paid for one row.

    Attributes:
        num_frames: Frames of the row that were to be predicted.
        losses: By predicted stream.
    """

    num_frames: int
    losses: Mapping[str, LossSums]

    @property
    def bits(self) -> float:
        """Bits of all predicted streams, unweighted."""
        return float(sum(loss.nats for loss in self.losses.values())) / math.log(2)


def score_rows(
    model: System, rows: Rows, max_rows: int = 0, on_progress: Progress | None = None
) -> list[RowScore]:
    """Score rows one by one, every document in them by itself.

    Precision is the caller's: wrap the call in `torch.autocast` to score as in training.

    Args:
        model: In evaluation mode.
        rows: What is scored.
        max_rows: Rows at equal distances that are scored; 0 scores all.
        on_progress: Called after each row.
    """
    device = next(model.parameters()).device
    indices = np.arange(len(rows))
    if 0 < max_rows < len(rows):
        indices = np.linspace(0, len(rows) - 1, max_rows).astype(np.int64)
    scores = []
    for index in indices:
        batch = rows.rows(np.array([index])).to(device)
        with torch.no_grad():
            losses = model.losses(batch)
        on_host = {
            name: LossSums(*(value.double().cpu() for value in loss))
            for name, loss in losses.items()
        }
        scores.append(RowScore(num_frames=batch.size, losses=on_host))
        if on_progress is not None:
            on_progress(len(scores), len(indices))
    return scores


def measures(model: System, scores: Sequence[RowScore]) -> dict[str, float]:
    """Bits a frame of all predicted streams, the training loss over all rows, and its terms."""
    loss = model.combine(add_losses(score.losses for score in scores))
    return {
        "bits_per_frame": sum(s.bits for s in scores) / sum(s.num_frames for s in scores),
        "loss": float(loss.total),
        **{name: float(value) for name, value in loss.terms.items()},
    }
