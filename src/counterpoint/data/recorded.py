"""Recorded batches, which are made once and read by several runs, such as all arms of a study."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from counterpoint.data.source import BatchSource
from counterpoint.errors import UserError
from counterpoint.files import whole_file
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Ticks

_SMALLEST = torch.int16
"""Type in which ids are stored if they fit."""


class Recorded(NamedTuple):
    """The first steps of a `BatchSource`, one tensor for each stream.

    Attributes:
        ticks: Ids to be read, (N, T, ...) for all rows of all steps in order.
        targets: Ids to be predicted.
        elements: See `Batch.elements`.
        document_start: First tick of each tick's document.
        sizes: `Batch.size` of every step.
        batch_rows: Number of rows of a step.
        unit: See `Batch.unit`.
    """

    ticks: Ticks
    targets: Ticks
    elements: Ticks
    document_start: Tensor
    sizes: list[int]
    batch_rows: int
    unit: str

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; see `BatchSource.batch`.

        Raises:
            UserError: The step was not recorded.
        """
        if not 0 <= step < len(self.sizes):
            raise UserError(
                f"`step` must be one of the {len(self.sizes)} that were recorded: got {step}. "
                "Record more steps."
            )
        rows = slice(step * self.batch_rows, (step + 1) * self.batch_rows)
        return Batch(
            ticks={name: _read(ids[rows]) for name, ids in self.ticks.items()},
            targets={name: _read(ids[rows]) for name, ids in self.targets.items()},
            elements={name: _read(ids[rows]) for name, ids in self.elements.items()},
            document_start=self.document_start[rows].long(),
            size=self.sizes[step],
            unit=self.unit,  # type: ignore[arg-type]
        )

    def to(self, device: torch.device | str) -> "Recorded":
        """Return the same batches on another device."""
        return self._replace(
            ticks={name: ids.to(device) for name, ids in self.ticks.items()},
            targets={name: ids.to(device) for name, ids in self.targets.items()},
            elements={name: ids.to(device) for name, ids in self.elements.items()},
            document_start=self.document_start.to(device),
        )


def record(source: BatchSource, num_steps: int) -> Recorded:
    """Read the first steps of a source.

    Args:
        source: Source of batches that all have the same shape and no particular kind.
        num_steps: Number of steps, at least one.
    """
    batches = [_smaller(source.batch(step)) for step in range(num_steps)]
    first = batches[0]
    return Recorded(
        ticks={name: torch.cat([one.ticks[name] for one in batches]) for name in first.ticks},
        targets={name: torch.cat([one.targets[name] for one in batches]) for name in first.targets},
        elements={
            name: torch.cat([one.elements[name] for one in batches]) for name in first.elements
        },
        document_start=torch.cat([one.document_start for one in batches]),
        sizes=[one.size for one in batches],
        batch_rows=len(first.document_start),
        unit=first.unit,
    )


def record_once(source: BatchSource, num_steps: int, path: Path) -> Recorded:
    """Return the result of `record`, from a file if it was written there before.

    Args:
        source: See `record`.
        num_steps: See `record`.
        path: Path of the file; its name must identify the content.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(tuple(record(source, num_steps)), partial)
    return Recorded(*torch.load(path, mmap=True, weights_only=True))


def _smaller(batch: Batch) -> Batch:
    """Return the same ids in as few bytes as they need."""
    return replace(
        batch,
        ticks={name: _small(ids) for name, ids in batch.ticks.items()},
        targets={name: _small(ids) for name, ids in batch.targets.items()},
        elements={name: _small(ids) for name, ids in batch.elements.items()},
        document_start=_small(batch.document_start),
    )


def _small(ids: Tensor) -> Tensor:
    limits = torch.iinfo(_SMALLEST)
    if ids.is_floating_point() or not limits.min <= ids.min() <= ids.max() <= limits.max:
        return ids
    return ids.to(_SMALLEST)


def _read(ids: Tensor) -> Tensor:
    """Return ids as int64 for the models; features are returned unchanged."""
    return ids if ids.is_floating_point() else ids.long()
