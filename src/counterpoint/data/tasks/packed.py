"""Rows that hold several whole items each, so that short items waste no ticks."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.data.tasks.items import Item, Trained, trained_symbols
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID


class PackedItems:
    """Items one after another in rows of equal length; a `counterpoint.data.loader.CountedRows`.

    Every item is a document of its own that begins with ``start_id`` at a multiple of
    ``block_ticks``. An item that does not fit into the rest of a row begins the next one. All rows
    are held in memory, six bytes a tick.

    Args:
        items: The items.
        row_ticks: Number of ticks in a row; a multiple of ``block_ticks``.
        block_ticks: Every item starts at a multiple of this.
        trained: Symbols that carry a loss.
        stream: Name of the stream of the symbols.

    Raises:
        UserError: There is no item, or one is longer than a row.
    """

    def __init__(
        self,
        items: Iterable[Item],
        row_ticks: int,
        block_ticks: int,
        trained: Trained,
        stream: str = "part",
    ) -> None:
        if row_ticks < 1 or row_ticks % block_ticks:
            raise UserError(
                f"`row_ticks` must be a multiple of the layout's block_ticks: got "
                f"row_ticks={row_ticks}, block_ticks={block_ticks}."
            )
        self.row_ticks = row_ticks
        self.stream = stream
        self._tokens: list[int] = []
        self._numbers: list[list[int]] = []
        known: dict[str, int] = {}
        tokenizer = ByteTokenizer()
        empty = _empty_row(row_ticks, block_ticks, tokenizer.end_id)
        rows: list[Int[np.ndarray, "3 T"]] = []
        place = row_ticks
        for item in items:
            length = -(-len(item.text) // block_ticks) * block_ticks
            if length > row_ticks:
                raise UserError(
                    f"`row_ticks` must hold a whole item: one has {len(item.text)} symbols and a "
                    f"row {row_ticks} ticks. Raise `row_ticks`, or make shorter items."
                )
            if place + length > row_ticks:
                rows.append(empty.copy())
                self._tokens.append(0)
                self._numbers.append([])
                place = 0
            row = rows[-1][:, place : place + length]
            _write(row, item, trained, place, tokenizer.start_id)
            self._tokens[-1] += len(item.text)
            self._numbers[-1].append(known.setdefault(item.text, len(known)))
            place += length
        if not rows:
            raise UserError("A source of items must have at least one: `num_items` is 0.")
        self._rows = np.stack(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices``; ``size`` counts the symbols that carry a loss."""
        ticks, targets, starts = torch.from_numpy(self._rows[indices].astype(np.int64)).unbind(1)
        return Batch(
            ticks={self.stream: ticks},
            targets={self.stream: targets},
            document_start=starts,
            size=int((targets != UNSET_ID).sum()),
        )

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of symbols of the items of each row."""
        return np.array(self._tokens)[indices]

    def items(self, index: int) -> Int[np.ndarray, " n"]:
        """Return the numbers of the items in a row; items of equal text have equal numbers."""
        return np.array(self._numbers[index])


def _empty_row(num_ticks: int, block_ticks: int, end_id: int) -> Int[np.ndarray, "3 T"]:
    """Return ticks, targets and starts of a row of padding, each block a document of its own."""
    ticks = np.arange(num_ticks)
    end = np.full(num_ticks, end_id)
    unset = np.full(num_ticks, UNSET_ID)
    return np.stack((end, unset, ticks - ticks % block_ticks)).astype(np.int16)


def _write(
    row: Int[np.ndarray, "3 n"], item: Item, trained: Trained, place: int, start_id: int
) -> None:
    """Write an item over a part of a row, after ``place`` ticks of it."""
    symbols = np.frombuffer(item.text.encode(), np.uint8).astype(np.int16)
    num_symbols = len(symbols)
    row[0, 0] = start_id
    row[0, 1:num_symbols] = symbols[:-1]
    row[1, :num_symbols] = np.where(trained_symbols(item, trained), symbols, UNSET_ID)
    row[2] = place
