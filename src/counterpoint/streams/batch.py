"""A batch: rows of ticks with their targets and document boundaries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.spec import Ticks

ContentUnit = Literal["byte", "frame"]
"""The unit in which the size of content is counted: bytes of text, or frames of speech."""


class Amount(NamedTuple):
    """What was read of a source, as sums that add up over rows, steps and processes.

    Attributes:
        rows: Number of rows.
        tokens: Number of ticks that are followed by an element to predict: no padding.
        targets: Number of ticks that carry a loss.
        items: Number of items that begin in the rows: documents, sections or items of a task.
        unique_items: Number of those that the run had not read before, by their content.
    """

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    items: int = 0
    unique_items: int = 0


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
        amounts: What the rows hold of each source, by name; empty if nobody counts. All processes
            have the same names in the same order.
        numbers: Numbers of the rows by name, with the rows first, for a loss that needs more than
            targets; no system reads them.
        lengths: Number of real ticks of each row. Those after them are padding without targets, and
            no loss may depend on them. ``None`` means that all are real.
    """

    ticks: Ticks
    targets: Ticks
    document_start: Int[Tensor, "B T"]
    size: int
    elements: Ticks = field(default_factory=dict)
    unit: ContentUnit = "byte"
    kind: str = ""
    amounts: Mapping[str, Amount] = field(default_factory=dict)
    numbers: Mapping[str, Shaped[Tensor, "B ..."]] = field(default_factory=dict)
    lengths: Int[Tensor, " B"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy of the batch on another device."""

        def there(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(
            self.mapped(there),
            numbers={name: own.to(device, non_blocking=True) for name, own in self.numbers.items()},
            lengths=None if self.lengths is None else there(self.lengths),
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with all tensors of ticks changed: elements of streams, and starts."""
        ticks, targets, elements = (
            {name: change(x) for name, x in named.items()}
            for named in (self.ticks, self.targets, self.elements)
        )
        start = change(self.document_start)
        return replace(self, ticks=ticks, targets=targets, elements=elements, document_start=start)

    def rows(self, taken: slice | Int[Tensor, " b"]) -> "Batch":
        """Return some of the rows; the size and the amounts stay those of the whole batch."""
        return replace(
            self.mapped(lambda x: x[taken]),
            numbers={name: own[taken] for name, own in self.numbers.items()},
            lengths=None if self.lengths is None else self.lengths[taken],
        )


def join_batches(batches: Sequence[Batch], dim: int = 0) -> Batch:
    """Return batches of the same streams, unit and kind as one.

    Their sizes and amounts are added. Rows below each other keep their numbers and lengths.

    Args:
        batches: The batches, at least one.
        dim: 0 puts their rows below each other, 1 their ticks one after another.

    Raises:
        UserError: The batches differ in unit, kind or the names of streams or numbers; or ticks are
            put after ticks of rows that have numbers or lengths, which tell of whole rows.
    """
    if len(batches) == 1:
        return batches[0]
    forms = [_form(batch) for batch in batches]
    for form in forms[1:]:
        if form != forms[0]:
            raise UserError(
                "Batches that are joined must have the same unit, kind, streams and numbers: got "
                f"{forms[0]} and {form}. Join batches of one source."
            )
    if dim and any(batch.numbers or batch.lengths is not None for batch in batches):
        raise UserError(
            "Rows that are joined tick after tick must have neither numbers nor lengths, which "
            "belong to whole rows: got both or one of them. Add them after joining."
        )

    def together(named: Sequence[Mapping[str, Tensor]], at: int = dim) -> dict[str, Tensor]:
        return {name: torch.cat([own[name] for own in named], at) for name in named[0]}

    return replace(
        batches[0],
        ticks=together([batch.ticks for batch in batches]),
        targets=together([batch.targets for batch in batches]),
        elements=together([batch.elements for batch in batches]),
        document_start=torch.cat([batch.document_start for batch in batches], dim),
        size=sum(batch.size for batch in batches),
        amounts=_added([batch.amounts for batch in batches]),
        numbers=together([batch.numbers for batch in batches], 0),
        lengths=_lengths(batches),
    )


def _form(batch: Batch) -> tuple[object, ...]:
    """Return what batches must share to be joined."""
    names = (batch.ticks, batch.targets, batch.elements, batch.numbers)
    return (batch.unit, batch.kind, *(sorted(named) for named in names))


def _added(amounts: Sequence[Mapping[str, Amount]]) -> dict[str, Amount]:
    total: dict[str, Amount] = {}
    for own in amounts:
        for name, amount in own.items():
            before = total.get(name, Amount())
            total[name] = Amount(*(a + b for a, b in zip(before, amount, strict=True)))
    return total


def _lengths(batches: Sequence[Batch]) -> Int[Tensor, " B"] | None:
    """Return the lengths of the rows of all batches; where none are given, all ticks are real."""
    if all(batch.lengths is None for batch in batches):
        return None
    return torch.cat(
        [
            torch.full_like(batch.document_start[:, 0], batch.document_start.shape[1])
            if batch.lengths is None
            else batch.lengths
            for batch in batches
        ]
    )
