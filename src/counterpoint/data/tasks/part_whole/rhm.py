"""T7: sentences of a random hierarchical grammar, with questions for the root and a leaf."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from string import ascii_lowercase
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

_MISSING = "_"
_MOST_SENTENCES = 100
Rules = tuple[dict[int, tuple[tuple[int, ...], ...]], ...]
"""Groups that each symbol may become, for each level from the root."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomHierarchy(ExactMatch):
    """Say the leaf that is left out of a tree and that all other leaves decide.

    The rules of the tree are the same in every item and must be learned. A symbol of a level
    becomes one of ``num_rules`` groups of the level below, and no group comes from two symbols.
    The questions are "whole", the root, and "joint", a leaf that is left out and follows from
    all others. The whole is the symbols of the quarters that have been read.

    Attributes:
        num_symbols: Number of symbols of a level; at most 26.
        num_rules: Number of groups that a symbol may become.
        num_levels: Number of levels below the root; there are ``branching ** num_levels`` leaves.
        branching: Number of symbols of a group, 2 to 4.
        labelled_share: Share of the texts that ask for the root.
        grammar: Seed of the rules.

    Source: the random hierarchy model (arXiv:2307.02129).
    """

    name: ClassVar[str] = "hierarchy"
    primary: ClassVar[str] = "joint"
    num_symbols: int = 8
    num_rules: int = 4
    num_levels: int = 6
    branching: int = 2
    labelled_share: float = 1.0
    grammar: int = 0

    def __post_init__(self) -> None:
        # With as many rules as symbols every pair is a group, and no missing leaf is determined.
        if not 2 <= self.num_symbols <= 26 or not 1 <= self.num_rules < self.num_symbols:
            raise UserError(
                "A grammar must have 2 to 26 symbols and fewer rules for each than symbols: got "
                f"{self.num_symbols} and {self.num_rules}."
            )
        if self.num_levels < 1 or not 2 <= self.branching <= 4:
            raise UserError(
                "`num_levels` must be >= 1 and `branching` 2 to 4: got "
                f"{self.num_levels} and {self.branching}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.branching**self.num_levels + len(" J=a W=a")

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rules = self._rules()
        rng = draw(seed, number)
        for _ in range(_MOST_SENTENCES):
            root = rng.randrange(self.num_symbols)
            rows = [[root]]
            for level in rules:
                rows.append([leaf for symbol in rows[-1] for leaf in rng.choice(level[symbol])])
            leaves = rows[-1]
            order = rng.sample(range(len(leaves)), len(leaves))
            missing = next((at for at in order if len(_fitting(rules, leaves, at)) == 1), None)
            if missing is not None:
                break
        else:
            raise UserError(
                f"`num_rules` must leave leaves that follow from all others: of {_MOST_SENTENCES} "
                f"sentences with {self.num_rules} rules none has one. Lower it."
            )
        shown = "".join(ascii_lowercase[leaf] for leaf in leaves)
        shown = shown[:missing] + _MISSING + shown[missing + 1 :]
        upper = rows[min(2 if self.branching == 2 else 1, self.num_levels - 1)]
        size = len(leaves) // len(upper)
        writer = Writer()
        for number in range(len(upper)):
            writer.write(shown[number * size : (number + 1) * size])
            writer.label("".join(ascii_lowercase[symbol] for symbol in upper[: number + 1]))
        writer.write(" J=")
        writer.answer("joint", ascii_lowercase[leaves[missing]])
        if rng.random() < self.labelled_share:
            writer.write(" W=")
            writer.answer("whole", ascii_lowercase[root])
        return writer.item(leaves=leaves, missing=missing)

    def groups(self, item: Item) -> Mapping[str, Sequence[int]]:
        """Return the places of the leaves that are shown by "level 1" to the root's level.

        A leaf has the level of the smallest tree that it shares with the leaf before it: 1 within a
        group of leaves. The first leaf shares none. See `GroupsSymbols`.
        """
        found: dict[str, list[int]] = {}
        for place in range(1, self.branching**self.num_levels):
            level = 1
            while place % self.branching**level == 0:
                level += 1
            if place != item.facts["missing"]:
                found.setdefault(f"level {level}", []).append(place)
        return found

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        rules = self._rules()

        def oracle(item: Item, rng: random.Random) -> Replies:
            leaves = list(item.facts["leaves"])
            missing = item.facts["missing"]
            leaf = _fitting(rules, leaves, missing)[0]
            leaves[missing] = leaf
            return {0: ascii_lowercase[leaf], 1: ascii_lowercase[_root(rules, leaves) or 0]}

        def siblings(num_levels: int) -> ItemPolicy:
            """Return a policy that reads the subtree of so many levels around the missing leaf."""
            size = self.branching**num_levels

            def policy(item: Item, rng: random.Random) -> Replies:
                first = item.facts["missing"] // size * size
                leaves = item.facts["leaves"][first : first + size]
                at = item.facts["missing"] - first
                leaf = rng.choice(_fitting(rules[-num_levels:], leaves, at))
                return {0: ascii_lowercase[leaf]}

            return policy

        def last_branch(item: Item, rng: random.Random) -> Replies:
            leaves = item.facts["leaves"]
            last = _root(rules[1:], leaves[-(len(leaves) // self.branching) :])
            roots = [s for s, groups in rules[0].items() if any(g[-1] == last for g in groups)]
            return {1: ascii_lowercase[rng.choice(roots)]}

        return {
            "oracle": oracle,
            "siblings": siblings(1),
            "subtree of two levels": siblings(2),
            "last branch": last_branch,
        }

    def _rules(self) -> Rules:
        size = (self.num_levels, self.num_symbols, self.num_rules, self.branching)
        return _rules(self.grammar, *size)


@lru_cache(maxsize=8)
def _rules(
    grammar: int, num_levels: int, num_symbols: int, num_rules: int, branching: int
) -> Rules:
    rng = random.Random(f"grammar {grammar}")
    levels = []
    for _ in range(num_levels):
        groups = list(product(range(num_symbols), repeat=branching))
        chosen = rng.sample(groups, num_symbols * num_rules)
        levels.append(
            {
                symbol: tuple(chosen[symbol * num_rules : (symbol + 1) * num_rules])
                for symbol in range(num_symbols)
            }
        )
    return tuple(levels)


def _root(rules: Rules, leaves: Sequence[int]) -> int | None:
    """Return the symbol whose tree has these leaves, or ``None`` if there is none."""
    row = list(leaves)
    for level in reversed(rules):
        parents = {group: symbol for symbol, groups in level.items() for group in groups}
        size = len(next(iter(parents)))
        above = [parents.get(tuple(row[at : at + size])) for at in range(0, len(row), size)]
        if None in above:
            return None
        row = [symbol for symbol in above if symbol is not None]
    return row[0]


def _fitting(rules: Rules, leaves: Sequence[int], at: int) -> list[int]:
    """Return the symbols that may stand at a leaf, given all others."""
    fitting = []
    for symbol in rules[-1]:
        tried = [*leaves[:at], symbol, *leaves[at + 1 :]]
        if _root(rules, tried) is not None:
            fitting.append(symbol)
    return fitting or list(rules[-1])
