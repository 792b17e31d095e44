"""Solutions that are written symbol by symbol."""

from types import SimpleNamespace

import pytest

from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.evaluate import solutions
from counterpoint.runtime.sampler import Sampling


class Writes:
    """Sessions that write a given text."""

    running = False
    sampled: tuple[int, ...] = ()

    def __init__(self, *_args: object, **_settings: object) -> None: ...

    def start(self, *_args: object, **_settings: object) -> None: ...

    def feed(self, _prompts: object) -> None: ...

    def __getitem__(self, _row: int) -> SimpleNamespace:
        return SimpleNamespace(sampled=self.sampled)


@pytest.mark.parametrize(("strange", "is_right"), [((), True), ((200,), False), ((256,), False)])
def test_a_solution_is_judged_with_all_that_was_written(
    strange: tuple[int, ...], is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is no symbol makes an answer wrong, as it does in reinforcement."""
    item = Reasoning(families=("arithmetic",)).item(0, 0)
    *ids, end = item.solution.encode()
    monkeypatch.setattr(Writes, "sampled", (*ids, *strange, end))
    monkeypatch.setattr(solutions, "Sessions", Writes)
    (text,) = solutions.written(None, [item], [Sampling(temperature=0.0)])
    assert judge(item, text).is_right == is_right
