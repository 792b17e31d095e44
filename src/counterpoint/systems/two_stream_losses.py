"""Parts of the losses of a `TwoStream`, and what its controls take from the whole."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from counterpoint.blocks.block_grid import BlockGrid
from counterpoint.blocks.chunk import Chunks, ratio_loss
from counterpoint.blocks.notes import Notes
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.contract import LossSums, stream_loss
from counterpoint.systems.two_stream_config import WHOLE_TEXT

ChangeText = Callable[[Int[Tensor, "B T K"]], Int[Tensor, "B T K"]]
"""Gives for the text of a batch the one that its rows are led by."""


def led_text(
    notes: Int[Tensor, "B T K"], keep: Bool[Tensor, "B 1"] | None, *, shuffled: bool
) -> Int[Tensor, "B T K"]:
    """The text that each row is led by: its own, or that of the next row if it is shuffled.

    Rows that do not keep the whole have none.
    """
    if shuffled:
        notes = next_rows(notes)
    return notes if keep is None else notes.masked_fill(~keep[..., None], UNSET_ID)


def text_loss(
    notes: Notes,
    hidden: Float[Tensor, "B T D"],
    batch: Batch,
    block_ticks: int,
    led_by: ChangeText,
) -> tuple[LossSums, Float[Tensor, "B T D"]]:
    """The loss of the text where it may stand, and the states of the part that follow it.

    It is divided by the ticks, as that of the part: what a tick costs is the sum of both.
    """
    due = slice(block_ticks - 1, None, block_ticks)
    targets = batch.targets[WHOLE_TEXT][:, due]
    elements = (batch.elements or batch.targets)[WHOLE_TEXT][:, due]
    loss = stream_loss(notes.scores(hidden[:, due], elements), targets)
    ticks = torch.full_like(loss.nats, float(hidden[..., 0].numel()))
    after = hidden.clone()
    after[:, due] = notes.follow(hidden[:, due], led_by(elements))
    return loss._replace(weight=ticks), after


def ids_of_blocks(ids: Int[Tensor, "B T"], grid: BlockGrid) -> Int[Tensor, "B W R"]:
    """The ids of each block; `UNSET_ID` before its first."""
    written = ids.gather(1, grid.step.flatten(1).clamp(min=0)).view(grid.step.shape)
    return written.masked_fill(~grid.real, UNSET_ID)


def ratio_losses(ends: Chunks, ratio: float, weight: Tensor) -> dict[str, LossSums]:
    """What draws blocks towards ``ratio`` ticks, and the share of ticks that end one, to log."""
    losses, shares = ratio_loss(ends, None, ratio)
    named = (("ratio", losses), ("share", shares))
    sums = {name: values.mean() * weight for name, values in named}
    return {name: LossSums(weight, total, total, weight) for name, total in sums.items()}


def next_rows(x: Shaped[Tensor, "B *_rest"]) -> Shaped[Tensor, "B *_rest"]:
    """For every row what stands in the next one: the last has the first one's, one alone zeros."""
    return x.roll(-1, 0) if len(x) > 1 else torch.zeros_like(x)
