"""The order of training rows: the rows of every step are a function of the seed and the step."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt

from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch


@runtime_checkable
class Rows(Protocol):
    """A finite number of rows of equal length."""

    def __len__(self) -> int:
        """Number of rows."""

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices`` as a batch."""


@runtime_checkable
class TitledRows(Rows, Protocol):
    """Rows that can name their source."""

    def title(self, index: int) -> str:
        """Return the source of a row, in words."""


@runtime_checkable
class CountedRows(Rows, Protocol):
    """Rows that know what they hold; of other rows every tick counts, and each is an item.

    A row holds some of the places of its source, such as items or ticks, without a gap. Rows of the
    same data of another length have the same places.
    """

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the number of ticks of each row that are followed by an element to predict."""

    def items(self, index: int) -> UInt[np.ndarray, " _n"]:
        """Return digests of the items that begin in a row: `ids_digest` of their ids alone."""

    def spans(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Return the first place of each row, and the one after its last."""

    def rest(self, spans: Int[np.ndarray, "n 2"]) -> "CountedRows":
        """Return rows of equal length of some places alone, perhaps none.

        Args:
            spans: First places, and those after the last, in order and apart.
        """


class HeldOutRows:
    """Rows that are scored one by one; a `counterpoint.data.source.HeldOutUnits`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def title(self, index: int) -> str:
        """Return the source of a row, or its number."""
        return self.rows.title(index) if isinstance(self.rows, TitledRows) else f"row {index}"

    def batches(self, index: int) -> Iterator[Batch]:
        """Yield a row as a batch of its own."""
        yield self.rows.rows(np.array([index]))


class Share(NamedTuple):
    """A part of the rows, and its weight.

    Attributes:
        rows: The rows.
        weight: Relative number of places of a batch that they take.
    """

    rows: range
    weight: float


class Loader:
    """Batches by step. A step depends on no earlier step, so steps can be read in any order.

    Every epoch reads all rows in a new order that depends only on the seed and the epoch. The batch
    that ends an epoch continues with the next one, so no row is dropped. The global batch of a step
    is the same for every number of processes; rank r reads its r-th part.

    Args:
        rows: The rows.
        batch_rows: Number of rows of the global batch; a multiple of ``world_size``.
        seed: Seed of the order.
        rank: Number of this process, counted from 0.
        world_size: Number of processes.
        shares: Parts of the rows that are read in proportion to their weights, evenly spread; each
            has its own epochs. By default all rows are read equally often.

    Raises:
        UserError: There are no rows, or the batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        rows: Rows,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[Share] = (),
    ) -> None:
        if not len(rows):
            raise UserError("The corpus is empty: a loader must have at least one row.")
        if not 0 <= rank < world_size:
            raise UserError(
                f"`rank` must be 0 to world_size - 1: got rank={rank}, world_size={world_size}."
            )
        if batch_rows < 1 or batch_rows % world_size:
            raise UserError(
                f"`batch_rows` must be a multiple of the number of processes: got "
                f"batch_rows={batch_rows}, world_size={world_size}."
            )
        if seed < 0:
            raise UserError(f"`seed` must be >= 0, got {seed}.")
        self.rows = rows
        self.batch_rows = batch_rows
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._shares = [*shares] if len(shares) > 1 else [Share(range(len(rows)), 1.0)]
        self._epochs = [-1] * len(self._shares)
        self._orders = [np.empty(0, np.int64)] * len(self._shares)

    def batch(self, step: int) -> Batch:
        """Return this rank's part of the global batch of a step, counted from 0."""
        return self.rows.rows(self.indices(step))

    def indices(self, step: int) -> Int[np.ndarray, " B"]:
        """Return the numbers of the rows that this rank reads at a step, counted from 0.

        Raises:
            UserError: ``step`` is negative.
        """
        if step < 0:
            raise UserError(f"`step` must be >= 0, got {step}.")
        share = self.batch_rows // self.world_size
        first = step * self.batch_rows + self.rank * share
        return self.at(range(first, first + share))

    def at(self, places: Sequence[int]) -> Int[np.ndarray, " B"]:
        """Return the numbers of the rows at places in the sequence of all rows that are read."""
        found = np.empty(len(places), np.int64)
        weights = [share.weight for share in self._shares]
        for i, place in enumerate(places):
            number, turn = spread_turn(place, weights)
            rows = self._shares[number].rows
            epoch, index = divmod(turn, len(rows))
            found[i] = rows[int(self._epoch_order(number, epoch)[index])]
        return found

    def _epoch_order(self, number: int, epoch: int) -> Int[np.ndarray, " N"]:
        """Return the permutation of the rows of a share; the latest one is kept to save time."""
        if epoch != self._epochs[number]:
            # The raw stream of a bit generator is the same in all NumPy versions. That of
            # `permutation` is not guaranteed, and a run must be resumable after an upgrade. The
            # first share has the same order as all rows have without shares.
            key = (self.seed, epoch, number) if number else (self.seed, epoch)
            keys = np.random.Philox(np.random.SeedSequence(key))
            random = keys.random_raw(len(self._shares[number].rows))
            self._orders[number] = np.argsort(random, kind="stable")
            self._epochs[number] = epoch
        return self._orders[number]


def spread_turn(slot: int, weights: Sequence[float]) -> tuple[int, int]:
    """Return which share a slot belongs to, and the number of that share's earlier slots.

    The first share takes slot s if ``floor((s + 1) * share)`` is more than ``floor(s * share)``, as
    in `counterpoint.data.mixture.Mixture`. The other shares divide the remaining slots in the same
    way.

    Args:
        slot: Number of the slot, counted from 0.
        weights: Relative numbers of slots of the shares, above 0.
    """
    left = sum(map(_exact, weights))
    for number, weight in enumerate(weights[:-1]):
        share = _exact(weight) / left
        before = int(slot * share)
        if int((slot + 1) * share) > before:
            return number, before
        slot -= before
        left -= _exact(weight)
    return len(weights) - 1, slot


def _exact(weight: float) -> Fraction:
    return Fraction(weight).limit_denominator(1_000_000)
