from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
import torch
from torch import nn

from counterpoint.runtime import threads
from counterpoint.runtime.generate import generate
from counterpoint.runtime.talk import Conversation
from counterpoint.runtime.threads import few_threads, in_few_threads
from counterpoint.systems.contract import System
from counterpoint.train import threads as trial
from counterpoint.train.threads import computing
from tests.runtime import tiny
from tests.runtime.talking import echo_speaker


@pytest.fixture(autouse=True)
def _four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four cores, on which more threads are faster."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trial, "_num_cores", lambda: 4)
    monkeypatch.setattr(threads, "time_threads", _faster)
    with computing(4):
        yield


def _faster(models: object, numbers: tuple[int, ...], rows: int) -> dict[int, float]:
    return {number: 1 / number for number in numbers}


def _slower(models: object, numbers: tuple[int, ...], rows: int) -> dict[int, float]:
    return {number: float(number) for number in numbers}


def sized(inputs: int, outputs: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(inputs, outputs)


@pytest.mark.parametrize(
    ("model", "expected"),
    [(sized(4, 4), 1), (sized(8_000, 4_000), 2), (sized(100_000, 10_000), 4)],
)
def test_threads_grow_with_the_model_and_come_back(model: nn.Module, expected: int) -> None:
    with few_threads(model):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_a_large_model_on_a_busy_machine_computes_with_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "time_threads", _slower)
    with few_threads(sized(100_000, 10_000)):
        assert torch.get_num_threads() == 1


def test_a_number_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with computing(3), few_threads(sized(4, 4)):
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with few_threads(sized(4, 4)):
        assert torch.get_num_threads() == 4


def _used(system: System) -> list[int]:
    """Return a list that gets the number of threads of each product of a model."""
    found = list[int]()
    for module in system.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda *_: found.append(torch.get_num_threads()))
    return found


@pytest.mark.parametrize("whole_from", [None, range(1, 20)])
def test_a_program_writes_text_with_few_threads_and_keeps_its_own(
    whole_from: Sequence[int] | None,
) -> None:
    system = tiny.two_stream(lag_blocks=0)
    used = _used(system)
    written = generate(system, list(range(1, 13)), num_ticks=6, whole_from=whole_from)
    between = [torch.get_num_threads() for _ in islice(written, 5)]
    assert set(used) == {1}
    assert between == [4] * 5
    with computing(3):
        used.clear()
        next(written)
    assert used
    assert set(used) == {1}  # chosen when the text began


def test_a_program_talks_with_few_threads_and_keeps_its_own() -> None:
    talker = echo_speaker()
    used = _used(talker.system)
    conversation = Conversation(talker)
    used.clear()
    conversation.hear(torch.zeros(40))
    assert used
    assert set(used) == {1}
    assert torch.get_num_threads() == 4


def test_the_number_comes_back_where_an_item_fails() -> None:
    def failing() -> Iterator[int]:
        yield torch.get_num_threads()
        raise ValueError("no more")

    items = in_few_threads(sized(4, 4), failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert torch.get_num_threads() == 4
