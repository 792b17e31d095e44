"""A batch: rows of ticks with their targets and document boundaries."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import Ticks

ContentUnit = Literal["byte", "frame"]
"""The unit in which the size of content is counted: bytes of text, or frames of speech."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of packed documents: what every system reads and is trained on.

    Every document starts at a multiple of the layout's `block_ticks` within its row, so no block
    crosses a document.

    Attributes:
        ticks: Elements that the model reads, by stream.
        targets: For each predicted stream, the element that the state at each tick must produce
            next; `UNSET_ID` marks a position without loss.
        document_start: For each tick, the first tick of its document, counted within the row.
        size: Amount of content in the targets, counted in ``unit``; losses are divided by it when
            they are reported.
        elements: For systems that write a tick element by element: the elements at all target
            positions, including those without loss. If it is empty, ``targets`` is used.
        unit: Bytes of text, or frames of speech.
        kind: Name of the kind of batch. The optimiser keeps separate moments for each kind; see
            `counterpoint.train.optimizer.KindOptimizers`.
    """

    ticks: Ticks
    targets: Ticks
    document_start: Int[Tensor, "B T"]
    size: int
    elements: Ticks = field(default_factory=dict)
    unit: ContentUnit = "byte"
    kind: str = ""

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy of the batch on another device."""
        return replace(
            self,
            ticks={name: ids.to(device, non_blocking=True) for name, ids in self.ticks.items()},
            targets={name: ids.to(device, non_blocking=True) for name, ids in self.targets.items()},
            elements={
                name: ids.to(device, non_blocking=True) for name, ids in self.elements.items()
            },
            document_start=self.document_start.to(device, non_blocking=True),
        )
