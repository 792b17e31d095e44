"""Order: which rows every step reads, as a pure function of the seed and the step."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch


@runtime_checkable
class Rows(Protocol):
    """A finite number of rows of equal length."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The rows at ``indices``."""
        ...


@runtime_checkable
class TitledRows(Rows, Protocol):
    """Rows that can say where they come from."""

    def title(self, index: int) -> str:
        """Where a row comes from, in words."""
        ...


class HeldOutRows:
    """Rows that are scored one by one; it follows `counterpoint.data.source.HeldOutUnits`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def title(self, index: int) -> str:
        """Where a row comes from, or its number."""
        return self.rows.title(index) if isinstance(self.rows, TitledRows) else f"row {index}"

    def batches(self, index: int) -> Iterator[Batch]:
        """A row, as a batch of its own."""
        yield self.rows.rows(np.array([index]))


class Loader:
    """Batches by step. Nothing is carried from one step to the next, so any step can come first.

    Every epoch reads all rows in a new order that depends on the seed and the epoch alone, and the
    batch that ends an epoch goes on into the next: no row is dropped. The global batch of a step is
    the same at every world size; rank r reads its r-th part.

    Args:
        rows: What is read.
        batch_rows: Rows of the global batch; a multiple of ``world_size``.
        seed: Decides the order.
        rank: This process, 0 first.
        world_size: Number of processes.

    Raises:
        UserError: There are no rows, or the batch cannot be shared out evenly.
    """

    def __init__(
        self, rows: Rows, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
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
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """This rank's part of the global batch of a step, 0 first."""
        return self.rows.rows(self.indices(step))

    def indices(self, step: int) -> Int[np.ndarray, " B"]:
        """Rows that this rank reads at a step, 0 first."""
        if step < 0:
            raise UserError(f"`step` must be >= 0, got {step}.")
        share = self.batch_rows // self.world_size
        slots = step * self.batch_rows + self.rank * share + np.arange(share)
        epochs, places = np.divmod(slots, len(self.rows))
        return np.concatenate(
            [self._epoch_order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )

    def _epoch_order(self, epoch: int) -> Int[np.ndarray, " N"]:
        """Permutation of all rows; the latest one is kept, only to save time."""
        if epoch != self._epoch:
            # The raw stream of a bit generator is the same in all NumPy versions; `permutation`
            # of a `Generator` is not promised to be, and a run must resume after an upgrade.
            keys = np.random.Philox(np.random.SeedSequence((self.seed, epoch)))
            self._order = np.argsort(keys.random_raw(len(self.rows)), kind="stable")
            self._epoch = epoch
        return self._order
