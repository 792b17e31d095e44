"""The union of corpora, item by item."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from counterpoint.data.tasks.items import ExactMatch, ItemPolicy, is_scored
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedReasoning(ExactMatch):
    """All items of several corpora, each as often as the others; a `ScoredTask`.

    The items for training are those of the first corpus, followed by those of the second one and so
    on; then they repeat. Items for scoring are taken from the corpora in turn.

    Attributes:
        parts: The corpora, with limited numbers of items.
    """

    name: ClassVar[str] = "joined reasoning"
    primary: ClassVar[str] = Reasoning.primary
    parts: tuple[Reasoning, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(part.unique for part in self.parts):
            raise UserError(
                "`parts` must be corpora with a number of `unique` items each: got "
                f"{[part.unique for part in self.parts]}. Set `unique` above 0."
            )

    @property
    def unique(self) -> int:
        """Number of different items for training."""
        return sum(part.unique for part in self.parts)

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return max(part.most_symbols for part in self.parts)

    def item(self, seed: int, number: int) -> ReasoningItem:
        """Return the item with a number; see `ScoredTask.item`."""
        if is_scored(seed):
            turn, place = divmod(number, len(self.parts))
            return self.parts[place].item(seed, turn)
        number %= self.unique
        stops = list(itertools.accumulate(part.unique for part in self.parts))
        place = next(place for place, stop in enumerate(stops) if number < stop)
        return self.parts[place].item(seed, number - stops[place] + self.parts[place].unique)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `Reasoning.policies`."""
        return self.parts[0].policies()
