"""How a system answers the items of a task."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from counterpoint.data.tasks.items import Item, Replies
from counterpoint.data.tasks.source import PreparedTask, TaskData

BATCH_ITEMS = 32


def answer(
    system: nn.Module, data: TaskData, items: Sequence[Item], batch_items: int = BATCH_ITEMS
) -> Iterator[Replies]:
    """The likeliest answers of a system, each symbol behind the true text before it.

    Args:
        system: Reads and writes bytes; see `TaskData.fits`.
        data: What it was trained on: how items stand in rows.
        items: What is asked.
        batch_items: Items that are read at once.
    """
    rows = PreparedTask(data, system.layout.block_ticks)  # type: ignore[union-attr, arg-type]
    device = next(system.parameters()).device
    training = system.training
    system.eval()
    for first in range(0, len(items), batch_items):
        some = list(items[first : first + batch_items])
        with torch.no_grad():
            likeliest: Tensor = system(rows.batch(some).to(device))["part"].argmax(-1).cpu()
        yield from (_given(item, likeliest[row].tolist()) for row, item in enumerate(some))
    system.train(training)


def _given(item: Item, likeliest: list[int]) -> Replies:
    """What stands at the answers: the id behind a tick is the symbol of its number."""
    return {
        number: "".join(
            chr(symbol) if symbol < 128 else "?"
            for symbol in likeliest[one.start : one.start + len(one.text)]
        )
        for number, one in enumerate(item.answers)
    }
