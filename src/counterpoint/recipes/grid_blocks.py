"""The length of words on a task, on which the FLOPs of arms depend whose blocks end at words.

The FLOPs that a budget matches are counted with one length, the `usual_block_ticks` of an arm's
config. On a task whose words are longer, such an arm takes fewer steps above its ticks than that.
"""

from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch

from counterpoint.blocks.block_grid import lay_blocks
from counterpoint.data.source import DataSource
from counterpoint.streams.batch import Batch
from counterpoint.systems import SystemConfig, sketch

_ROWS = 8  # some hundred blocks


@runtime_checkable
class WordBlocks(Protocol):
    """A config of a system whose blocks may end at some ids."""

    @property
    def boundary_ids(self) -> tuple[int, ...]:
        """Ids after which a block ends."""

    @property
    def block_ticks(self) -> int:
        """Number of ticks after which a block ends at the latest."""

    @property
    def usual_block_ticks(self) -> float | None:
        """Mean number of ticks of a block with which FLOPs are counted."""


def on_task(system: SystemConfig, data: DataSource) -> SystemConfig:
    """Return a config that counts FLOPs with the words of a task.

    Args:
        system: The config; it is returned as it is if its blocks do not end at words.
        data: The rows from which the task is learned, of which 8 are looked at.
    """
    if not isinstance(system, WordBlocks) or not (system.boundary_ids and system.usual_block_ticks):
        return system
    batch = data.prepare(sketch(system)).batches(_ROWS, 0).batch(0)
    ticks = mean_block_ticks(batch, system.boundary_ids, system.block_ticks)
    return cast("SystemConfig", replace(cast("Any", system), usual_block_ticks=ticks))


def mean_block_ticks(batch: Batch, boundary_ids: tuple[int, ...], longest: int) -> float:
    """Return the number of ticks of a row for each block that ends in it, of the stream ``part``.

    With it the steps above the ticks of a row are counted as they are taken; the mean block is a
    little shorter, because the last block of a row and its padding end nowhere.

    Args:
        batch: Rows.
        boundary_ids: Ids after which a block ends.
        longest: Number of ticks after which it ends at the latest.
    """
    ids = batch.ticks["part"]
    early = torch.isin(ids, torch.tensor(boundary_ids))
    grid = lay_blocks(early, batch.document_start, longest, lengths=batch.lengths)
    num_ticks = ids.numel() if batch.lengths is None else int(batch.lengths.sum())
    return num_ticks / max(int(grid.finished[:, -1].sum()), 1)
