"""What a system is given before it writes the solution of an item, and the text that it wrote."""

from collections.abc import Sequence

import numpy as np
import torch

from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.data.tasks.source import label_stream, labels
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.streams.spec import Layout, Ticks

END_ID = ord("\n")
"""Id of the symbol with which a solution ends."""


def item_prompt(item: ReasoningItem, layout: Layout) -> Ticks:
    """Return the question of an item as content of the written streams, one row.

    A second stream that the system writes has the labels that are true of the question, as in
    training rows (`counterpoint.data.tasks.source.item_rows`).

    Args:
        item: The item.
        layout: Streams of a system that reads and writes bytes.
    """
    ids = [ByteTokenizer().start_id, *item.prompt.encode()]
    content = {layout.part.name: torch.tensor([ids])}
    whole = label_stream(layout)
    if whole is not None:
        content[whole.name] = torch.from_numpy(np.array(labels(item, whole, len(ids))))[None]
    return content


def written_text(ids: Sequence[int]) -> str:
    """Return what was written as one symbol an id, so that nothing is left out before a judgement.

    Ids that are no symbols of items remain as letters that no solution has.
    """
    return bytes(min(one, 255) for one in ids).decode("latin-1")
