"""T2: a hidden plan, shown at the beginning, decides how every later block ends."""

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
    of_kind,
)
from counterpoint.errors import UserError

_SYMBOLS = digits + ascii_letters + "+-"  # 64
_CUES = "!#$%&()*,./:;<>?"  # 16


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedCloze(ExactMatch):
    """Every block ends with a symbol that follows from the plan and from how the block begins.

    The plan z is one of 16. Blocks 0 to 2 show it in noisy cues. A later block with first symbol s
    and number i ends with symbol (s + 4 z + i) mod 64: without z that is one of 16, without s one
    of 64. The whole is the cue of the plan, behind the blocks that show it.

    Attributes:
        num_blocks: Blocks, the three with cues included.
        block_symbols: Symbols of a block before its last one.
        num_cues: Cues in each of the first three blocks.
        noise: Share of cues that show any plan.
    """

    name: ClassVar[str] = "cloze"
    primary: ClassVar[str] = "joint"
    num_blocks: int = 16
    block_symbols: int = 12
    num_cues: int = 4
    noise: float = 0.2

    def __post_init__(self) -> None:
        if self.num_blocks <= 3 or not 1 <= self.num_cues < self.block_symbols:
            raise UserError(
                "A text must have more than 3 blocks, with fewer cues than a block has symbols: "
                f"got {self.num_blocks}, {self.num_cues} and {self.block_symbols}."
            )

    @property
    def most_symbols(self) -> int:
        """See `ScoredTask.most_symbols`."""
        return self.num_blocks * (self.block_symbols + 3)

    def item(self, seed: int, number: int) -> Item:
        """See `ScoredTask.item`."""
        rng = draw(seed, number)
        plan = rng.randrange(len(_CUES))
        writer = Writer()
        for block in range(self.num_blocks):
            first = rng.choice(_SYMBOLS)
            cells = rng.choices(ascii_lowercase, k=self.block_symbols - 1)
            if block < 3:
                for place in rng.sample(range(len(cells)), self.num_cues):
                    noisy = rng.random() < self.noise
                    cells[place] = rng.choice(_CUES) if noisy else _CUES[plan]
            if block == 3:
                writer.label(_CUES[plan])
            writer.write(first + "".join(cells))
            last = _SYMBOLS[(_SYMBOLS.index(first) + 4 * plan + block) % len(_SYMBOLS)]
            if block < 3:
                writer.write("=" + rng.choice(_SYMBOLS) + " ")
            else:
                writer.write("=")
                writer.answer("joint", last)
                writer.write(" ")
        return writer.item()

    def policies(self) -> Mapping[str, ItemPolicy]:
        """See `ScoredTask.policies`."""
        return {
            "oracle": self._rule,
            "without the plan": self._without_plan,
            "without the symbol": self._without_symbol,
            "constant": lambda item, rng: of_kind(item, "joint", "0"),
        }

    def _ends(self, item: Item, plan: int) -> Replies:
        firsts = [block[0] for block in item.text.split(" ")[: self.num_blocks]]
        return {
            number: _SYMBOLS[(_SYMBOLS.index(firsts[block]) + 4 * plan + block) % len(_SYMBOLS)]
            for number, block in enumerate(range(3, self.num_blocks))
        }

    def _rule(self, item: Item, rng: random.Random) -> Replies:
        """What the rule gives that counts the cues."""
        cues = Counter(symbol for symbol in item.text if symbol in _CUES)
        return self._ends(item, _CUES.index(cues.most_common(1)[0][0]))

    def _without_plan(self, item: Item, rng: random.Random) -> Replies:
        return self._ends(item, rng.randrange(len(_CUES)))

    def _without_symbol(self, item: Item, rng: random.Random) -> Replies:
        return {number: rng.choice(_SYMBOLS) for number in range(len(item.answers))}
