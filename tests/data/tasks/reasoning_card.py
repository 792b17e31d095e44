"""Diversity, quality and length of reasoning items, measured from the items themselves.

As a program it prints the table of docs/guides/reasoning.md:
python -m tests.data.tasks.reasoning_card
"""

import math
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from counterpoint.data.tasks.reasoning.corpora import corpora
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.tasks.reasoning.joined import JoinedReasoning

NUM_ITEMS = 600


class DataCard(NamedTuple):
    """What some items are like.

    num_items: Number of items.
    unique_items: Number of different ones.
    family_bits: Entropy of the family, in bits.
    template_bits: Entropy of the family and the template together.
    right_answers: Share of the items whose answer is right, by the check of their text.
    valid_steps: Share of the written steps that follow from what is before them.
    written_steps: Number of written steps, as a share of those that are needed.
    solution_symbols: Mean length of a solution.
    """

    num_items: int
    unique_items: int
    family_bits: float
    template_bits: float
    right_answers: float
    valid_steps: float
    written_steps: float
    solution_symbols: float


def data_card(items: Sequence[ReasoningItem]) -> DataCard:
    """Measure some items; nothing is taken from the corpus of which they are."""
    verdicts = [judge(item, item.solution) for item in items]
    written = sum(verdict.num_steps for verdict in verdicts)
    return DataCard(
        num_items=len(items),
        unique_items=len({item.id for item in items}),
        family_bits=_bits(item.family for item in items),
        template_bits=_bits((item.family, item.template) for item in items),
        right_answers=sum(verdict.is_right for verdict in verdicts) / len(items),
        valid_steps=sum(verdict.num_valid for verdict in verdicts) / max(written, 1),
        written_steps=written / sum(verdict.num_needed for verdict in verdicts),
        solution_symbols=sum(len(item.solution) for item in items) / len(items),
    )


def _bits(values: Iterable[Hashable]) -> float:
    counts = Counter(values)
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * math.log2(share) for share in shares)


def main() -> None:
    for name, task in corpora(100_000).items():
        if isinstance(task, Reasoning | JoinedReasoning):
            card = data_card([task.item(0, number) for number in range(NUM_ITEMS)])
            told = (f"{field} {value:.4g}" for field, value in card._asdict().items())
            sys.stdout.write(f"{name}: {', '.join(told)}\n")


if __name__ == "__main__":
    main()
