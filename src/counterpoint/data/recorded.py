"""Recorded batches, which are made once and read by several runs, such as all arms of a study."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from counterpoint.data.source import BatchSource
from counterpoint.errors import UserError
from counterpoint.files import whole_file
from counterpoint.streams.batch import Batch, join_batches
from counterpoint.streams.spec import UNSET_ID, Ticks

_SMALLEST = torch.int16
"""Type in which ids are stored if they fit."""


class Recorded(NamedTuple):
    """The first steps of a `BatchSource`, one tensor for each stream.

    Attributes:
        ticks: Elements to be read, (N, T, ...) for all rows of all steps in order.
        targets: Elements to be predicted.
        elements: See `Batch.elements`.
        document_start: First tick of each tick's document.
        sizes: `Batch.size` of every step.
        batch_rows: Number of rows of a step.
        unit: See `Batch.unit`.
        lengths: Number of real ticks of the rows of every step; those after them are padding.
    """

    ticks: Ticks
    targets: Ticks
    elements: Ticks
    document_start: Tensor
    sizes: list[int]
    batch_rows: int
    unit: str
    lengths: list[int]

    @property
    def num_ticks(self) -> int:
        """Number of ticks of a row, with padding."""
        return self.document_start.shape[1]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step without padding; see `BatchSource.batch`.

        Raises:
            UserError: The step was not recorded.
        """
        if not 0 <= step < len(self.sizes):
            raise UserError(
                f"`step` must be one of the {len(self.sizes)} that were recorded: got {step}. "
                "Record more steps."
            )
        real = slice(self.lengths[step])

        def read(x: Tensor) -> Tensor:
            return x[:, real].float() if x.is_floating_point() else x[:, real].long()

        return replace(self.stored(step, step + 1).mapped(read), size=self.sizes[step])

    def after(self, num_steps: int) -> "Recorded":
        """Return the batches that follow the first ``num_steps``; there must be one or more."""
        rows = self.stored(num_steps, len(self.sizes))
        return self._replace(
            ticks=rows.ticks,
            targets=rows.targets,
            elements=rows.elements,
            document_start=rows.document_start,
            sizes=self.sizes[num_steps:],
            lengths=self.lengths[num_steps:],
        )

    def stored(self, first: int, stop: int) -> Batch:
        """Return the rows of several steps as one batch, as they are stored, with padding."""
        rows = slice(first * self.batch_rows, stop * self.batch_rows)
        every = Batch(
            ticks=self.ticks,
            targets=self.targets,
            elements=self.elements,
            document_start=self.document_start,
            size=0,
            unit=self.unit,  # type: ignore[arg-type]
        )
        return every.mapped(lambda x: x[rows])


def record(source: BatchSource, num_steps: int, *, half_features: bool = False) -> Recorded:
    """Read the first steps of a source.

    Args:
        source: Source of batches of equally many rows, of no particular kind. Batches that are
            shorter than the longest one are padded; see `padded`.
        num_steps: Number of steps, at least one.
        half_features: Store features of continuous streams in 16 bits.

    Raises:
        UserError: Batches differ in their number of rows, or rows have numbers or lengths.
    """
    feature = torch.float16 if half_features else None
    batches = [_smaller(source.batch(step), feature) for step in range(num_steps)]
    lengths = [batch.document_start.shape[1] for batch in batches]
    batches = [padded(batch, max(lengths)) for batch in batches]
    rows = {len(batch.document_start) for batch in batches}
    if len(rows) > 1:
        raise UserError(f"Recorded batches must have equally many rows: got {sorted(rows)}.")
    every = join_batches(batches)
    if every.numbers or every.lengths is not None:
        raise UserError(
            "Recorded batches must have neither numbers nor lengths of rows, which are not stored: "
            "got some. Read the source itself."
        )
    return Recorded(
        ticks=every.ticks,
        targets=every.targets,
        elements=every.elements,
        document_start=every.document_start,
        sizes=[one.size for one in batches],
        batch_rows=rows.pop(),
        unit=every.unit,
        lengths=lengths,
    )


def record_once(
    source: BatchSource, num_steps: int, path: Path, *, half_features: bool = False
) -> Recorded:
    """Return the result of `record`, from a file if it was written there before.

    Args:
        source: See `record`.
        num_steps: See `record`.
        path: Path of the file; its name must identify the content.
        half_features: See `record`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(tuple(record(source, num_steps, half_features=half_features)), partial)
    return read_recorded(path)


def read_recorded(path: Path) -> Recorded:
    """Return recorded batches from a file, which is read as far as it is needed."""
    return Recorded(*torch.load(path, mmap=True, weights_only=True))


def padded(batch: Batch, num_ticks: int) -> Batch:
    """Return a batch with more ticks, which carry no loss.

    The first tick of the padding is the element after the last tick, which a system may read to
    write it. Then a stream that has empty slots has only such slots; others repeat an element, so
    that all are valid. Nothing that carries a loss reads anything behind the first tick.
    """
    missing = num_ticks - batch.document_start.shape[1]
    if not missing:
        return batch
    ticks = {
        name: torch.cat((x, batch.elements.get(name, x)[:, -1:].to(x)), 1)
        for name, x in batch.ticks.items()
    }
    return replace(
        batch,
        ticks={name: _longer(x, missing - 1) for name, x in ticks.items()},
        targets={name: _longer(x, missing, empty=True) for name, x in batch.targets.items()},
        elements={name: _longer(x, missing) for name, x in batch.elements.items()},
        document_start=_longer(batch.document_start, missing),
    )


def _longer(
    x: Shaped[Tensor, "B T *_rest"], missing: int, *, empty: bool | None = None
) -> Shaped[Tensor, "B T2 *_rest"]:
    """Return longer rows: with empty slots if the stream has any, or with its last elements."""
    is_feature = x.is_floating_point()
    empty = empty or (not is_feature and bool((x == UNSET_ID).any()))
    behind = torch.full_like(x[:, -1:], 0 if is_feature else UNSET_ID) if empty else x[:, -1:]
    return torch.cat((x, behind.expand(-1, missing, *x.shape[2:])), 1)


def _smaller(batch: Batch, feature: torch.dtype | None) -> Batch:
    """Return the same elements in as few bytes as they need, features in the given type."""

    def small(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x if feature is None else x.to(feature)
        limits = torch.iinfo(_SMALLEST)
        return x.to(_SMALLEST) if limits.min <= x.min() <= x.max() <= limits.max else x

    return batch.mapped(small)
