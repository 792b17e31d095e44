"""The toy task of Multi-Token Attention: find the block that holds all letters of a query.

Every letter of the query is in several blocks, and only one block has them all. A weight of plain
attention depends on one query and one key, so no single one can tell that block from the others.

Source: arXiv:2504.00927 v2, section 4.1, which has up to 50 blocks. Deviation: the other letters of
the query are put into other blocks too, as far as they are not there by chance, so that a single
letter never gives the block away.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar, Literal

from counterpoint.data.tasks.items import ExactMatch, Item, ItemPolicy, Replies, Writer, draw
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSearch(ExactMatch):
    """Blocks of letters, a query of some letters, and the block that has them all.

    The score is "block", the share of right answers.

    Attributes:
        num_blocks: Number of blocks.
        block_letters: Number of different letters of a block.
        query_letters: Number of letters of the query, in random order.
        asked: What is asked of the block: all its letters, the first one or the last one.
    """

    name: ClassVar[str] = "block_search"
    primary: ClassVar[str] = "block"
    num_blocks: int = 50
    block_letters: int = 5
    query_letters: int = 2
    asked: Literal["all", "first", "last"] = "all"

    def __post_init__(self) -> None:
        if not 2 <= self.query_letters < self.block_letters <= 13:
            raise UserError(
                "A query must have 2 letters or more, and fewer than a block, which has up to 13: "
                f"got {self.query_letters} and {self.block_letters}."
            )
        if self.num_blocks <= self.query_letters:
            raise UserError(
                f"There must be more blocks than the {self.query_letters} letters of a query: got "
                f"{self.num_blocks}."
            )

    @property
    def most_symbols(self) -> int:
        """Number of symbols of an item; see `ScoredTask.most_symbols`."""
        answer = self.block_letters if self.asked == "all" else 1
        return self.num_blocks * (self.block_letters + 1) + self.query_letters + 2 + answer

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        found = rng.sample(ascii_lowercase, self.block_letters)
        query = rng.sample(found, self.query_letters)
        others: list[list[str]] = []
        while len(others) < self.num_blocks - 1:
            block = rng.sample(ascii_lowercase, self.block_letters)
            if len(others) < len(query) and query[len(others)] not in block:
                block[rng.randrange(self.block_letters)] = query[len(others)]
            if not set(query) <= set(block):
                others.append(block)
        rng.shuffle(others)
        place = rng.randrange(self.num_blocks)
        others.insert(place, found)
        writer = Writer()
        writer.write("".join("".join(block) + "." for block in others))
        writer.write("#" + "".join(query) + "=")
        writer.answer("block", self._told("".join(found)))
        return writer.item(blocks=["".join(block) for block in others], query=query)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": lambda item, rng: self._with(item, rng, self.query_letters),
            "first letter": lambda item, rng: self._with(item, rng, 1),
            "any block": lambda item, rng: self._with(item, rng, 0),
        }

    def _with(self, item: Item, rng: random.Random, known: int) -> Replies:
        """Answer with a random block that has the first letters of the query."""
        letters = set(item.facts["query"][:known])
        return {
            0: self._told(rng.choice([one for one in item.facts["blocks"] if letters <= set(one)]))
        }

    def _told(self, block: str) -> str:
        return {"all": block, "first": block[0], "last": block[-1]}[self.asked]
