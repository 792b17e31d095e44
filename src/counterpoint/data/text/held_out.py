"""Held-out units of text, as batches that are scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.data.text.shards import Unit
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID

TEXT_STREAM = "part"
"""Name of the stream that text fills."""

BATCH_TICKS = 8192
"""Ticks of a batch; with this number the largest attention matrices stay below 300 MB."""


def rows_batch(rows: Sequence[Int[np.ndarray, " _n"]], block_ticks: int) -> Batch:
    """Make one batch of rows of ids; each row is a document that predicts all ids but its first.

    Shorter rows are filled up with their last id, which carries no loss and is not scored. The size
    of the batch counts targets.
    """
    longest = max(len(row) - 1 for row in rows)
    num_ticks = -(-longest // block_ticks) * block_ticks
    ticks = np.stack([np.pad(row[:-1], (0, num_ticks - len(row) + 1), "edge") for row in rows])
    targets = np.full(ticks.shape, UNSET_ID, np.int64)
    for i, row in enumerate(rows):
        targets[i, : len(row) - 1] = row[1:]
    ids = torch.from_numpy(ticks.astype(np.int64))
    return Batch(
        ticks={TEXT_STREAM: ids},
        targets={TEXT_STREAM: torch.from_numpy(targets)},
        document_start=torch.zeros_like(ids),
        size=int((targets != UNSET_ID).sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeldOutText:
    """Units of text; a `counterpoint.data.source.HeldOutUnits`.

    A unit longer than ``batch_ticks`` is cut, and each piece starts without context, like rows in
    training.

    Attributes:
        units: The units.
        byte_lengths: Bytes of text of each id of the vocabulary (`Tokenizer.byte_lengths`).
        block_ticks: Rows are filled up to a multiple of this.
        batch_ticks: Largest number of ticks of a batch.
    """

    units: Sequence[Unit]
    byte_lengths: Int[np.ndarray, " V"]
    block_ticks: int = 1
    batch_ticks: int = BATCH_TICKS

    def __len__(self) -> int:
        return len(self.units)

    def title(self, index: int) -> str:
        """Return the title of the document of a unit."""
        return self.units[index].title

    def batches(self, index: int) -> Iterator[Batch]:
        """Yield a unit as one batch of one row, or as several; sizes count bytes."""
        ids = self.units[index].ids
        for start in range(0, len(ids) - 1, self.batch_ticks):
            piece = ids[start : start + self.batch_ticks + 1]
            num_bytes = int(self.byte_lengths[piece[1:]].sum())
            yield replace(rows_batch([piece], self.block_ticks), size=num_bytes)
