"""Solutions that are written symbol by symbol."""

from typing import Any

import pytest

from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.evaluate.attempts import lane_texts


class Writes:
    """Lanes that write given ids."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def write(self, *_args: object, **_settings: object) -> list[list[list[int]]]:
        return [[self.ids]]


@pytest.mark.parametrize(("strange", "is_right"), [((), True), ((200,), False), ((256,), False)])
def test_a_solution_is_judged_with_all_that_was_written(
    strange: tuple[int, ...], is_right: bool
) -> None:
    """An id that is no symbol makes an answer wrong, as it does in reinforcement."""
    item = Reasoning(families=("arithmetic",)).item(0, 0)
    *ids, end = item.solution.encode()
    lanes: Any = Writes([*ids, *strange, end])
    (((text,),),) = lane_texts(lanes, [item])
    assert judge(item, text).is_right == is_right
