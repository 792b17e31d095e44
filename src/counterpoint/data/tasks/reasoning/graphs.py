"""Reachability in a directed graph, by breadth-first search."""

import random
from itertools import pairwise
from string import ascii_letters

from counterpoint.data.tasks.reasoning.family import Family, Solver, SolverStep, another, require

_NODES = ascii_letters
_NOTHING = "-"


def _statement(operations: int, shape: random.Random, values: random.Random) -> str:
    """Return a graph, the start of one of its two paths, and the end of this or of the other path.

    Both paths have one edge more than operations, and edges that lead back. Half of the answers are
    "yes", and what is near the two nodes looks the same for both answers.
    """
    length = operations + 2
    letters = values.sample(_NODES, 2 * length)
    paths = (letters[:length], letters[length:])
    edges = {one + other for path in paths for one, other in pairwise(path)}
    for _ in range(1 + operations // 2):
        first, last = sorted(shape.sample(range(length - 1), 2))
        edges |= {path[last] + path[first] for path in paths}
    shown = sorted(edges)
    values.shuffle(shown)
    return f"{' '.join(shown)}, {paths[0][0]} to {values.choice(paths)[-1]}"


def _solve(statement: str) -> Solver:
    """Visit one node a step; the result lists the new nodes after it, by letter."""
    edges, start, target = _parse(statement)
    queue = [start]
    for node in queue:
        new = sorted({edge[1] for edge in edges if edge[0] == node and edge[1] not in queue})
        right = "".join(new) or _NOTHING
        unseen = [one for one in _NODES if one not in queue and one not in new]
        written = yield SolverStep(f"{node}:", right, another(right, [_NOTHING] if new else unseen))
        require(written == _NOTHING or set(written) <= set(_NODES))
        # The walk goes on even if a letter is written twice, and it ends in any case.
        queue += [one for one in dict.fromkeys(written.strip(_NOTHING)) if one not in queue]
        if target in queue:
            return "yes"
    return "no"


def _parse(statement: str) -> tuple[list[str], str, str]:
    shown, _, asked = statement.partition(", ")
    start, _, target = asked.partition(" to ")
    return shown.split(" "), start, target


def _two_steps(statement: str, rng: random.Random) -> str:
    """Know the edges of the two nodes only: a node between both shows a path."""
    edges, start, target = _parse(statement)
    after = {edge[1] for edge in edges if edge[0] == start}
    return "yes" if any(edge[0] in after for edge in edges if edge[1] == target) else "no"


GRAPHS = Family(
    name="graphs",
    wordings=(
        "{}",
        "{}?",
        "Can you walk {}?",
        "With these edges, {}?",
        "Is there a path: {}?",
        "Search the graph {}.",
        "Follow the edges {}.",
        "Say yes or no: {}?",
    ),
    statement=_statement,
    solve=_solve,
    guess={"edges of both nodes": _two_steps},
)
