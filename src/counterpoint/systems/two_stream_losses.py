"""Parts of the losses of a `TwoStream`, and the changes that its controls make to the whole."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from counterpoint.blocks.chunk import Chunks, ratio_loss
from counterpoint.blocks.loss_sums import LossSums, row_losses, stream_loss
from counterpoint.blocks.notes import Notes
from counterpoint.blocks.steering import Guidance
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.two_stream_config import WHOLE_TEXT, TwoStreamConfig
from counterpoint.systems.two_stream_state import LowerStates

ChangeText = Callable[[Int[Tensor, "B *T K"]], Int[Tensor, "B *T K"]]
"""Function from the text of a batch to the text that guides its rows."""


def loss_factors(config: TwoStreamConfig) -> dict[str, float]:
    """Return the weights of the whole's own losses in the training loss, by name."""
    factors = {
        "predict": config.predict_weight,
        "reconstruct": config.reconstruct_weight,
        "share": 0.0,
    }
    if config.learned_ends is not None:
        factors["ratio"] = config.learned_ends.loss_weight
    if config.text is not None:
        factors[WHOLE_TEXT] = config.text.loss_weight
    return factors


def led_text(
    notes: Int[Tensor, "B *T K"], keep: Bool[Tensor, "B 1"] | None, *, shuffled: bool
) -> Int[Tensor, "B *T K"]:
    """Return the text that guides each row: its own, or that of the next row if it is shuffled.

    Rows in which ``keep`` is False have no text, nor has a row alone whose text is shuffled.
    """
    if shuffled:
        notes = next_rows(notes) if len(notes) > 1 else torch.full_like(notes, UNSET_ID)
    return notes if keep is None else notes.masked_fill(~keep[..., None], UNSET_ID)


def text_loss(
    notes: Notes,
    hidden: Float[Tensor, "B T D"],
    batch: Batch,
    block_ticks: int,
    led_by: ChangeText,
) -> tuple[LossSums, Float[Tensor, "B T D"]]:
    """Return the loss of the text at the ticks where it may stand, and the part states after it.

    The loss is divided by the ticks, as that of the part: the loss of a tick is the sum of both.

    Args:
        notes: Module that reads and writes the text of a block.
        hidden: States of the part.
        batch: The batch; its stream `WHOLE_TEXT` holds the text.
        block_ticks: Ticks of a block: the text of a block stands at its last tick.
        led_by: Changes the text that guides the states after it.
    """
    due = slice(block_ticks - 1, None, block_ticks)
    targets = batch.targets[WHOLE_TEXT][:, due]
    elements = (batch.elements or batch.targets)[WHOLE_TEXT][:, due]
    loss = stream_loss(notes.scores(hidden[:, due], elements), targets)
    ticks = torch.full_like(loss.nats, float(hidden[..., 0].numel()))
    after = hidden.clone()
    after[:, due] = notes.follow(hidden[:, due], led_by(elements))
    return loss._replace(weight=ticks), after


def ratio_losses(ends: Chunks, ratio: float, batch: Batch, weight: Tensor) -> dict[str, LossSums]:
    """Return the loss that draws blocks to ``ratio`` ticks, and the logged share of block ends.

    Args:
        ends: Where the router has ended blocks.
        ratio: Wanted mean length of a block, in ticks.
        batch: The batch, which says how many ticks the rows have.
        weight: Sum by which the means divide; see `row_losses`.
    """
    losses, shares = ratio_loss(ends, batch.lengths, ratio)
    named = (("ratio", losses), ("share", shares))
    return {name: row_losses(values, batch, weight) for name, values in named}


def obeyed(guidance: Guidance, config: TwoStreamConfig) -> Guidance:
    """Return what the part reads of the plans: none of them if its whole is unread.

    The whole's own loss still sees the plans.
    """
    if config.whole_control != "unread":
        return guidance
    return guidance._replace(has_plan=torch.zeros_like(guidance.has_plan))


def next_rows(x: Shaped[Tensor, "B *_rest"]) -> Shaped[Tensor, "B *_rest"]:
    """Return for every row the next one; the last row gets the first, and a row alone zeros."""
    return _next(x) if len(x) > 1 else torch.zeros_like(x)


def in_next_blocks(lower: LowerStates) -> LowerStates:
    """Return each row with the blocks of the next one, in place of its own, and its ends.

    A tick may then read the blocks that the next row has finished at that tick, at the ticks where
    they ended, and no later one. The last row has those of the first. A row alone reads
    zeros in them; see `next_rows`.
    """
    cut = lower.cut
    finished, place = (_next(counts) for counts in (cut.grid.finished, cut.grid.place))
    cut = cut._replace(
        grid=cut.grid._replace(finished=finished, place=place),
        end_step=_next(cut.end_step),
        first_block=_next(cut.first_block),
        before=_next(cut.before),
        finished=_next(cut.finished),
    )
    ends = lower.ends
    if ends is not None:
        ends = ends._replace(confidence=_next(ends.confidence))
    return lower._replace(cut=cut, ends=ends)


def _next(x: Shaped[Tensor, "B *_rest"]) -> Shaped[Tensor, "B *_rest"]:
    return x.roll(-1, 0)
