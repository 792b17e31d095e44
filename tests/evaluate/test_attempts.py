"""Solutions that are written symbol by symbol."""

import pytest

from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.evaluate.attempts import lane_texts
from counterpoint.runtime.lanes import Lanes
from counterpoint.systems.single_stream import SingleStream
from tests.systems.tiny_models import single


@pytest.mark.parametrize(("strange", "is_right"), [((), True), ((200,), False), ((256,), False)])
def test_a_solution_is_judged_with_all_that_was_written(
    strange: tuple[int, ...], is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is no symbol makes an answer wrong, as it does in reinforcement."""
    item = Reasoning(families=("arithmetic",)).item(0, 0)
    *ids, end = item.solution.encode()
    monkeypatch.setattr(Lanes, "write", lambda *_, **__: [[[*ids, *strange, end]]])
    lanes = Lanes([SingleStream(single(32))])
    (((text,),),) = lane_texts(lanes, [item])
    assert judge(item, text).is_right == is_right
