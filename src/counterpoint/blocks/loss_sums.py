"""Loss sums, which add up over rows, parts of a batch and processes, and losses of streams."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID


class LossSums(NamedTuple):
    """The loss of some targets as sums, which add up over rows, parts of a batch and processes.

    Attributes:
        num_ticks: Number of ticks with targets. In a stream with codebooks a tick counts as the
            share of its codebooks that carry loss.
        nats: Negative log likelihood, without weights.
        weighted_nats: Negative log likelihood, with the weights of the loss.
        weight: Number by which the weighted nats are divided.
    """

    num_ticks: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    weighted_nats: Float[Tensor, ""]
    weight: Float[Tensor, ""]


Losses = Mapping[str, LossSums]
"""Loss sums by name: of every predicted stream that has targets, and of auxiliary terms."""


def add_losses(losses: Iterable[Losses]) -> dict[str, LossSums]:
    """Return the sums over several batches, by name; a batch may lack some of the names."""
    added: dict[str, LossSums] = {}
    for one in losses:
        for name, sums in one.items():
            before = added.get(name)
            if before is not None:
                sums = LossSums(*(a + b for a, b in zip(before, sums, strict=True)))
            added[name] = sums
    return added


def stream_loss(
    logits: Float[Tensor, "*B V"],
    targets: Int[Tensor, "*B"],
    weight: Float[Tensor, "*B"] | None = None,
) -> LossSums:
    """Return the loss sums of one stream.

    Args:
        logits: Scores of every target.
        targets: Ids; `UNSET_ID` carries no loss.
        weight: Weight of each target. ``None`` gives each target the weight 1, but divides by
            the number of *all* positions: the mean over equal parts of a batch then equals the
            loss of the batch, even if the parts have different numbers of targets.
    """
    counted = targets != UNSET_ID
    depth = targets.shape[2] if targets.ndim == 3 else 1
    count = counted.sum() / depth
    if weight is None:
        nats = cross_entropy(logits, targets)
        return LossSums(count, nats, nats, torch.full_like(nats, float(targets.numel())))
    each = F.cross_entropy(
        logits.float().flatten(0, -2),
        targets.flatten(),
        ignore_index=UNSET_ID,
        reduction="none",
    ).view_as(targets)
    weight = counted * weight
    return LossSums(count, each.sum(), (each * weight).sum(), weight.sum())


def row_losses(values: Float[Tensor, " B"], batch: Batch, weight: Tensor) -> LossSums:
    """Return sums whose mean is the mean of a value over rows: each row counts its ticks.

    Args:
        values: Value of each row, such as a loss or a share.
        batch: The rows, which say how many ticks each has.
        weight: Sum by which the mean divides: that of the loss of a stream of the same batch.
    """
    num_ticks = batch.document_start.shape[1] if batch.lengths is None else batch.lengths
    nats = (values * num_ticks).sum()
    return LossSums(weight, nats, nats, weight)


def cross_entropy(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
    """Return the summed nats of the targets, in float32; `UNSET_ID` carries no loss."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=UNSET_ID, reduction="sum"
    )
