"""Items of a task as something to learn from: one item a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole import PartWholeTask
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.digests import json_digest
from counterpoint.progress import Progress
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role

HELD_OUT_SEED = 1_000_000
"""Added to the seed of the items that are learned from: items that are scored are others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData:
    """Items of a task, a new one for every row until ``num_items``; a `DataSource`.

    Attributes:
        task: Generator, such as those of `counterpoint.data.tasks.part_whole.TASKS`.
        num_items: Items to learn from.
        num_held_out: Items that are only measured on; they are never among those to learn from.
        seed: Decides the items.
        answers_only: Whether answers alone are trained; otherwise every symbol is.
    """

    task: PartWholeTask
    num_items: int = 1_000_000
    num_held_out: int = 500
    seed: int = 0
    answers_only: bool = True

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Whether a system reads bytes: see `DataSource.fits`."""
        parts = layout.by_role(Role.PART)
        return bool(parts) and (parts[0].vocab_size or 0) >= ByteTokenizer().vocab_size

    def num_ticks(self, layout: Layout) -> int:
        """Ticks of a row: the longest item in whole blocks; see `DataSource.num_ticks`."""
        return _in_blocks(self.task.most_symbols, layout.block_ticks)

    def prepare(
        self,
        system: Any,
        *,
        block_ticks: int | None = None,
        progress: Progress | None = None,
        rank: int = 0,
        world_size: int = 1,
        held_out_only: bool = False,
    ) -> "PreparedTask":
        """The rows of a system; see `DataSource.prepare`. Nothing is read or cached."""
        return PreparedTask(self, block_ticks or system.layout.block_ticks)


class PreparedTask:
    """Rows of items; it follows `counterpoint.data.source.PreparedSource`."""

    def __init__(self, data: TaskData, block_ticks: int) -> None:
        self.data = data
        self.num_ticks = _in_blocks(data.task.most_symbols, block_ticks)

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """What a run learns from, step by step; arguments as for `Loader`."""
        rows = ItemRows(self._item(self.data.seed), self.data.num_items, self)
        return Loader(rows, batch_rows, seed, rank, world_size)

    def held_out_units(self) -> HeldOutRows | None:
        """Items that are only measured on."""
        if not self.data.num_held_out:
            return None
        item = self._item(self.data.seed + HELD_OUT_SEED)
        return HeldOutRows(ItemRows(item, self.data.num_held_out, self))

    def describe(self) -> str:
        """How much there is, in words."""
        return (
            f"items of {self.data.task.name}, {self.num_ticks} ticks each, "
            f"{self.data.num_held_out} held out"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """What is learned from: the generator's knobs, and its first item."""
        first = self.data.task.item(self.data.seed, 0).text
        return {"items": {"train": json_digest({"data": encode(self.data), "first": first})}}

    def batch(self, items: list[Item]) -> Batch:
        """Items as rows: every symbol is read, and the answers or all symbols are targets."""
        ids = np.full((len(items), self.num_ticks + 1), UNSET_ID, np.int64)
        trained = np.zeros(ids.shape, bool)
        ids[:, 0] = ByteTokenizer().start_id
        for row, item in enumerate(items):
            ids[row, 1 : len(item.text) + 1] = list(item.text.encode())
            for answer in item.answers:
                first = answer.start + 1
                trained[row, first : first + len(answer.text)] = True
        if not self.data.answers_only:
            trained = ids != UNSET_ID
        targets = np.where(trained, ids, UNSET_ID)[:, 1:]
        ticks = np.where(ids == UNSET_ID, 0, ids)[:, :-1]
        return Batch(
            ticks={"part": torch.from_numpy(ticks)},
            targets={"part": torch.from_numpy(targets)},
            document_start=torch.zeros(ticks.shape, dtype=torch.long),
            size=int((targets != UNSET_ID).sum()),
        )

    def _item(self, seed: int) -> Callable[[int], Item]:
        return lambda number: self.data.task.item(seed, number)


class ItemRows:
    """Items by number as rows."""

    def __init__(self, item: Callable[[int], Item], num_items: int, rows: PreparedTask) -> None:
        self._item = item
        self._num_items = num_items
        self._rows = rows

    def __len__(self) -> int:
        return self._num_items

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The items of these numbers."""
        return self._rows.batch([self._item(int(number)) for number in indices])

    def title(self, index: int) -> str:
        """Which item a row is."""
        return f"item {index}"


def _in_blocks(num_symbols: int, block_ticks: int) -> int:
    return -(-num_symbols // block_ticks) * block_ticks
