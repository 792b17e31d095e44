"""The ledger of a run: what was read of each source in each phase, and what that cost."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from counterpoint.streams.batch import Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """What was read of a source in a phase, over all processes.

    Attributes:
        phase: Name of the phase; empty for a run without phases.
        source: Name of the source.
        rows: Number of rows.
        tokens: Number of tokens, without padding.
        targets: Number of tokens that carried a loss.
        items: Number of items that began in the rows, repeated ones included.
        unique_items: Number of items that the run had not read before, in this phase or earlier,
            from whatever source; ``None`` in ledgers of versions that counted by source.
        flops: Training FLOPs of the rows.
    """

    phase: str
    source: str
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    items: int = 0
    unique_items: int | None = 0
    flops: float = 0.0

    @property
    def repetitions(self) -> int | None:
        """Number of items that the run had read before."""
        return None if self.unique_items is None else self.items - self.unique_items


@dataclass(kw_only=True, slots=True)
class Ledger:
    """Sums by phase and source; every checkpoint holds them.

    Attributes:
        entries: Entries by phase and source.
    """

    entries: dict[tuple[str, str], LedgerEntry] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self.entries.values())

    def add(self, phase: str, amounts: Mapping[str, Amount], flops_per_row: float) -> None:
        """Add what a step has read, over all processes.

        Args:
            phase: Name of the phase.
            amounts: What was read of each source.
            flops_per_row: Training FLOPs of a row.
        """
        for source, amount in amounts.items():
            if not amount.rows:
                continue
            old = self.entries.get((phase, source)) or LedgerEntry(phase=phase, source=source)
            counts = {name: getattr(old, name) + more for name, more in amount._asdict().items()}
            flops = old.flops + amount.rows * flops_per_row
            self.entries[phase, source] = LedgerEntry(
                phase=phase, source=source, flops=flops, **counts
            )

    def encoded(self) -> list[dict[str, Any]]:
        """Return the entries as JSON."""
        return [asdict(entry) for entry in self]


def read_ledger(entries: list[dict[str, Any]]) -> Ledger:
    """Return the ledger from the entries of a checkpoint.

    Older versions counted `new_items`, those that were new to a source: two sources of the same
    items counted them twice. They are left out, for they are not `unique_items`.
    """
    found = [LedgerEntry(**_current(entry)) for entry in entries]
    return Ledger(entries={(entry.phase, entry.source): entry for entry in found})


def _current(entry: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in entry.items() if name != "new_items"}
    return {"unique_items": None, **known}
