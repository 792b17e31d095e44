"""Reasoning beside the text: the steps are in the stream of the whole, and the text waits.

A system whose whole is text writes its thoughts there. In the part a step is a block of dots, which
gives the thought its time, and nothing else. The whole of the block of dots is the end of the
step's result, `counterpoint.data.tasks.reasoning.corpus.LABEL_SYMBOLS` symbols. A step of the whole
covers whole blocks, so dots also fill the block in which the question ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from counterpoint.data.tasks.items import ExactMatch, ItemPolicy, WholeLabel
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.errors import UserError

WAITING = "."


@dataclass(frozen=True, kw_only=True, slots=True)
class AsideReasoning(ExactMatch):
    """Questions whose steps are labels of the whole; a `ScoredTask`.

    Attributes:
        task: The questions.
        block_ticks: Ticks of a step of the whole.
        has_thoughts: Whether the items have thoughts; otherwise the answer follows the question.
        most_symbols: Largest number of symbols of an item.
    """

    name: ClassVar[str] = "reasoning aside"
    primary: ClassVar[str] = Reasoning.primary
    task: Reasoning
    block_ticks: int = 8
    has_thoughts: bool = True
    most_symbols: int = 64

    def item(self, seed: int, number: int) -> ReasoningItem:
        """Return the item with a number; see `ScoredTask.item`.

        Raises:
            UserError: It is longer than `most_symbols`.
        """
        item = self.task.item(seed, number)
        labels = item.whole if self.has_thoughts else ()
        # The id that begins a document takes tick 0, so the question ends with this tick.
        last = len(item.prompt)
        filling = -(last + 1) % self.block_ticks if labels else 0
        waiting = WAITING * (filling + self.block_ticks * len(labels))
        answer_start = last + len(waiting)
        text = f"{item.prompt}{waiting}{item.text[item.answer_start :]}"
        if len(text) > self.most_symbols:
            raise UserError(
                f"`most_symbols` must be the length of the longest item: got {self.most_symbols}, "
                f"and one has {len(text)}. Raise it."
            )
        (own,) = item.answers
        return replace(
            item,
            text=text,
            answers=(replace(own, start=answer_start + 1),),
            whole=tuple(
                WholeLabel(last + filling + self.block_ticks * place, label.text)
                for place, label in enumerate(labels, 1)
            ),
            answer_start=answer_start,
        )

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return no policies: those of `task` answer its own items."""
        return {}


def are_thoughts(item: ReasoningItem, labels: Sequence[str], block_ticks: int) -> bool:
    """Return whether labels that were written beside a solution are the thoughts of its item.

    Args:
        item: An item of `AsideReasoning` that has thoughts.
        labels: Label of each step of the whole that ends after the prompt, in order. Those after
            the thoughts do not matter.
        block_ticks: Ticks of a step of the whole.
    """
    # The id that begins a document takes tick 0.
    first = (1 + len(item.prompt)) // block_ticks
    places = {label.start // block_ticks - first: label.text for label in item.whole}
    return all(place < len(labels) and labels[place] == label for place, label in places.items())
