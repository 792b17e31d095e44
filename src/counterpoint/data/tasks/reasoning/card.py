"""The data card of reasoning items: what is in them, measured from the items themselves."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.errors import UserError

_GRAM = 8
_Kind = TypeVar("_Kind", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCard:
    """Diversity, quality, length and repetition of some items.

    Attributes:
        num_items: Number of items.
        unique_items: Number of different ones.
        families: Share of the items of each family.
        family_bits: Entropy of the family, in bits.
        template_bits: Entropy of the family and the template together.
        shape_bits: Entropy of the family, the number of operations and the shape together; at most
            the binary logarithm of the number of items.
        operations: Share of the items with each number of operations.
        right_answers: Share of the items whose answer is right, by the check of their text.
        valid_steps: Share of the written steps that follow from what is before them.
        written_steps: Number of written steps, as a share of those that are needed.
        mean_symbols: Mean length of an item.
        median_symbols: Median length of an item.
        long_symbols: Length that 95 % of the items do not exceed.
        solution_symbols: Mean length of a solution.
        distinct_grams: Different sequences of eight symbols, as a share of all such sequences.
    """

    num_items: int
    unique_items: int
    families: Mapping[str, float]
    family_bits: float
    template_bits: float
    shape_bits: float
    operations: Mapping[int, float]
    right_answers: float
    valid_steps: float
    written_steps: float
    mean_symbols: float
    median_symbols: float
    long_symbols: float
    solution_symbols: float
    distinct_grams: float

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as text, for a table."""
        shown = []
        for name in type(self).__slots__:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                text = ", ".join(f"{key} {share:.2f}" for key, share in value.items())
            else:
                text = f"{value:.3f}" if isinstance(value, float) else str(value)
            shown.append((name.replace("_", " "), text))
        return shown


def data_card(items: Sequence[ReasoningItem]) -> DataCard:
    """Measure some items; nothing is taken from the corpus of which they are.

    Raises:
        UserError: There are no items.
    """
    if not items:
        raise UserError("A data card must describe at least one item: got none.")
    verdicts = [judge(item, item.solution) for item in items]
    written = sum(verdict.num_steps for verdict in verdicts)
    lengths = np.array([len(item.text) for item in items])
    texts = {item.id: item.text for item in items}
    grams = [text[i : i + _GRAM] for text in texts.values() for i in range(len(text) - _GRAM + 1)]
    return DataCard(
        num_items=len(items),
        unique_items=len(texts),
        families=_shares(item.family for item in items),
        family_bits=_bits(item.family for item in items),
        template_bits=_bits((item.family, item.template) for item in items),
        shape_bits=_bits((item.family, item.operations, item.shape) for item in items),
        operations=_shares(item.operations for item in items),
        right_answers=sum(verdict.is_right for verdict in verdicts) / len(items),
        valid_steps=sum(verdict.num_valid for verdict in verdicts) / max(written, 1),
        written_steps=written / sum(verdict.num_needed for verdict in verdicts),
        mean_symbols=float(lengths.mean()),
        median_symbols=float(np.median(lengths)),
        long_symbols=float(np.quantile(lengths, 0.95, method="inverted_cdf")),
        solution_symbols=sum(len(item.solution) for item in items) / len(items),
        distinct_grams=len(set(grams)) / max(len(grams), 1),
    )


def _shares(values: Iterable[_Kind]) -> dict[_Kind, float]:
    counts = Counter(values)
    return {kind: counts[kind] / counts.total() for kind in sorted(counts, key=str)}


def _bits(values: Iterable[Hashable]) -> float:
    return -sum(share * math.log2(share) for share in _shares(values).values())
