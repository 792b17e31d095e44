"""How far a run has read each of its sources, and what it has read of all of them.

A source is read in passes: all its rows in an order of their own, then all again. Where a phase
has other rows than the one before it, for their length has changed, it first reads what is left of
the pass, in its own rows, so that nothing is read twice in a pass.

All this is computed before the first step, so a checkpoint need not hold it: a run that was killed
deals the same rows and counts the same items again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from torch import nn

from counterpoint.data.loader import CountedRows, Loader, Rows
from counterpoint.data.mixture import MemberTurn
from counterpoint.digests import short_digest
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch, join_batches

_LOOK_AHEAD = 1024


@dataclass(kw_only=True, slots=True)
class Cursor:
    """How far a source has been read, through all phases.

    Attributes:
        name: Name of the source.
        most_passes: Number of times that it may be read; ``None`` for any number.
        others_take_over: Whether the other members of a phase take the share of an exhausted one;
            otherwise that is an error.
        turn: Number of rows that were read or left out, in the current rows.
        num_rows: Number of the current rows; 0 before the first phase.
        rows: Digest of what each of the rows holds with which the pass began; 0 if it has been read
            in several kinds of rows.
        read: First places of what was read in this pass, and those after the last, in order and
            apart.
    """

    name: str
    most_passes: float | None = None
    others_take_over: bool = False
    turn: int = 0
    num_rows: int = 0
    rows: int = 0
    read: Int[np.ndarray, "n 2"] = field(default_factory=lambda: np.empty((0, 2), np.int64))


@dataclass(kw_only=True, slots=True)
class ReadItems:
    """How far a run has read.

    Attributes:
        cursors: For each source by name, how far it was read.
        known: Digests of all items that were read, from whatever source; about 80 bytes each.
    """

    cursors: dict[str, Cursor]
    known: set[int] = field(default_factory=set)


class Passes:
    """The rows of a source in a phase, in passes; a `counterpoint.data.mixture.MixtureMember`.

    Args:
        cursor: How far the source has been read; it is moved.
        loader: The rows of the phase one by one, in their order.
        known: Digests of the items that the run has read; those of the rows taken are added.

    Raises:
        UserError: The rows are other ones than those before, and do not say what they hold.
    """

    def __init__(self, cursor: Cursor, loader: Loader, known: set[int]) -> None:
        self.cursor = cursor
        self.loader = loader
        self._known = known
        self._num_rows = len(loader.rows)
        self._digest = _digest(loader.rows)
        self._rest: Loader | None = None
        self._pass, within = divmod(cursor.turn, cursor.num_rows or self._num_rows)
        if within and cursor.rows != self._digest:
            rest = self._unread()
            if len(rest):
                self._rest = Loader(rest, 1, loader.seed)
            # What is left of a pass takes the last turns of it.
            cursor.turn = self._until - len(rest)
            cursor.rows = 0
        else:
            cursor.turn = self._pass * self._num_rows + within
            cursor.rows = self._digest
        cursor.num_rows = self._num_rows
        self._begin = self._ahead = cursor.turn
        self._places: list[tuple[Rows, int]] = []
        self._tokens: list[int] = []
        self._uncounted: dict[int, int] = {}

    @property
    def is_exhausted(self) -> bool:
        """Whether the source has been read as often as it may be."""
        most = self.cursor.most_passes
        return most is not None and self.cursor.turn >= int(most * self._num_rows)

    @property
    def tokens(self) -> int:
        """Number of tokens of the next row, at least 1."""
        place = self.cursor.turn - self._ahead
        if place >= len(self._places):
            self._ahead = self.cursor.turn
            place = 0
            found = [*self._parts(range(self._ahead, self._ahead + _LOOK_AHEAD))]
            self._places = [(rows, int(index)) for rows, some in found for index in some]
            self._tokens = [int(count) for part in found for count in _tokens(*part)]
        return max(self._tokens[place], 1)

    def take(self) -> tuple[MemberTurn, Amount]:
        """Take the next row; what it holds is counted without targets."""
        tokens = self.tokens
        items = self._items(*self._places[self.cursor.turn - self._ahead])
        turn = MemberTurn(self.cursor.name, self.cursor.turn)
        self.cursor.turn += 1
        num_known = len(self._known)
        self._known.update(items)
        num_unique = len(self._known) - num_known
        return turn, Amount(rows=1, tokens=tokens, items=len(items), unique_items=num_unique)

    def leave(self) -> None:
        """Note in the cursor what was read of the pass in which the phase ends."""
        cursor = self.cursor
        number, within = divmod(cursor.turn, self._num_rows)
        begin = self._begin
        if number > self._pass:
            begin = number * self._num_rows
            cursor.rows = self._digest
            cursor.read = cursor.read[:0]
        if within:
            parts = self._parts(range(begin, cursor.turn))
            cursor.read = _united([cursor.read, *(_spans(*part) for part in parts)])

    def read(self, turns: Sequence[int]) -> Batch:
        """Return the rows of turns, which are in order, as a batch."""
        return join_batches([rows.rows(indices) for rows, indices in self._parts(turns)])

    def attach(self, model: nn.Module) -> None:
        """Do nothing: stored rows do not ask for the model."""

    @property
    def _until(self) -> int:
        """First turn of the pass that follows the one in which the phase begins."""
        return (self._pass + 1) * self._num_rows

    def _unread(self) -> CountedRows:
        """Return the rows of the phase that hold what is left of the pass."""
        rows = self.loader.rows
        if not isinstance(rows, CountedRows):
            raise UserError(
                f"Source {self.cursor.name!r} must keep its rows in all phases, because they do "
                f"not say what they hold: {self.cursor.num_rows} rows became {len(rows)} before "
                "all were read. Give the phases the same `row_ticks`."
            )
        read = self.cursor.read
        begins = np.concatenate(([0], read[:, 1]))
        ends = np.concatenate((read[:, 0], _spans(rows, np.array([len(rows) - 1]))[:, 1]))
        return rows.rest(np.stack((begins, ends), 1)[begins < ends])

    def _parts(self, turns: Sequence[int]) -> Iterator[tuple[Rows, Int[np.ndarray, " _n"]]]:
        """Yield rows and the numbers of those of turns: of what is left of a pass, then others."""
        early = [turn for turn in turns if self._rest is not None and turn < self._until]
        if self._rest is not None and early:
            # The number of the pass is that of the order, as without a rest.
            first = self._until - len(self._rest.rows) * (self._pass + 1)
            yield self._rest.rows, self._rest.at([turn - first for turn in early])
        if len(early) < len(turns):
            yield self.loader.rows, self.loader.at(turns[len(early) :])

    def _items(self, rows: Rows, index: int) -> list[int]:
        """Return digests of the items that begin in a row; a row that is not counted is one."""
        if isinstance(rows, CountedRows):
            found: list[int] = rows.items(index).tolist()
            return found
        if index not in self._uncounted:
            batch = rows.rows(np.array([index]))
            content = [*batch.ticks.values(), *batch.elements.values()]
            self._uncounted[index] = short_digest(b"".join(x.numpy().tobytes() for x in content))
        return [self._uncounted[index]]


def _tokens(rows: Rows, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    if isinstance(rows, CountedRows):
        return rows.tokens(indices)
    return np.full(len(indices), rows.rows(indices[:1]).document_start.shape[1])


def _spans(rows: Rows, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"]:
    """Return the places of rows; those that are not counted are one place each."""
    if isinstance(rows, CountedRows):
        return rows.spans(indices)
    return np.stack((indices, indices + 1), 1)


def _digest(rows: Rows) -> int:
    """Return a digest of the places of all rows, which is not 0."""
    return short_digest(_spans(rows, np.arange(len(rows))).astype("<i8").tobytes()) or 1


def _united(spans: Sequence[Int[np.ndarray, "_n 2"]]) -> Int[np.ndarray, "_m 2"]:
    """Return spans in order, those that touch as one."""
    found = np.concatenate(spans)
    found = found[np.argsort(found[:, 0], kind="stable")]
    ends = np.maximum.accumulate(found[:, 1])
    is_first = np.concatenate(([True], found[1:, 0] > ends[:-1]))
    is_last = np.concatenate((is_first[1:], [True]))
    return np.stack((found[is_first, 0], ends[is_last]), 1)
