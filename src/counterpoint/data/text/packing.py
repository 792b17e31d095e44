"""Packing: all units one after another on aligned ticks, cut into rows of equal length."""

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.data.text.shards import TokenShards
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID


class PackedRows:
    """Rows of equal length over a virtual sequence of all units, each padded to whole blocks.

    A unit that reaches the end of a row continues in the next one, where its ``document_start`` is
    0. Padding holds ``end_id`` and carries no loss; the last row is filled up with it. Only one
    number a unit is held in memory.

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
        self._num_rows = -(-int(self._stops[-1]) // row_ticks)
        self._stops[-1] = self._num_rows * row_ticks

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices`` as a batch.

        ``size`` counts the bytes of text of the targets.

        Raises:
            UserError: An index is out of range.
        """
        units = self.units(indices)
        row_start = np.asarray(indices)[:, None] * self.row_ticks
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
        first = np.asarray(indices) * self.row_ticks
        return self._targets_before(first + self.row_ticks) - self._targets_before(first)

    def items(self, index: int) -> Int[np.ndarray, " _n"]:
        """Return the numbers of the units that begin in a row; see `CountedRows`."""
        first = index * self.row_ticks
        starts = np.concatenate(([0], self._stops[:-1]))
        return np.arange(*np.searchsorted(starts, (first, first + self.row_ticks)))

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
        if ((indices < 0) | (indices >= self._num_rows)).any():
            raise UserError(f"Rows must be 0 to {self._num_rows - 1}: got {indices.tolist()}.")
        start = indices * self.row_ticks
        first = np.searchsorted(self._stops, start, side="right")
        last = np.searchsorted(self._stops, start + self.row_ticks - 1, side="right")
        counts = last - first + 1
        row = np.repeat(np.arange(len(indices)), counts)
        # Number of each unit within its row, added to the first unit of the row.
        units = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        stop = np.minimum(self._stops[units], start[row] + self.row_ticks)
        begin = np.maximum(np.where(units > 0, self._stops[units - 1], 0), start[row])
        return np.repeat(units, stop - begin).reshape(len(indices), self.row_ticks)
