"""Items of a task as training data: one item a row.

A system that writes a second stream of ids, such as a whole of text, learns the labels of the items
in that stream (`Item.whole`); all other systems get only the part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int, UInt

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader, Rows
from counterpoint.data.source import ALONE, Preparation
from counterpoint.data.tasks.dialogues import Dialogues
from counterpoint.data.tasks.items import (
    HELD_OUT_SEED,
    Item,
    ScoredTask,
    Trained,
    is_scored,
    trained_symbols,
)
from counterpoint.data.tasks.needles import Needles
from counterpoint.data.tasks.packed import PackedItems, item_digest, places_of
from counterpoint.data.tasks.part_whole import PartWholeTask
from counterpoint.data.tasks.questions import Questions
from counterpoint.data.tasks.reasoning.corpora import ReasoningTask
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream

_KEPT_ITEMS = 2048
"""Number of items that are not made again if they are soon needed again."""


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData:
    """Items of a task, up to ``num_items``, one for every row; a `DataSource`.

    Attributes:
        task: Generator, one of `counterpoint.data.tasks.part_whole.TASKS` or your own.
        num_items: Number of items to learn from.
        num_held_out: Number of items for evaluation, which are never learned from.
        seed: Seed of the items; it must not be one for scoring (see `is_scored`).
        trained: Symbols that carry a loss; see `counterpoint.data.tasks.items.Trained`.
        row_ticks: Ticks of a training row, which then holds several whole items; ``None`` gives
            every item a row of its own.
    """

    task: PartWholeTask | Questions | Dialogues | Needles | ReasoningTask | ScoredTask
    num_items: int = 1_000_000
    num_held_out: int = 500
    seed: int = 0
    trained: Trained = "answer"
    row_ticks: int | None = None

    def __post_init__(self) -> None:
        if self.trained not in get_args(Trained):
            raise UserError(f"`trained` must be one of {get_args(Trained)}: got {self.trained!r}.")
        for name, least in (("num_items", 1), ("num_held_out", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"`{name}` must be >= {least}: got {getattr(self, name)}.")
        if is_scored(self.seed):
            raise UserError(
                f"Seeds of items to learn from must be below {HELD_OUT_SEED // 2:,}, for items of "
                f"higher seeds are scored: got {self.seed}. Take a lower one."
            )

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system reads bytes; see `DataSource.fits`."""
        parts = layout.by_role(Role.PART)
        return bool(parts) and (parts[0].vocab_size or 0) >= ByteTokenizer().vocab_size

    def num_ticks(self, layout: Layout) -> int:
        """Return the ticks of a row, full blocks for the longest item; a `DataSource` method."""
        return self.row_ticks or in_blocks(self.task.most_symbols, layout.block_ticks)

    def shaped(self, row_ticks: int | None, trained: Trained) -> "TaskData":
        """Return the same items in other rows; see `counterpoint.train.phases.Shapeable`."""
        return replace(self, row_ticks=row_ticks or self.row_ticks, trained=trained)

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedTask":
        """Return the rows for a system; nothing is cached; see `DataSource.prepare`."""
        return PreparedTask(self, system.layout, how.block_ticks)


class PreparedTask:
    """Rows of items; a `counterpoint.data.source.PreparedSource`.

    Attributes:
        data: The data config.
        layout: Streams of the system that reads the rows.
        num_ticks: Number of ticks of a row that holds one item.

    Args:
        data: The data config.
        layout: Streams of the system that reads the rows.
        block_ticks: The length of a row is a multiple of this; by default the layout's own, and
            the largest one where several systems must read equal rows.
    """

    def __init__(self, data: TaskData, layout: Layout, block_ticks: int | None = None) -> None:
        self.data = data
        self.layout = layout
        self._block_ticks = block_ticks or layout.block_ticks
        self.num_ticks = in_blocks(data.task.most_symbols, self._block_ticks)

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches, step by step; for the arguments see `Loader`."""
        return Loader(self._rows, batch_rows, seed, rank, world_size)

    @cached_property
    def _rows(self) -> Rows:
        item = self._item(self.data.seed)
        if self.data.row_ticks is None:
            return ItemRows(item, np.arange(self.data.num_items), self)
        if label_stream(self.layout) is not None:
            raise UserError(
                "Items with labels must have rows of their own: got row_ticks="
                f"{self.data.row_ticks}, and the system writes a second stream. Leave `row_ticks` "
                "out."
            )
        return PackedItems(
            map(item, range(self.data.num_items)),
            self.data.row_ticks,
            self._block_ticks,
            self.data.trained,
            self.layout.part.name,
        )

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out items, or ``None`` if there are none."""
        if not self.data.num_held_out:
            return None
        item = self._item(self.data.seed + HELD_OUT_SEED)
        return HeldOutRows(ItemRows(item, np.arange(self.data.num_held_out), self))

    def describe(self) -> str:
        """Return a phrase that says how much data there is."""
        return (
            f"items of {self.data.task.name}, {self.num_ticks} ticks each, "
            f"{self.data.num_held_out} held out"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digest of the training data: of the generator's options, its first item, and labels."""
        first = self.data.task.item(self.data.seed, 0)
        facts: dict[str, Any] = {"data": encode(self.data), "first": first.text}
        if label_stream(self.layout) is not None:
            facts["labels"] = [[label.start, label.text] for label in first.whole]
        return {"items": {"train": json_digest(facts)}}

    def batch(self, items: list[Item]) -> Batch:
        """Return items as rows; see `item_rows`."""
        return item_rows(items, self.layout, self.num_ticks, self.data.trained)

    def _item(self, seed: int) -> Callable[[int], Item]:
        return lambda number: self.data.task.item(seed, number)


class ItemRows:
    """Items by number as rows.

    Args:
        item: Makes the item with a number.
        numbers: The numbers.
        rows: Lays the items out.
    """

    def __init__(
        self, item: Callable[[int], Item], numbers: Int[np.ndarray, " n"], rows: PreparedTask
    ) -> None:
        # Rows are counted some at a time, first their tokens and then their items.
        self._item = lru_cache(_KEPT_ITEMS)(item)
        self._numbers = numbers
        self._rows = rows

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the items at ``indices`` as rows."""
        return self._rows.batch([self._at(index) for index in indices])

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of symbols of each item; see `CountedRows`."""
        return np.array([len(self._at(index).text) for index in indices])

    def items(self, index: int) -> UInt[np.ndarray, " _n"]:
        """Return the digest of the text of the item in a row; see `CountedRows`."""
        return np.array([item_digest(self._at(index))], np.uint64)

    def spans(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Return the number of the item in each row, and the next number."""
        return np.stack((self._numbers[indices], self._numbers[indices] + 1), 1)

    def rest(self, spans: Int[np.ndarray, "n 2"]) -> "ItemRows":
        """Return some items as rows; see `CountedRows`."""
        return ItemRows(self._item, places_of(spans), self._rows)

    def title(self, index: int) -> str:
        """Return the name of the item in a row."""
        return f"item {self._numbers[index]}"

    def _at(self, index: Any) -> Item:
        return self._item(int(self._numbers[index]))


def item_rows(
    items: Sequence[Item], layout: Layout, num_ticks: int, trained: Trained = "answer"
) -> Batch:
    """Return items as rows: every symbol is read, and some are targets.

    A second stream that the system writes has labels in its steps; see `labels`.

    Args:
        items: Items, one for each row.
        layout: Streams of the system.
        num_ticks: Number of ticks of a row, a multiple of the layout's `block_ticks`.
        trained: Symbols that are targets.
    """
    ids = np.full((len(items), num_ticks + 1), UNSET_ID, np.int64)
    is_target = np.zeros(ids.shape, bool)
    ids[:, 0] = ByteTokenizer().start_id
    for row, item in enumerate(items):
        ids[row, 1 : len(item.text) + 1] = list(item.text.encode())
        # Nothing is read before the first symbol.
        is_target[row, 1 : len(item.text) + 1] = trained_symbols(item, trained)
    part = layout.part.name
    content = {part: torch.from_numpy(np.where(ids == UNSET_ID, 0, ids))}
    whole = label_stream(layout)
    if whole is not None:
        rows = [labels(item, whole, num_ticks + 1) for item in items]
        content[whole.name] = torch.from_numpy(np.stack(rows))
    batch = schedule.lay_out(layout, content)
    content[part] = torch.from_numpy(np.where(is_target, ids, UNSET_ID))
    learned = schedule.lay_out(layout, content)
    return replace(batch, targets=learned.targets, unit="byte", size=int(is_target.sum()))


def item_batch(items: Sequence[Item], layout: Layout, trained: Trained = "answer") -> Batch:
    """Return items as rows that are as long as the longest item; see `item_rows`."""
    longest = max(len(item.text) for item in items)
    return item_rows(items, layout, in_blocks(longest, layout.block_ticks), trained)


def label_stream(layout: Layout) -> Stream | None:
    """Return the stream in which a system writes the whole as text, or ``None``.

    Raises:
        UserError: The system writes more than two streams.
    """
    others = [s for s in layout.predicted if s.is_discrete and s.role != Role.PART]
    if len(others) > 1:
        raise UserError(
            "A system that learns from a task must write its part and at most one more stream, "
            f"for the whole: this one also writes {', '.join(stream.name for stream in others)}."
        )
    return others[0] if others else None


def labels(item: Item, stream: Stream, num_ticks: int) -> Int[np.ndarray, "W ..."]:
    """Return the ids of an item's labels in the steps of a stream, in content order.

    A step of several ticks has the label that holds at its last tick. If steps are ticks, a label
    stands only in the tick from which it holds, as in interleaved streams. All other ids are
    padding, if the stream has padding, or unset; after the text all ids are unset.

    Args:
        item: Item whose text begins at tick 1, after the id that begins a document.
        stream: Stream in which the labels are written.
        num_ticks: Number of ticks of the row.

    Raises:
        UserError: A label has more symbols than a step has ids, or steps may end early.
    """
    if stream.irregular:
        raise UserError(
            f"Steps of {stream.name!r} must have a fixed number of ticks to be given labels: they "
            "may end early. Take blocks of a fixed length."
        )
    longest = max((len(label.text) for label in item.whole), default=0)
    if longest > stream.depth:
        raise UserError(
            f"`depth` of {stream.name!r} must be that of the longest label, {longest}: got "
            f"{stream.depth}. Give a step as many ids."
        )
    padding = UNSET_ID if stream.padding_id is None else stream.padding_id
    by_label = np.full((len(item.whole) + 1, stream.depth), padding, np.int64)
    for number, label in enumerate(item.whole, 1):
        by_label[number, : len(label.text)] = list(label.text.encode())
    last_ticks = np.array(schedule.last_ticks(stream, num_ticks), dtype=np.int64)
    # After a tick t, t symbols have been read.
    starts = [label.start for label in item.whole]
    holds = np.searchsorted(starts, last_ticks, side="right")
    ids = by_label[holds]
    if stream.period_ticks == 1:
        ids[np.diff(holds, prepend=0) == 0] = padding
    ids[last_ticks > len(item.text)] = UNSET_ID
    return ids if stream.has_codebooks else ids[:, 0]


def in_blocks(num_symbols: int, block_ticks: int) -> int:
    """Return the number of ticks of the whole blocks that hold so many symbols."""
    return -(-num_symbols // block_ticks) * block_ticks
