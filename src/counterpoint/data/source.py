"""What a run learns from, as training sees it; text and speech are two implementations.

A `DataSource` is a frozen config. Prepared for a system it gives a `PreparedSource`: batches by
step, held-out units to be scored, and a fingerprint of what is learned from. Training, studies and
evaluation know nothing else of their data.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from counterpoint.progress import Progress
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout

Fingerprint = Mapping[str, Mapping[str, Any]]
"""What is learned from, as JSON: by its noun ("recordings", "text"), digests by place."""


@runtime_checkable
class BatchSource(Protocol):
    """Batches by step, such as those of `counterpoint.data.loader.Loader`."""

    def batch(self, step: int) -> Batch:
        """This process's rows of step ``step`` (0 first), a pure function of the step."""
        ...


@runtime_checkable
class AsksTheModel(Protocol):
    """A `BatchSource` whose batches come from the model itself, such as rollouts."""

    def attach(self, model: nn.Module) -> None:
        """Keep the model that is trained; called once, before the first batch is asked for."""
        ...


@runtime_checkable
class HeldOutUnits(Protocol):
    """Units that are kept from training, to be scored one by one."""

    def __len__(self) -> int:
        """Number of units."""
        ...

    def title(self, index: int) -> str:
        """Where a unit comes from, in words."""
        ...

    def batches(self, index: int) -> Iterator[Batch]:
        """A unit, in one batch or in several whose sums of losses are added up."""
        ...


@runtime_checkable
class PreparedSource(Protocol):
    """Data that can be read for one system, or for several that read the same rows."""

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSource:
        """What a run learns from, step by step; arguments as for `Loader`."""
        ...

    def held_out_units(self) -> HeldOutUnits | None:
        """What is only measured on; ``None`` where nothing is held out."""
        ...

    def describe(self) -> str:
        """How much there is, in words."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """What is learned from; a run that goes on must find it unchanged."""
        ...


@runtime_checkable
class DataSource(Protocol):
    """A frozen config of data: `DataConfig` of text and `SpeechData` of speech follow it."""

    def fits(self, layout: Layout) -> bool:
        """Whether a system with this layout can read the data at all."""
        ...

    def num_ticks(self, layout: Layout) -> int:
        """Ticks in a row to learn from, without what is put before it, such as prompts."""
        ...

    def prepare(
        self,
        system: Any,
        *,
        block_ticks: int | None = None,
        progress: Progress | None = None,
        rank: int = 0,
        world_size: int = 1,
        held_out_only: bool = False,
    ) -> PreparedSource:
        """Read the data, or make them in the cache.

        Args:
            system: Reads the rows: it has a `layout` and lays content out as batches.
            block_ticks: Every document starts at a multiple of this many ticks; by default the
                layout's `block_ticks`. Systems that are compared take their common multiple.
            progress: Shows how far the work is; ``None`` for silence.
            rank: This process, 0 first.
            world_size: Number of processes.
            held_out_only: What is learned from may be left out, where that saves work: no batches
                are asked for, and the fingerprint is that of what is read.

        Raises:
            UserError: The data cannot be used, or do not fit the system.
            OSError: The cache cannot be written.
        """
        ...


def attach(source: BatchSource, model: nn.Module) -> None:
    """Give the model to a source that asks for it."""
    if isinstance(source, AsksTheModel):
        source.attach(model)
