"""Rows that hold several whole items each, so that short items waste no ticks."""

from collections.abc import Iterable
from copy import copy

import numpy as np
import torch
from jaxtyping import Int, UInt

from counterpoint.data.tasks.items import Item, Trained, trained_symbols
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.digests import ids_digest
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID


class PackedItems:
    """Items one after another in rows of equal length; a `counterpoint.data.loader.CountedRows`.

    Every item is a document of its own that begins with ``start_id`` at a multiple of
    ``block_ticks``. An item that does not fit into the rest of a row begins the next one. All items
    are held in memory, four bytes a tick and 40 an item.

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
        self._empty = _empty_row(row_ticks, block_ticks)
        columns: list[Int[np.ndarray, "2 n"]] = []
        symbols: list[int] = []
        digests: list[int] = []
        for item in items:
            columns.append(_columns(item, trained, block_ticks))
            if columns[-1].shape[1] > row_ticks:
                raise UserError(
                    f"`row_ticks` must hold a whole item: one has {len(item.text)} symbols and a "
                    f"row {row_ticks} ticks. Raise `row_ticks`, or make shorter items."
                )
            symbols.append(len(item.text))
            digests.append(item_digest(item))
        if not columns:
            raise UserError("A source of items must have at least one: `num_items` is 0.")
        self._columns = np.concatenate(columns, 1)
        self._stops = np.cumsum([one.shape[1] for one in columns])
        self._symbols = np.array(symbols)
        self._digests = np.array(digests, np.uint64)
        self._fill(np.arange(len(columns)))

    def _fill(self, numbers: Int[np.ndarray, " n"]) -> None:
        """Decide in which row and where in it each of some items stands."""
        firsts: list[int] = []
        places: list[int] = []
        place = self.row_ticks
        for length in np.diff(self._stops, prepend=0)[numbers].tolist():
            if place + length > self.row_ticks:
                firsts.append(len(places))
                place = 0
            places.append(place)
            place += length
        self._numbers = numbers
        self._places = np.array(places, np.int64)
        self._firsts = np.array([*firsts, len(places)])  # of the items of each row

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices``; ``size`` counts the symbols that carry a loss."""
        found = np.tile(self._empty, (len(indices), 1, 1))
        for row, index in zip(found, indices, strict=True):
            own = self._own(int(index))
            for number, place in zip(self._numbers[own], self._places[own], strict=True):
                begin = self._stops[number - 1] if number else 0
                columns = self._columns[:, begin : self._stops[number]]
                end = place + columns.shape[1]
                row[:2, place:end] = columns
                row[2, place:end] = place
        ticks, targets, starts = torch.from_numpy(found).unbind(1)
        return Batch(
            ticks={self.stream: ticks},
            targets={self.stream: targets},
            document_start=starts,
            size=int((targets != UNSET_ID).sum()),
        )

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of symbols of the items of each row."""
        before = np.concatenate(([0], np.cumsum(self._symbols[self._numbers])))
        return np.diff(before[self._firsts])[indices]

    def items(self, index: int) -> UInt[np.ndarray, " _n"]:
        """Return digests of the texts of the items in a row; see `CountedRows`."""
        return self._digests[self._numbers[self._own(index)]]

    def spans(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Return the number of the first item of each row, and the one after its last."""
        lasts = self._numbers[self._firsts[1:] - 1]
        return np.stack((self._numbers[self._firsts[:-1]], lasts + 1), 1)[indices]

    def rest(self, spans: Int[np.ndarray, "n 2"]) -> "PackedItems":
        """Return rows of some items, packed anew; see `CountedRows`."""
        found = copy(self)
        found._fill(places_of(spans))
        return found

    def _own(self, index: int) -> slice:
        return slice(self._firsts[index], self._firsts[index + 1])


def item_digest(item: Item) -> int:
    """Return a digest of the text of an item; see `counterpoint.digests.ids_digest`."""
    return ids_digest(np.frombuffer(item.text.encode(), np.uint8))


def places_of(spans: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " _m"]:
    """Return all places of spans; see `counterpoint.data.loader.CountedRows.rest`."""
    return np.concatenate([np.empty(0, np.int64), *(np.arange(*span) for span in spans)])


def _empty_row(num_ticks: int, block_ticks: int) -> Int[np.ndarray, "3 T"]:
    """Return ticks, targets and starts of a row of padding, each block a document of its own."""
    ticks = np.arange(num_ticks)
    end = np.full(num_ticks, ByteTokenizer().end_id)
    unset = np.full(num_ticks, UNSET_ID)
    return np.stack((end, unset, ticks - ticks % block_ticks))


def _columns(item: Item, trained: Trained, block_ticks: int) -> Int[np.ndarray, "2 n"]:
    """Return ticks and targets of an item in whole blocks."""
    tokenizer = ByteTokenizer()
    symbols = np.frombuffer(item.text.encode(), np.uint8).astype(np.int16)
    num_symbols = len(symbols)
    found = np.empty((2, -(-num_symbols // block_ticks) * block_ticks), np.int16)
    found[0] = tokenizer.end_id
    found[1] = UNSET_ID
    found[0, 0] = tokenizer.start_id
    found[0, 1:num_symbols] = symbols[:-1]
    found[1, :num_symbols] = np.where(trained_symbols(item, trained), symbols, UNSET_ID)
    return found
