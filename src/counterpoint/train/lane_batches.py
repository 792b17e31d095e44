"""Batches of the lanes of a stack: padded to one shape, and brought to the device in time.

Recorded batches stay on the host. Some steps at a time are put side by side and copied to the
device while it still computes the steps before them, so that a stack starts at once and the memory
of the device does not depend on the number of steps.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.recorded import Recorded, padded
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Ticks

_PART_BYTES = 64_000_000
"""Bytes of the steps that are copied to the device together."""

_NAMED = ("ticks", "targets", "elements")


class StackedBatch(NamedTuple):
    """Batches of all lanes: the fields of a `Batch` with an additional first axis.

    Attributes:
        ticks: Elements to be read, (S, B, T, ...).
        targets: Elements to be predicted.
        elements: See `Batch.elements`.
        document_start: First tick of each tick's document.
        lengths: See `Batch.lengths`; ``None`` if no lane has padding.
    """

    ticks: Ticks
    targets: Ticks
    elements: Ticks
    document_start: Int[Tensor, "S B T"]
    lengths: Int[Tensor, "S B"] | None = None

    @property
    def mapped(self) -> "StackedBatch":
        """The axis of the lanes of each field, for `torch.vmap`."""
        at: Any = (0, 0, 0, 0, None if self.lengths is None else 0)
        return StackedBatch(*at)

    def lane(self) -> Batch:
        """Return one lane as a batch, within `torch.vmap`."""
        return Batch(
            ticks=self.ticks,
            targets=self.targets,
            elements=self.elements,
            document_start=self.document_start,
            size=0,
            lengths=self.lengths,
        )


@runtime_checkable
class LaneSource(Protocol):
    """Batches of all lanes, step by step.

    Attributes:
        content: The batches that were loaded; every step is written into the same tensors.
    """

    content: StackedBatch

    def load(self, step: int) -> None:
        """Write the batches of a step into `content`; steps are asked for in order."""

    def sizes(self, step: int) -> list[int]:
        """Return `Batch.size` of every lane at a step."""


class LaneBatches:
    """The recorded batches of all lanes, step by step.

    Attributes:
        content: See `LaneSource`.
        num_steps: Number of steps of the longest lane; a lane that ends before it keeps its last
            batch.

    Raises:
        UserError: The lanes have other streams, or different numbers of rows.
    """

    def __init__(self, sources: Sequence[Recorded], device: torch.device) -> None:
        _check_alike(sources)
        self._sources = sources
        self._sizes = [source.sizes for source in sources]
        self._rows = sources[0].batch_rows
        self._num_ticks = max(source.num_ticks for source in sources)
        self._device = device
        self.num_steps = max(len(source.sizes) for source in sources)
        lengths = [_extended(source.lengths, self.num_steps) for source in sources]
        self._lengths = torch.tensor(lengths, device=device).T.contiguous()
        part_step = self._buffers(1)
        step_bytes = sum(x.nbytes for x in part_step.values())
        self._part_steps = min(max(_PART_BYTES // step_bytes, 1), self.num_steps)
        self._on_device: dict[str, Tensor] = {}
        self._part = -1
        self._begin_prefetch()
        self.content = self._content(part_step)

    def _begin_prefetch(self) -> None:
        """Make the buffers of the host, and begin with the first part of the steps."""
        is_cuda = self._device.type == "cuda"
        self._hosts = [self._buffers(self._part_steps) for _ in range(1 + is_cuda)]
        if is_cuda:
            self._hosts = [
                {name: x.pin_memory() for name, x in host.items()} for host in self._hosts
            ]
        self._worker = ThreadPoolExecutor(1) if is_cuda else None
        self._next: Future[dict[str, Tensor]] | None = None
        if self._worker is not None:
            self._next = self._worker.submit(self._filled, 0)

    def _buffers(self, num_steps: int) -> dict[str, Tensor]:
        """Return empty tensors for some steps of all lanes, (N, S, B, T, ...) by name."""
        found = {}
        every = [_tensors(source) for source in self._sources]
        for name, first in every[0].items():
            dtype = reduce(torch.promote_types, [own[name].dtype for own in every])
            shape = (num_steps, len(self._sources), self._rows, self._num_ticks, *first.shape[2:])
            found[name] = torch.empty(shape, dtype=dtype)
        return found

    def _content(self, like: dict[str, Tensor]) -> StackedBatch:
        """Return the tensors that models read: ids are int64, features float32."""

        def empty(x: Tensor) -> Tensor:
            dtype = torch.float32 if x.is_floating_point() else torch.long
            return torch.zeros(x.shape[1:], dtype=dtype, device=self._device)

        named = {
            field: {
                name.removeprefix(f"{field}/"): empty(x)
                for name, x in like.items()
                if name.startswith(f"{field}/")
            }
            for field in _NAMED
        }
        start = empty(like["document_start"])
        lengths = torch.zeros(start.shape[:2], dtype=torch.long, device=self._device)
        is_padded = bool((self._lengths < self._num_ticks).any())
        return StackedBatch(**named, document_start=start, lengths=lengths if is_padded else None)

    def load(self, step: int) -> None:
        """Copy the batches of a step into `content`; steps are asked for in order."""
        part, place = divmod(step, self._part_steps)
        if part != self._part:
            self._bring(part)
        for field in _NAMED:
            for name, x in getattr(self.content, field).items():
                x.copy_(self._on_device[f"{field}/{name}"][place])
        self.content.document_start.copy_(self._on_device["document_start"][place])
        if self.content.lengths is not None:
            self.content.lengths.copy_(self._lengths[step][:, None].expand(-1, self._rows))

    def _bring(self, part: int) -> None:
        """Bring a part of the steps to the device, and begin to prepare the next one."""
        if self._worker is None or self._next is None:
            self._on_device = self._filled(part)
        else:
            host = self._next.result()
            self._on_device = {
                name: x.to(self._device, non_blocking=True) for name, x in host.items()
            }
            # The buffer that is filled next was copied a part ago.
            torch.cuda.current_stream(self._device).synchronize()
            self._next = self._worker.submit(self._filled, part + 1)
        self._part = part

    def _filled(self, part: int) -> dict[str, Tensor]:
        """Put the steps of a part side by side on the host."""
        host = self._hosts[part % len(self._hosts)]
        begin = part * self._part_steps
        for lane, source in enumerate(self._sources):
            last = len(self._sizes[lane])
            first = min(begin, last - 1)
            stop = min(begin + self._part_steps, last)
            count = max(stop - first, 1)
            batch = padded(source.stored(first, first + count), self._num_ticks)
            for name, own in _tensors(batch).items():
                x = host[name]
                x[:count, lane] = own.unflatten(0, (count, self._rows))
                x[count:, lane] = x[count - 1, lane]
        return host

    def sizes(self, step: int) -> list[int]:
        """Return `Batch.size` of every lane at a step."""
        return [sizes[min(step, len(sizes) - 1)] for sizes in self._sizes]

    def close(self) -> None:
        """End the thread that prepares steps."""
        if self._worker is not None:
            self._worker.shutdown()


def _tensors(source: Recorded | Batch) -> dict[str, Tensor]:
    """Return all tensors of batches by the name of the field and of the stream."""
    named = {f"{field}/{name}": x for field in _NAMED for name, x in getattr(source, field).items()}
    return named | {"document_start": source.document_start}


def _extended(lengths: list[int], num_steps: int) -> list[int]:
    return lengths + lengths[-1:] * (num_steps - len(lengths))


def _check_alike(sources: Sequence[Recorded]) -> None:
    first = sources[0]
    shapes = {name: x.shape[2:] for name, x in _tensors(first).items()}
    for source in sources[1:]:
        own = {name: x.shape[2:] for name, x in _tensors(source).items()}
        if own != shapes:
            unlike = sorted(
                name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name)
            )
            raise UserError(
                f"Lanes of a stack must learn from the same streams: {', '.join(unlike)} differ. "
                "Put them into another stack."
            )
        if source.batch_rows != first.batch_rows:
            raise UserError(
                "Lanes of a stack must have equally many rows a step: got "
                f"{first.batch_rows} and {source.batch_rows}. Put them into another stack."
            )
