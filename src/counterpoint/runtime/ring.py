"""The newest columns of every row: what was written and what is heard, until nobody needs them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.runtime.given import Given
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks

OPEN = -2
"""An id that is still to be written; `UNSET_ID` is nothing, for good."""


class ColumnRing:
    """Columns of all rows, each in the slot of its number modulo the size of the ring.

    Args:
        layout: Its predicted and its heard streams are kept.
        num_rows: Rows.
        device: Where they are kept.

    Attributes:
        places: Places of each discrete stream's ids in a column, predicted streams first.
        num_said: Ids of the predicted streams in a column.
    """

    def __init__(self, layout: Layout, num_rows: int, device: torch.device) -> None:
        self._layout = layout
        self._device = device
        self._said = said = layout.predicted
        heard = layout.heard
        given = [stream for stream in (*said, *heard) if stream.is_discrete]
        stops = list(accumulate(stream.depth for stream in given))
        self.places = {
            s.name: slice(stop - s.depth, stop) for s, stop in zip(given, stops, strict=True)
        }
        self.num_said = sum(stream.depth for stream in said)
        self._num_slots = schedule.ring_columns(layout)
        ring = (num_rows, self._num_slots)
        self._ids = torch.full((*ring, stops[-1]), OPEN, device=device)
        self._floats = {
            s.name: torch.zeros(*ring, s.width or 0, device=device)
            for s in heard
            if not s.is_discrete
        }
        delays = [s.delay_ticks for s in said for _ in range(s.depth)]
        self._said_delays = torch.tensor(delays, device=device)
        self._said_index = torch.arange(self.num_said, device=device)
        self._latest_said = schedule.latest_delay(layout)
        self._every = torch.arange(num_rows, device=device)
        # Streams that have no element in some columns.
        self._slow_said = [stream for stream in said if stream.period_ticks > 1]
        self._has_slow_heard = any(stream.period_ticks > 1 for stream in heard)

    def clear(self, row: int) -> None:
        """Forget all columns of a row."""
        self._ids[row] = OPEN
        for ring in self._floats.values():
            ring[row] = 0

    def keep(self, given: Sequence[tuple[Sequence[int], int, Given]]) -> None:
        """Put what rows are given into the columns where it stands.

        Args:
            given: Rows that are given the same, ticks that they have gone through, and what it is.
        """
        places: list[tuple[int, int, int, int]] = []
        for rows, num_ticks, what in given:
            for name, ids in what.ids.items():
                slot = schedule.given_column(self._layout, name, num_ticks) % self._num_slots
                first = self.places[name].start
                places += [(r, slot, first + k, found) for r in rows for k, found in enumerate(ids)]
            for name, values in what.floats.items():
                slot = schedule.given_column(self._layout, name, num_ticks) % self._num_slots
                self._floats[name][list(rows), slot] = values.to(self._floats[name])
        if places:
            row_, slot_, place, found_ = torch.tensor(places, device=self._device).unbind(1)
            self._ids[row_, slot_, place] = found_

    def keep_tail(self, row: int, columns: Ticks, num_prompt: int) -> None:
        """Keep what late streams still have of a prompt, when the others go on with the session."""
        for name in (*self.places, *self._floats):
            own = columns[name][0]
            for column in schedule.tail_columns(self._layout, name, num_prompt):
                slot = column % self._num_slots
                if name in self._floats:
                    self._floats[name][row, slot] = own[column] if column < len(own) else 0
                elif column < len(own):
                    self._ids[row, slot, self.places[name]] = own[column]
                else:
                    found = schedule.empty_id(self._layout, self._layout[name], column)
                    self._ids[row, slot, self.places[name]] = found

    def rest(self, row: int, tick: int) -> None:
        """Say nothing in a tick of content, which nobody has told to a row."""
        for stream in self._said:
            if schedule.ends_step(stream, tick):
                column = schedule.column_of(self._layout, stream, tick // stream.period_ticks)
                self._ids[row, column % self._num_slots, self.places[stream.name]] = UNSET_ID

    def ticks(
        self, column: Int[Tensor, " B"], real: Bool[Tensor, " B"] | None
    ) -> dict[str, Tensor]:
        """One column of every row, as `System.read` takes it; zeros in rows that are not real."""
        slot = column % self._num_slots
        ids = self._ids[self._every, slot]
        if self._has_slow_heard:  # nothing was given where nothing is due
            ids = ids.masked_fill(ids == OPEN, UNSET_ID)
        if real is not None:
            ids = ids.masked_fill(~real[:, None], 0)
        ticks = self.by_stream(ids[:, None])
        for name, ring in self._floats.items():
            ticks[name] = ring[self._every, slot][:, None]
        return ticks

    def by_stream(self, ids: Int[Tensor, "B T K"]) -> dict[str, Tensor]:
        """Ids of columns by stream."""
        pieces: Mapping[str, Tensor] = {n: ids[..., place] for n, place in self.places.items()}
        return {
            name: own if self._layout[name].has_codebooks else own[..., 0]
            for name, own in pieces.items()
        }

    def said(self, index: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Int[Tensor, "n K"]:
        """What stands in the predicted places of a column of some rows; `OPEN` where nothing.

        `UNSET_ID` stands where a slow stream has no element.
        """
        found = self._ids[index, column % self._num_slots, : self.num_said]
        for stream in self._slow_said:
            rests = ~schedule.may_stand(self._layout, stream, column)
            own = found[:, self.places[stream.name]]
            found[:, self.places[stream.name]] = own.masked_fill(
                rests[:, None] & (own == OPEN), UNSET_ID
            )
        return found

    def write(
        self, index: Int[Tensor, " n"], column: Int[Tensor, " n"], ids: Int[Tensor, "n K"]
    ) -> None:
        """Write the predicted places of a column of some rows."""
        self._ids[index, column % self._num_slots, : self.num_said] = ids

    def frame(self, tick: int, said: Int[Tensor, " K"]) -> dict[str, Int[Tensor, " _K"]]:
        """What is said in a tick by stream, of those that have an element in it."""
        return {
            stream.name: said[self.places[stream.name]]
            for stream in self._said
            if schedule.ends_step(stream, tick)
        }

    def completed(self, index: Int[Tensor, " n"], newest: Int[Tensor, " n"]) -> Int[Tensor, "n K"]:
        """What is said in the tick that the newest columns complete; makes room for the next."""
        if self._latest_said:
            column = newest[:, None] - self._latest_said + self._said_delays
            said = self._ids[index[:, None], column % self._num_slots, self._said_index]
        else:  # what was written last is complete
            said = self.said(index, newest)
        expired = schedule.expired_column(self._layout, newest) % self._num_slots
        self._ids[index, expired] = OPEN
        if self._has_slow_heard:
            for ring in self._floats.values():
                ring[index, expired] = 0
        return said
