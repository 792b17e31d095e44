"""Answers of all lanes of a stack at once; see `counterpoint.evaluate.tasks.answer`."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.recorded import padded
from counterpoint.data.tasks.items import Item, Replies
from counterpoint.data.tasks.source import item_batch, label_stream
from counterpoint.evaluate.tasks import GivenPart, replies, respond, resting_streams
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.contract import System, map_state
from counterpoint.train.lane_batches import StackedBatch
from counterpoint.train.stacked import Stack

BATCH_TICKS = 400_000
"""Number of ticks, over all lanes, that are answered together."""


def respond_lanes(stack: Stack, items: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return what every lane replies to items of its own, as `counterpoint.evaluate.tasks.respond`.

    Lanes answer together. Texts whose costs are asked are read by one lane after another, and a
    lane alone answers as its system does, which skips what is not due (a stack computes it).

    Args:
        stack: Stack of systems that read and write bytes.
        items: The items of each lane; either all ask for answers, or all for costs.
    """
    if len(items) > 1 and all(isinstance(item, Item) for own in items for item in own):
        return answer_lanes(stack, items)
    stack.finish()
    return [
        list(respond(copy.deepcopy(system).to(stack.device), own))
        for system, own in zip(stack.systems, items, strict=True)
    ]


def answer_lanes(
    stack: Stack, items: Sequence[Sequence[Item]], *, true_whole: bool = False
) -> list[list[Replies]]:
    """Return the likeliest answers of every lane to items of its own.

    Args:
        stack: Stack of systems that read and write bytes.
        items: The items of each lane.
        true_whole: Give the systems the labels; see `counterpoint.evaluate.tasks.answer`.
    """
    layout = stack.systems[0].layout
    most = max(map(len, items))
    counts = [len(own) for own in items]
    # All lanes compute the same rows: where one has fewer items, its last one comes again.
    items = [[*own, *[own[-1]] * (most - len(own))] for own in items]
    longest = max(len(item.text) for own in items for item in own)
    together = max(BATCH_TICKS // (len(items) * (longest + 1)), 1)
    found: list[list[Replies]] = [[] for _ in items]
    for first in range(0, most, together):
        some = [own[first : first + together] for own in items]
        batch = _side_by_side([item_batch(own, layout) for own in some], stack.device)
        writes_whole = label_stream(layout) is not None and not true_whole
        likeliest = _written(stack, batch) if writes_whole else stack.map(_scored, batch)
        for lane, own in enumerate(likeliest.tolist()):
            found[lane] += [replies(item, ids) for item, ids in zip(some[lane], own, strict=True)]
    return [own[:count] for own, count in zip(found, counts, strict=True)]


def _side_by_side(batches: Sequence[Batch], device: torch.device) -> StackedBatch:
    longest = max(batch.document_start.shape[1] for batch in batches)
    batches = [padded(batch, longest) for batch in batches]

    def stacked(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([own[name] for own in named]).to(device) for name in named[0]}

    return StackedBatch(
        stacked([batch.ticks for batch in batches]),
        stacked([batch.targets for batch in batches]),
        stacked([batch.elements for batch in batches]),
        torch.stack([batch.document_start for batch in batches]).to(device),
    )


def _scored(system: System, batch: StackedBatch) -> Int[Tensor, "B T"]:
    """Return the likeliest id of the part after every tick, in one pass over whole rows."""
    found: Tensor = system(batch.lane())[system.layout.part.name].argmax(-1)
    return found


def _written(stack: Stack, batch: StackedBatch) -> Int[Tensor, "S B T"]:
    """Return the same tick by tick: the part is given, and the system writes its own whole."""
    system = stack.systems[0]
    part = system.layout.part.name
    true = batch.ticks[part]
    num_lanes, num_rows = true.shape[:2]
    column = {name: torch.full_like(ids[:, :, :1], UNSET_ID) for name, ids in batch.ticks.items()}
    column[part] = true[:, :, :1]
    state = map_state(
        lambda x: x.to(stack.device).expand(num_lanes, *x.shape).clone(),
        system.initial_state(num_rows),
    )
    likeliest = []
    # Nothing is read after the last tick, so the id that is given there does not matter.
    for tick, following in enumerate([*true[:, :, 1:].unbind(2), true[:, :, -1]]):
        resting = resting_streams(system.layout, tick + 1)

        def one(
            system: System, column: Any, state: Any, following: Tensor, resting: Any = resting
        ) -> tuple[Tensor, Any, Any]:
            hidden, state = system.read(column, state)
            told = GivenPart(part, following, resting)
            written = system.write(hidden[:, -1], told, state)
            return told.likeliest, {name: ids[:, None] for name, ids in written.items()}, state

        own, column, state = stack.map(one, column, state, following)
        likeliest.append(own)
    return torch.stack(likeliest, 2)
