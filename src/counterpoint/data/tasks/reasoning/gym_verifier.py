"""The verifiers of the package reasoning-gym, which judge answers to its own questions."""

from functools import lru_cache
from typing import Any

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.reasoning.family import written_answer
from counterpoint.errors import UserError, nearest
from counterpoint.packages import optional_module

ENTRY = "entry"
"""Name of the package's own entry in the facts of an item."""


def gym_reward(item: Item, solution: str) -> float:
    """Return the package's score, 0 to 1, of the answer in a solution; 0 without an answer.

    Args:
        item: Item of `GymReasoning`.
        solution: The solution, with "#" before its answer and a line break after it.
    """
    answer = written_answer(solution)
    if answer is None:
        return 0.0
    entry = item.facts[ENTRY]
    return float(gym_entries(entry["metadata"]["source_dataset"]).score_answer(answer, entry))


@lru_cache(maxsize=128)
def gym_entries(family: str) -> Any:
    """Return the package's data set of a family, which makes entries when they are asked for."""
    known = optional_module("reasoning_gym.factory").DATASETS
    if family not in known:
        raise UserError(
            f"`families` must be data sets of reasoning-gym: got {family!r}. "
            f"{nearest(family, known)}"
        )
    return optional_module("reasoning_gym").create_dataset(family, seed=0, size=1 << 48)
