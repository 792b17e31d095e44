"""T2: a hidden plan, shown at the beginning, determines the end of every later block."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_letters, ascii_lowercase, digits
from typing import ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    draw,
)
from counterpoint.errors import UserError

_SYMBOLS = digits + ascii_letters + "+-"  # 64
_CUES = "!#$%&()*,./:;<>?"  # 16


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedCloze(ExactMatch):
    """Write the end of a block from its first symbol and from a plan that stands long before it.

    The plan z is one of 16. Blocks 0 to 2 show it in noisy cues. Some blocks later, a block with
    first symbol s and number i ends with symbol (s + 4 z + i) mod 64: without z the symbol is one
    of 16, without s one of 64. Only the first such block counts as "joint", because the later ones
    ("joint, plan shown") can also be derived from the block before. The whole is the cue of the
    plan, after the blocks that show it.

    Attributes:
        num_plans: Number of plans: 2, 4, 8 or 16.
        num_blocks: Number of blocks, the three with cues included.
        block_symbols: Number of symbols of a block before its last one.
        num_cues: Number of cues in each of the first three blocks.
        noise: Share of cues that show a random plan.
        distance: Number of blocks between the cues and the first block that ends as the plan says.
    """

    name: ClassVar[str] = "cloze"
    primary: ClassVar[str] = "joint"
    num_plans: int = 16
    num_blocks: int = 16
    block_symbols: int = 12
    num_cues: int = 4
    noise: float = 0.2
    distance: int = 8

    def __post_init__(self) -> None:
        if self.num_blocks <= self._first or not 1 <= self.num_cues < self.block_symbols:
            raise UserError(
                "A text must have more than 3 blocks and the distance, with fewer cues than a "
                f"block has symbols: got {self.num_blocks} with a distance of {self.distance}, "
                f"{self.num_cues} and {self.block_symbols}."
            )
        if self.num_plans not in (2, 4, 8, 16):
            raise UserError(f"`num_plans` must be 2, 4, 8 or 16: got {self.num_plans}.")

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.num_blocks * (self.block_symbols + 3)

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        plan = rng.randrange(self.num_plans)
        writer = Writer()
        for block in range(self.num_blocks):
            first = rng.choice(_SYMBOLS)
            cells = rng.choices(ascii_lowercase, k=self.block_symbols - 1)
            if block < 3:
                for place in rng.sample(range(len(cells)), self.num_cues):
                    noisy = rng.random() < self.noise
                    cells[place] = _CUES[rng.randrange(self.num_plans) if noisy else plan]
            if block == 3:
                writer.label(_CUES[plan])
            writer.write(first + "".join(cells))
            writer.write("=")
            if block < self._first:
                writer.write(rng.choice(_SYMBOLS))
            else:
                kind = "joint" if block == self._first else "joint, plan shown"
                writer.answer(kind, self._last(first, plan, block))
            writer.write(" ")
        return writer.item()

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": self._rule,
            "without the plan": self._without_plan,
            "without the symbol": self._without_symbol,
            "block before": self._block_before,
        }

    @property
    def _first(self) -> int:
        """The first block that ends as the plan says."""
        return 3 + self.distance

    def _last(self, first: str, plan: int, block: int) -> str:
        """Return the last symbol of a block."""
        step = len(_SYMBOLS) // self.num_plans
        return _SYMBOLS[(_SYMBOLS.index(first) + step * plan + block) % len(_SYMBOLS)]

    def _ends(self, item: Item, plan: int) -> Replies:
        blocks = item.text.split(" ")[self._first : self.num_blocks]
        return {
            number: self._last(block[0], plan, self._first + number)
            for number, block in enumerate(blocks)
        }

    def _rule(self, item: Item, rng: random.Random) -> Replies:
        """Answer by the rule that counts the cues."""
        cues = Counter(symbol for symbol in item.text if symbol in _CUES)
        return self._ends(item, _CUES.index(cues.most_common(1)[0][0]))

    def _without_plan(self, item: Item, rng: random.Random) -> Replies:
        return self._ends(item, rng.randrange(self.num_plans))

    def _block_before(self, item: Item, rng: random.Random) -> Replies:
        """Read a block and the one before, whose end shows the plan except for the first block."""
        told = self._ends(item, rng.randrange(self.num_plans))
        shown = {number: one.text for number, one in enumerate(item.answers)}
        return {**shown, 0: told[0]}

    def _without_symbol(self, item: Item, rng: random.Random) -> Replies:
        return {number: rng.choice(_SYMBOLS) for number in range(len(item.answers))}
