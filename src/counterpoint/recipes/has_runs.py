"""What recipes of several runs have in common: they tell which models they train."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from counterpoint.train.run import Run


@runtime_checkable
class HasRuns(Protocol):
    """A recipe that consists of runs."""

    def described_runs(self) -> Sequence[Run]:
        """Return the runs in their order, as they are before anything is measured or made.

        Raises:
            UserError: A model with which they begin is missing.
        """
