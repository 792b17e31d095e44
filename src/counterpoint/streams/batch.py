"""A batch: rows of ticks with their targets and document boundaries."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import Ticks

ContentUnit = Literal["byte", "frame"]
"""What the size of content counts: bytes of text, or frames of speech."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of packed documents, as every system reads them.

    Every document starts at a multiple of the layout's `block_ticks` within its row, so no block
    crosses a document.

    Attributes:
        ticks: Elements that are read, by stream.
        targets: For each stream that is predicted, the element that the state at each tick must
            produce next; `UNSET_ID` carries no loss.
        document_start: First tick, within the row, of the document each tick belongs to.
        size: How much the targets are, in ``unit``; what losses are reported by.
        elements: For systems that write a tick element by element: all elements at the targets,
            those that carry no loss as well. Empty: the targets.
        unit: Bytes of text, or frames of speech.
        kind: Batches of one kind are learned from with moments of their own; see
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
        """The same batch on another device."""
        return replace(
            self,
            ticks={name: ids.to(device, non_blocking=True) for name, ids in self.ticks.items()},
            targets={name: ids.to(device, non_blocking=True) for name, ids in self.targets.items()},
            elements={
                name: ids.to(device, non_blocking=True) for name, ids in self.elements.items()
            },
            document_start=self.document_start.to(device, non_blocking=True),
        )
