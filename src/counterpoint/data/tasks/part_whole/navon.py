"""T1: blocks of symbols whose letters form a motif, with a digit in each block."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Navon(ExactMatch):
    """Letters within letters: each block shows its letter in most of its cells.

    The letters of the blocks repeat a motif, but for one odd block. Asked: "joint", the digit of
    the odd block; "whole", the letter of the block that would come next; "part", the digit of a
    block that is named. The whole is the motif, as far as it has been shown.

    Attributes:
        num_blocks: Blocks; at most 26.
        block_symbols: Cells of a block.
        period: Letters of the motif.
        majority: Share of cells that show the block's letter; the others show any.
        num_letters: Letters that cells may show.

    Source: global and local letters of Navon (1977), as text.
    """

    name: ClassVar[str] = "navon"
    primary: ClassVar[str] = "joint"
    num_blocks: int = 16
    block_symbols: int = 16
    period: int = 4
    majority: float = 0.6
    num_letters: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.period < self.num_blocks <= 26:
            raise UserError(
                "A text must have up to 26 blocks, more than its motif has letters: got "
                f"{self.num_blocks} and {self.period}."
            )
        if not max(self.period, 2) <= self.num_letters <= 26 or self.block_symbols < 2:
            raise UserError(
                "Letters must be as many as the motif has, 2 to 26, and a block have 2 cells or "
                f"more: got {self.num_letters} and {self.block_symbols}."
            )

    @property
    def most_symbols(self) -> int:
        """See `ScoredTask.most_symbols`."""
        return self.num_blocks * (self.block_symbols + 1) + len("J=0 G=a LA=0")

    def item(self, seed: int, number: int) -> Item:
        """See `ScoredTask.item`."""
        rng = draw(seed, number)
        letters = ascii_lowercase[: self.num_letters]
        motif = rng.sample(letters, self.period)
        odd = rng.randrange(self.period, self.num_blocks)
        shown = [motif[block % self.period] for block in range(self.num_blocks)]
        shown[odd] = rng.choice([letter for letter in letters if letter != shown[odd]])
        numbers = rng.choices(digits, k=self.num_blocks)
        writer = Writer()
        for block, (letter, digit) in enumerate(zip(shown, numbers, strict=True), 1):
            cells = [
                letter if rng.random() < self.majority else rng.choice(letters)
                for _ in range(self.block_symbols)
            ]
            cells[rng.randrange(self.block_symbols)] = digit
            writer.write("".join(cells) + " ")
            writer.label("".join(motif[:block]))
        asked = rng.randrange(self.num_blocks)
        writer.write("J=")
        writer.answer("joint", numbers[odd])
        writer.write(" G=")
        writer.answer("whole", motif[self.num_blocks % self.period])
        writer.write(f" L{ascii_uppercase[asked]}=")
        writer.answer("part", numbers[asked])
        return writer.item(asked=asked)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """See `ScoredTask.policies`."""
        return {
            "oracle": self._rule,
            "random block": self._random_block,
            "last two blocks": self._last_blocks,
            "constant": lambda item, rng: {0: "0", 1: "a", 2: "0"},
        }

    def _rule(self, item: Item, rng: random.Random) -> Replies:
        """What the rule gives that reads all cells, by counting."""
        blocks = _blocks(item, self.num_blocks)
        shown = [_letter(block) for block in blocks]
        motif = [
            Counter(shown[place :: self.period]).most_common(1)[0][0]
            for place in range(self.period)
        ]
        wrong = [i for i, letter in enumerate(shown) if letter != motif[i % self.period]]
        odd = wrong[0] if wrong else self.period
        return {
            0: _digit(blocks[odd]),
            1: motif[self.num_blocks % self.period],
            2: _digit(blocks[item.facts["asked"]]),
        }

    def _random_block(self, item: Item, rng: random.Random) -> Replies:
        blocks = _blocks(item, self.num_blocks)
        block = rng.choice(blocks[self.period :])
        return {0: _digit(block), 1: _letter(rng.choice(blocks)), 2: _digit(rng.choice(blocks))}

    def _last_blocks(self, item: Item, rng: random.Random) -> Replies:
        blocks = _blocks(item, self.num_blocks)
        asked = item.facts["asked"]
        known = asked >= self.num_blocks - 2
        return {
            0: _digit(rng.choice(blocks[-2:])),
            1: _letter(rng.choice(blocks[-2:])),
            2: _digit(blocks[asked]) if known else rng.choice(digits),
        }


def _blocks(item: Item, num_blocks: int) -> list[str]:
    return item.text.split(" ")[:num_blocks]


def _letter(block: str) -> str:
    """The letter that a block shows most."""
    return Counter(cell for cell in block if cell.isalpha()).most_common(1)[0][0]


def _digit(block: str) -> str:
    return next(cell for cell in block if cell.isdigit())
