"""The newest columns of every row: what it has written and heard, as long as it is needed."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from counterpoint.runtime.given import Given
from counterpoint.runtime.session import Frame
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks

OPEN = -2
"""Id of an element that is still to be written; `UNSET_ID` means that it stays empty."""

WhichRows = slice | Int[Tensor, " n"]
"""Rows of a batch: their numbers, or a slice for all of them, which indexes without a copy."""


class ColumnQueue:
    """Columns of all rows, stored by their distance to the column that each row writes next.

    When a row has written a column, its columns move by one slot. Therefore the slot of a given
    distance is a constant, whatever the positions of the rows.

    Args:
        layout: Its predicted and heard streams are stored.
        num_rows: Number of rows.
        device: Device of the tensors.

    Attributes:
        places: Places of each discrete stream's ids in a column, predicted streams first.
        num_said: Number of ids of the predicted streams in a column.
    """

    def __init__(self, layout: Layout, num_rows: int, device: torch.device) -> None:
        self._layout = layout
        self._device = device
        self._said = said = layout.predicted
        kept = [*said, *layout.heard]
        discrete = [stream for stream in kept if stream.is_discrete]
        stops = list(accumulate(stream.depth for stream in discrete))
        self.places = {
            s.name: slice(stop - s.depth, stop) for s, stop in zip(discrete, stops, strict=True)
        }
        self.num_said = sum(stream.depth for stream in said)
        distances = schedule.kept_distances(layout)
        self._next = -distances.start
        self._given = {s.name: self._next + schedule.given_distance(layout, s.name) for s in kept}
        shape = (num_rows, len(distances))
        self._ids = torch.full((*shape, stops[-1]), OPEN, device=device)
        self._open = self._ids[:, :1].clone()
        self._floats = {
            s.name: torch.zeros(*shape, s.width or 0, device=device)
            for s in kept
            if not s.is_discrete
        }
        complete = [self._next + schedule.complete_distance(layout, s.name) for s in said]
        by_id = [place for s, place in zip(said, complete, strict=True) for _ in range(s.depth)]
        self._is_newest = min(by_id) == self._next
        self._complete = torch.tensor(by_id, device=device)
        self._said_index = torch.arange(self.num_said, device=device)
        # Streams that have no element in some of the columns.
        self._slow_said = [stream for stream in said if stream.period_ticks > 1]
        # Columns of each row from the next one on in which something said may be given already.
        self._columns_given = [0] * num_rows
        self._has_slow_heard = any(stream.period_ticks > 1 for stream in layout.heard)

    def clear(self, row: int) -> None:
        """Forget all columns of a row."""
        self._ids[row] = OPEN
        self._columns_given[row] = 0
        for queue in self._floats.values():
            queue[row] = 0

    def keep(self, given: Sequence[tuple[Sequence[int], Given]]) -> None:
        """Store what rows are given in the columns to which it belongs.

        Args:
            given: Pairs of rows and the content that all of them are given.
        """
        found: list[tuple[int, int, int, int]] = []
        for rows, what in given:
            for name, ids in what.ids.items():
                column = self._given[name]
                first = self.places[name].start
                self._note_given(rows, name, column)
                found += [(r, column, first + k, one) for r in rows for k, one in enumerate(ids)]
            for name, values in what.floats.items():
                queue = self._floats[name]
                queue[list(rows), self._given[name]] = values.to(queue)
        if found:
            row, columns, place, ids_ = torch.tensor(found, device=self._device).unbind(1)
            self._ids[row, columns, place] = ids_

    def keep_tail(self, row: int, columns: Ticks, num_prompt: int) -> None:
        """Store the elements of a prompt that arrive after the session has begun to write.

        Args:
            row: Row of the session.
            columns: Columns of the prompt of this row alone, (1, T) or (1, T, K), as `check_prompt`
                returns them.
            num_prompt: Number of ticks of the prompt.
        """
        for name in (*self.places, *self._floats):
            own = columns[name][0]
            tail = schedule.tail_columns(self._layout, name, num_prompt)
            for place, column in enumerate(tail, self._next):
                self._note_given([row], name, place)
                if name in self._floats:
                    self._floats[name][row, place] = own[column] if column < len(own) else 0
                elif column < len(own):
                    self._ids[row, place, self.places[name]] = own[column]
                else:
                    found = schedule.empty_id(self._layout, self._layout[name], column)
                    self._ids[row, place, self.places[name]] = found

    def rest(self, row: int, num_ticks: int) -> None:
        """Fill the first ticks of content of a row that begins by hearing: it says nothing then."""
        for stream in self._said:
            for step in range(num_ticks // stream.period_ticks):
                place = self._next + schedule.column_of(self._layout, stream, step)
                self._note_given([row], stream.name, place)
                self._ids[row, place, self.places[stream.name]] = UNSET_ID
        self._move_up(torch.tensor([row], device=self._device))

    def _note_given(self, rows: Sequence[int], name: str, place: int) -> None:
        """Remember that a column of rows holds something in a stream that they say."""
        if self._layout[name].predicted:
            for row in rows:
                self._columns_given[row] = max(self._columns_given[row], place - self._next + 1)

    def newest(self, real: Bool[Tensor, " B"] | None) -> dict[str, Tensor]:
        """Return the newest column of every row for `System.read`; rows not real get zeros."""
        ids = self._ids[:, self._next - 1 : self._next]
        if self._has_slow_heard:  # nothing was given between the elements of a slow stream
            ids = ids.masked_fill(ids == OPEN, UNSET_ID)
        if real is not None:
            ids = ids.masked_fill(~real[:, None, None], 0)
        ticks = self.by_stream(ids)
        for name, queue in self._floats.items():
            ticks[name] = queue[:, self._next - 1 : self._next]
        return ticks

    def by_stream(self, ids: Int[Tensor, "B T K"]) -> dict[str, Tensor]:
        """Split the ids of columns by stream."""
        return {
            name: ids[..., place if self._layout[name].has_codebooks else place.start]
            for name, place in self.places.items()
        }

    def said(self, rows: WhichRows, columns: Sequence[int]) -> Int[Tensor, "n K"] | None:
        """Return the predicted ids that the next column already holds, and `OPEN` for the others.

        `UNSET_ID` means that a slow stream has no element in this column.

        Returns:
            The ids; ``None`` if no row has any.
        """
        if not self._slow_said and not any(self._columns_given):
            return None
        found = self._ids[rows, self._next, : self.num_said]
        if not self._slow_said:
            return found
        found = found.clone()
        column = torch.tensor(columns, device=self._device)
        for stream in self._slow_said:
            rests = ~schedule.may_stand(self._layout, stream, column)
            own = found[:, self.places[stream.name]]
            found[:, self.places[stream.name]] = own.masked_fill(
                rests[:, None] & (own == OPEN), UNSET_ID
            )
        return found

    def write(self, rows: WhichRows, ids: Int[Tensor, "n K"]) -> Int[Tensor, "n K"]:
        """Write the predicted ids of the next column, and make it the newest.

        Returns:
            The ids that are said in the tick that the column completes.
        """
        self._ids[rows, self._next, : self.num_said] = ids
        if not self._is_newest:
            ids = self._ids[rows][:, self._complete, self._said_index]
        self._move_up(rows)
        return ids

    def frames(self, ticks: Sequence[int], said: Int[Tensor, "n K"]) -> list[Frame]:
        """Return what each row says in a tick, in the streams that have an element in it."""
        names = [stream.name for stream in self._said]
        by_row = zip(*(said[:, self.places[name]].unbind() for name in names), strict=True)
        frames = [dict(zip(names, own, strict=True)) for own in by_row]
        for stream in self._slow_said:
            for frame, tick in zip(frames, ticks, strict=True):
                if not schedule.ends_step(stream, tick):
                    del frame[stream.name]
        return frames

    def _move_up(self, rows: WhichRows) -> None:
        """Make the next column of rows the newest column."""
        self._ids = _moved_up(self._ids, self._open, rows)
        if any(self._columns_given):
            every = range(len(self._columns_given))
            for row in every if isinstance(rows, slice) else rows.tolist():
                self._columns_given[row] = max(self._columns_given[row] - 1, 0)
        for name, queue in self._floats.items():
            self._floats[name] = _moved_up(queue, torch.zeros_like(queue[:, :1]), rows)


def _moved_up(queue: Tensor, behind: Tensor, rows: WhichRows) -> Tensor:
    """Return the moved queue as a new tensor, because models may keep views of the old one."""
    moved = torch.cat((queue[:, 1:], behind), 1)
    if isinstance(rows, slice):
        return moved
    queue = queue.clone()
    queue[rows] = moved[rows]
    return queue
