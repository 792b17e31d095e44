"""A batch: rows of ticks with their targets and document boundaries."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import Ticks


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
        num_bytes: Bytes of text in the targets, the unit of bits/byte; frames, of speech.
        elements: For systems that write a tick element by element: all elements at the targets,
            those that carry no loss as well. Empty: the targets.
    """

    ticks: Ticks
    targets: Ticks
    document_start: Int[Tensor, "B T"]
    num_bytes: int
    elements: Ticks = field(default_factory=dict)

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
