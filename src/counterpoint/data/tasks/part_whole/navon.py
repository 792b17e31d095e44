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

_NO_ODD = "-"
_ODD = "!"
_FITS = "."


@dataclass(frozen=True, kw_only=True, slots=True)
class Navon(ExactMatch):
    """Find the digit of the one block whose letter breaks the motif of the other blocks.

    Each block shows its letter in most of its cells. The letters of the blocks repeat a motif,
    except for one odd block. The questions are "joint", the digit of the odd block; "whole",
    the letter of the block that would come next; and "part", the digit of a named block. A
    "verdict" about each block, "!" if it is the odd one, may follow. In half of the texts the
    odd block shows a letter of the motif, and only these texts count as "joint": only its place
    shows that it is odd. In the others its letter is foreign to the motif ("joint, foreign
    letter"). The whole is the part of the motif shown so far.

    Attributes:
        num_blocks: Number of blocks; at most 26.
        block_symbols: Number of cells of a block.
        period: Number of letters of the motif.
        majority: Share of cells that show the block's letter; the others show random letters.
        num_letters: Number of letters that cells may show.
        foreign_share: Share of the odd blocks whose letter is foreign.
        odd_share: Share of the texts that have an odd block; in the others "-" is the answer.
        num_named: Number of blocks whose digit is asked by name.
        verdicts: Whether there are verdicts about all blocks after the other questions.

    Source: global and local letters of Navon (1977), as text.
    """

    name: ClassVar[str] = "navon"
    primary: ClassVar[str] = "joint"
    num_blocks: int = 16
    block_symbols: int = 16
    period: int = 4
    majority: float = 0.6
    num_letters: int = 16
    foreign_share: float = 0.5
    odd_share: float = 1.0
    num_named: int = 1
    verdicts: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.period < self.num_blocks <= 26:
            raise UserError(
                "A text must have up to 26 blocks, more than its motif has letters, which are 2 or "
                f"more: got {self.num_blocks} and {self.period}."
            )
        if not self.period < self.num_letters <= 26 or self.block_symbols < 2:
            raise UserError(
                "There must be up to 26 letters, more than the motif has, and a block must have 2 "
                f"cells or more: got {self.num_letters} and {self.block_symbols}."
            )
        if not 1 <= self.num_named <= self.num_blocks:
            raise UserError(f"`num_named` must be 1 to the number of blocks: got {self.num_named}.")

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        questions = len("J=0 G=a") + self.num_named * len(" LA=0")
        verdicts = len(" V=") + self.num_blocks if self.verdicts else 0
        return self.num_blocks * (self.block_symbols + 1) + questions + verdicts

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        letters = ascii_lowercase[: self.num_letters]
        motif = rng.sample(letters, self.period)
        odd = rng.randrange(self.period, self.num_blocks)
        shown = [motif[block % self.period] for block in range(self.num_blocks)]
        foreign = rng.random() < self.foreign_share
        has_odd = rng.random() < self.odd_share
        if has_odd:
            own = [letter for letter in letters if (letter not in motif) == foreign]
            shown[odd] = rng.choice([letter for letter in own if letter != shown[odd]])
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
        asked = [rng.randrange(self.num_blocks)]
        if self.num_named > 1:
            others = [block for block in range(self.num_blocks) if block != asked[0]]
            asked += rng.sample(others, self.num_named - 1)
        writer.write("J=")
        kind = "joint, foreign letter" if has_odd and foreign else "joint"
        writer.answer(kind, numbers[odd] if has_odd else _NO_ODD)
        writer.write(" G=")
        writer.answer("whole", motif[self.num_blocks % self.period])
        for block in asked:
            writer.write(f" L{ascii_uppercase[block]}=")
            writer.answer("part", numbers[block])
        if self.verdicts:
            writer.write(" V=")
            for block in range(self.num_blocks):
                writer.answer("verdict", _ODD if has_odd and block == odd else _FITS)
        return writer.item(asked=asked)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": self._rule,
            "random block": self._all_fit(self._random_block),
            "last two blocks": self._all_fit(self._last_blocks),
            "last half": self._all_fit(self._last_half),
            "last half, period against period": self._all_fit(self._periods),
            "unordered blocks": self._all_fit(self._unordered),
        }

    def _all_fit(self, policy: ItemPolicy) -> ItemPolicy:
        """Return a policy that also says of every block that it fits, as most blocks do."""

        def completed(item: Item, rng: random.Random) -> Replies:
            asked = enumerate(item.answers)
            fits = {number: _FITS for number, one in asked if one.kind == "verdict"}
            return {**fits, **policy(item, rng)}

        return completed

    def _rule(self, item: Item, rng: random.Random) -> Replies:
        """Answer by the rule that reads all cells and counts."""
        blocks = _blocks(item, self.num_blocks)
        shown = [_letter(block) for block in blocks]
        motif = [
            Counter(shown[place :: self.period]).most_common(1)[0][0]
            for place in range(self.period)
        ]
        wrong = [i for i, letter in enumerate(shown) if letter != motif[i % self.period]]
        given = {
            0: _digit(blocks[wrong[0]]) if wrong else _NO_ODD,
            1: motif[self.num_blocks % self.period],
        }
        given |= _numbered(2, [_digit(blocks[block]) for block in item.facts["asked"]])
        if self.verdicts:
            marks = [_ODD if block in wrong[:1] else _FITS for block in range(self.num_blocks)]
            given |= _numbered(len(given), marks)
        return given

    def _unordered(self, item: Item, rng: random.Random) -> Replies:
        """Know the number of blocks that show each letter, but not their order."""
        blocks = _blocks(item, self.num_blocks)
        counts = Counter(map(_letter, blocks))
        letter = min(counts, key=lambda one: (counts[one] > 1, -counts[one]))
        odd = rng.choice([block for block in blocks if _letter(block) == letter])
        shown = rng.choice(list(counts))
        named = [_digit(rng.choice(blocks)) for _ in item.facts["asked"]]
        return {0: _digit(odd), 1: shown} | _numbered(2, named)

    def _random_block(self, item: Item, rng: random.Random) -> Replies:
        blocks = _blocks(item, self.num_blocks)
        block = rng.choice(blocks[self.period :])
        letter = _letter(rng.choice(blocks))
        named = [_digit(rng.choice(blocks)) for _ in item.facts["asked"]]
        return {0: _digit(block), 1: letter} | _numbered(2, named)

    def _last_blocks(self, item: Item, rng: random.Random) -> Replies:
        blocks = _blocks(item, self.num_blocks)
        digit = _digit(rng.choice(blocks[-2:]))
        # The next block repeats the one that stands a period before it.
        letter = _letter(blocks[-2] if self.period == 2 else rng.choice(blocks[-2:]))
        named = [
            _digit(blocks[block]) if block >= self.num_blocks - 2 else rng.choice(digits)
            for block in item.facts["asked"]
        ]
        return {0: digit, 1: letter} | _numbered(2, named)

    def _last_half(self, item: Item, rng: random.Random) -> Replies:
        """Count in the second half of the blocks alone, and guess what only the first half says."""
        blocks = _blocks(item, self.num_blocks)
        seen = range(self.num_blocks - self.num_blocks // 2, self.num_blocks)
        counts: dict[int, Counter[str]] = {}
        for block in seen:
            counts.setdefault(block % self.period, Counter())[_letter(blocks[block])] += 1
        wrong = [
            block
            for block in seen
            if counts[block % self.period][_letter(blocks[block])]
            < max(counts[block % self.period].values())
        ]
        digit = _digit(blocks[rng.choice(wrong or list(seen))])
        own = counts.get(self.num_blocks % self.period)
        letter = own.most_common(1)[0][0] if own else _letter(blocks[rng.choice(seen)])
        named = [
            _digit(blocks[block]) if block in seen else rng.choice(digits)
            for block in item.facts["asked"]
        ]
        return {0: digit, 1: letter} | _numbered(2, named)

    def _periods(self, item: Item, rng: random.Random) -> Replies:
        """Compare the blocks of the second half that stand a number of periods apart.

        Of two that differ, the odd one shows a letter that is rarer at its place of the motif, or,
        if both are as rare, a letter that another place shows too. If none differ, it is a guess.
        """
        blocks = _blocks(item, self.num_blocks)
        half = self.num_blocks - self.num_blocks // 2
        shown = {i: _letter(blocks[i]) for i in range(half, self.num_blocks)}
        at_place = Counter((i % self.period, letter) for i, letter in shown.items())
        anywhere = Counter(shown.values())
        num_letters = Counter(place for place, _ in at_place)
        differ = [i for i in shown if num_letters[i % self.period] > 1]
        odd = max(
            differ,
            key=lambda i: (-at_place[i % self.period, shown[i]], anywhere[shown[i]]),
            default=None,
        )
        digit = rng.choice(digits) if odd is None else _digit(blocks[odd])
        return {**self._last_half(item, rng), 0: digit}


def _blocks(item: Item, num_blocks: int) -> list[str]:
    return item.text.split(" ")[:num_blocks]


def _letter(block: str) -> str:
    """Return the letter that a block shows most often."""
    return Counter(cell for cell in block if cell.isalpha()).most_common(1)[0][0]


def _digit(block: str) -> str:
    return next(cell for cell in block if cell.isdigit())


def _numbered(first: int, texts: list[str]) -> dict[int, str]:
    """Return texts as replies, the first of which has the number ``first``."""
    return dict(enumerate(texts, first))
