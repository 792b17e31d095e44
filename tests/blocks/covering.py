"""Rows of options in which every pair of values of two options occurs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any


def covering_rows(options: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """A small pairwise covering array, row after row the best of some random rows."""
    dice = Random(seed)
    pairs = list(combinations(options, 2))
    left = {
        (a, i, b, j)
        for a, b in pairs
        for i in range(len(options[a]))
        for j in range(len(options[b]))
    }

    def covered(row: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
        return left & {(a, row[a], b, row[b]) for a, b in pairs}

    rows = []
    while left:
        tried = [
            {name: dice.randrange(len(values)) for name, values in options.items()}
            for _ in range(50)
        ]
        a, i, b, j = min(left)
        for row in tried:
            row[a], row[b] = i, j
        best = max(tried, key=lambda row: len(covered(row)))
        left -= covered(best)
        rows.append({name: options[name][value] for name, value in best.items()})
    return rows
