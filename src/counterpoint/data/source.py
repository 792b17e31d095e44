"""The protocols of training data; text and speech implement them.

A `DataSource` is a frozen config. Prepared for a system it becomes a `PreparedSource`: batches by
step, held-out units to be scored, and a fingerprint of the training data. Training, studies and
evaluation use data only through these protocols.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from counterpoint.errors import UserError
from counterpoint.files import whole_file
from counterpoint.progress import Progress
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout

Fingerprint = Mapping[str, Mapping[str, Any]]
"""Digests of the training data as JSON: by kind ("recordings", "text"), then by place."""


@runtime_checkable
class BatchSource(Protocol):
    """Batches by step, such as those of `counterpoint.data.loader.Loader`."""

    def batch(self, step: int) -> Batch:
        """Return this process's rows of a step, counted from 0; a function of the step alone."""


@runtime_checkable
class AsksTheModel(Protocol):
    """A `BatchSource` whose batches come from the model itself, such as rollouts."""

    def attach(self, model: nn.Module) -> None:
        """Store the model that is trained; called once, before the first batch is asked for."""


@runtime_checkable
class HasProgress(Protocol):
    """A `BatchSource` that counts something over its batches, which every checkpoint keeps."""

    @property
    def progress(self) -> Any:
        """The count, as JSON."""

    def go_on(self, progress: Any) -> None:
        """Go on from the count of a checkpoint."""


@runtime_checkable
class HeldOutUnits(Protocol):
    """Units that are held out from training, to be scored one by one."""

    def __len__(self) -> int:
        """Number of units."""

    def title(self, index: int) -> str:
        """Return the source of a unit, in words."""

    def batches(self, index: int) -> Iterator[Batch]:
        """Yield a unit as one batch, or as several batches whose loss sums are added."""


@runtime_checkable
class PreparedSource(Protocol):
    """Data that can be read for one system, or for several systems that read the same rows."""

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSource:
        """Return the training batches by step; the arguments are those of `Loader`."""

    def held_out_units(self) -> HeldOutUnits | None:
        """Return the held-out units; ``None`` if nothing is held out."""

    def describe(self) -> str:
        """Return the amount of data, in words."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Digests of the training data; they must not change when a run is resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How data are prepared.

    Attributes:
        block_ticks: Every document starts at a multiple of this many ticks; by default the layout's
            `block_ticks`. Systems that are compared use a common multiple.
        progress: Shows the progress of the work; ``None`` shows nothing.
        rank: Number of this process, counted from 0.
        world_size: Number of processes.
        held_out_only: Whether training data may be left out to save work: then no training batches
            are asked for, and the fingerprint is that of the data that was read.
    """

    block_ticks: int | None = None
    progress: Progress | None = None
    rank: int = 0
    world_size: int = 1
    held_out_only: bool = False

    @property
    def shown(self) -> Progress:
        """Progress that only the first process shows."""
        is_shown = self.progress is not None and self.rank == 0
        return self.progress if is_shown and self.progress else Progress(quiet=True)


ALONE = Preparation()
"""All data are prepared by this process."""


@runtime_checkable
class DataSource(Protocol):
    """A frozen config of data, such as `DataConfig` for text and `SpeechData` for speech."""

    def fits(self, layout: Layout) -> bool:
        """Return whether a system with this layout can read the data at all."""

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks of a training row, without prompts before it."""

    def prepare(self, system: Any, how: Preparation = ALONE) -> PreparedSource:
        """Read the data, or make them in the cache.

        Args:
            system: The system that reads the rows: its `layout` and its `lay_out` are used.
            how: How the data are read.

        Raises:
            UserError: The data cannot be used, or do not fit the system.
            OSError: The cache cannot be written.
        """


@runtime_checkable
class KeepsFiles(Protocol):
    """A data source whose models need files, such as a tokeniser.

    An exported model has copies of them beside it, and so has a run of files that it learned. The
    file of a tokeniser may be a published text model, which is never copied: an exported model has
    its tokeniser alone.
    """

    def file_names(self) -> dict[str, str]:
        """Return the name of each file, or of what is built in; learned files have no folder."""

    def find_files(self) -> dict[str, Path]:
        """Return where the files are, by the same keys, without what is built in.

        Raises:
            UserError: A file is missing and is not one that can be learned.
        """

    def with_files(self, files: Mapping[str, str]) -> Any:
        """Return the same source with files in other places."""


def existing_files(names: Mapping[str, str]) -> dict[str, Path]:
    """Return the files with these names, but for what is built in.

    Raises:
        UserError: A file is missing.
    """
    files = {
        key: Path(name).expanduser()
        for key, name in names.items()
        if name not in ("codec2", "bytes")
    }
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"Codec and tokeniser of a run must still be where they were: {file} is missing. "
                "Put it back."
            )
    return files


def copy_to_cache(file: Path, folder: str) -> None:
    """Copy a file of a model to a cache.

    Raises:
        UserError: The cache has another file of that name.
    """
    copy = Path(folder).expanduser() / file.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(copy) as partial:  # other processes may look for it
            shutil.copyfile(file, partial)
    elif copy.read_bytes() != file.read_bytes():
        raise UserError(f"{copy} must be the same file as {file} of the model: remove it.")


def attach(source: BatchSource, model: nn.Module) -> None:
    """Give the model to a source that asks for it."""
    if isinstance(source, AsksTheModel):
        source.attach(model)
