"""Packing: all units one after another on aligned ticks, cut into rows of equal length."""

from copy import copy

import numpy as np
import torch
from jaxtyping import Int, UInt

from counterpoint.data.text.shards import TokenShards
from counterpoint.digests import ids_digest
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID


class PackedRows:
    """Rows of equal length over a virtual sequence of all units, each padded to whole blocks.

    A unit that reaches the end of a row continues in the next one, where its ``document_start`` is
    0. Padding holds ``end_id`` and carries no loss; the last row is filled up with it. Only one
    number a unit and one a row are held in memory.

    Args:
        shards: The units.
        row_ticks: Number of ticks in a row; a multiple of ``block_ticks``.
        block_ticks: Every unit starts at a multiple of this.
        stream: Name of the stream of the ids.

    Raises:
        UserError: ``row_ticks`` is not a multiple of ``block_ticks``.
    """

    def __init__(
        self, shards: TokenShards, row_ticks: int, block_ticks: int, stream: str = "part"
    ) -> None:
        if block_ticks < 1 or row_ticks < 1 or row_ticks % block_ticks:
            raise UserError(
                f"`row_ticks` must be a multiple of `block_ticks`: got row_ticks={row_ticks}, "
                f"block_ticks={block_ticks}."
            )
        self.shards = shards
        self.row_ticks = row_ticks
        self.block_ticks = block_ticks
        self.stream = stream
        self._token_stops = np.asarray(shards.token_stops)
        num_blocks = -(-np.diff(self._token_stops, prepend=0) // block_ticks)
        self._stops = np.cumsum(num_blocks) * block_ticks  # tick at which each unit ends
        self._num_ticks = int(self._stops[-1])
        self._stops[-1] += row_ticks  # what fills up the last row is of the last unit
        self._starts = np.arange(0, self._num_ticks, row_ticks)  # tick at which each row begins

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices`` as a batch.

        ``size`` counts the bytes of text of the targets.

        Raises:
            UserError: An index is out of range.
        """
        units = self.units(indices)
        row_start = self._starts[indices][:, None]
        tick = row_start + np.arange(self.row_ticks)
        unit_start = np.where(units > 0, self._stops[units - 1], 0)
        token_start = np.where(units > 0, self._token_stops[units - 1], 0)
        last = self._token_stops[units] - 1  # position of the end_id of each unit
        position = token_start + (tick - unit_start)
        ticks = self.shards.tokens(np.minimum(position, last))
        following = self.shards.tokens(np.minimum(position + 1, last))
        targets = np.where(position < last, following, UNSET_ID)
        trained = targets[position < last]
        return Batch(
            ticks={self.stream: torch.from_numpy(ticks)},
            targets={self.stream: torch.from_numpy(targets)},
            document_start=torch.from_numpy(np.maximum(unit_start - row_start, 0)),
            size=int(self.shards.byte_lengths[trained].sum()),
        )

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of targets of each row; see `CountedRows`."""
        first = self._starts[indices]
        return self._targets_before(first + self.row_ticks) - self._targets_before(first)

    def items(self, index: int) -> UInt[np.ndarray, " _n"]:
        """Return digests of the units that begin in a row; see `CountedRows`."""
        first = self._starts[index]
        # The first unit begins at 0, and each other one where the one before it ends.
        begin, end = np.searchsorted(self._stops[:-1], (first, first + self.row_ticks))
        units = range(begin + (first > 0), end + 1)
        return np.array([self._digest(unit) for unit in units], np.uint64)

    def spans(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Return the ticks of rows; see `CountedRows`."""
        first = self._starts[indices]
        return np.stack((first, np.minimum(first + self.row_ticks, self._num_ticks)), 1)

    def rest(self, spans: Int[np.ndarray, "n 2"]) -> "PackedRows":
        """Return rows of some ticks; what is shorter than a row is left out.

        See `CountedRows`.
        """
        found = copy(self)
        # The last row of all is filled up, also if it begins elsewhere.
        lasts = np.where(
            spans[:, 1] < self._num_ticks, spans[:, 1] - self.row_ticks, spans[:, 1] - 1
        )
        cut = [
            np.arange(begin, last + 1, self.row_ticks)
            for begin, last in zip(spans[:, 0], lasts, strict=True)
        ]
        found._starts = np.concatenate(cut) if cut else np.empty(0, np.int64)
        return found

    def _digest(self, unit: int) -> int:
        """Return the digest of the ids of a unit, without those that begin and end it."""
        begin = int(self._token_stops[unit - 1]) if unit else 0
        return ids_digest(self.shards.tokens(np.arange(begin + 1, self._token_stops[unit] - 1)))

    def _targets_before(self, ticks: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of targets before each tick of the sequence of all units."""
        unit = np.minimum(np.searchsorted(self._stops, ticks, side="right"), len(self._stops) - 1)
        before = np.where(unit > 0, self._token_stops[unit - 1], 0)
        within = ticks - np.where(unit > 0, self._stops[unit - 1], 0)
        # The end_id of a unit is not followed by a target.
        return before - unit + np.minimum(within, self._token_stops[unit] - before - 1)

    def units(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B T"]:
        """Return the number of the unit to which each tick of the rows belongs."""
        indices = np.asarray(indices)
        if ((indices < 0) | (indices >= len(self))).any():
            raise UserError(f"Rows must be 0 to {len(self) - 1}: got {indices.tolist()}.")
        start = self._starts[indices]
        first = np.searchsorted(self._stops, start, side="right")
        last = np.searchsorted(self._stops, start + self.row_ticks - 1, side="right")
        counts = last - first + 1
        row = np.repeat(np.arange(len(indices)), counts)
        # Number of each unit within its row, added to the first unit of the row.
        units = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        stop = np.minimum(self._stops[units], start[row] + self.row_ticks)
        begin = np.maximum(np.where(units > 0, self._stops[units - 1], 0), start[row])
        return np.repeat(units, stop - begin).reshape(len(indices), self.row_ticks)
