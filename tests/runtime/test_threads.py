from collections.abc import Iterator

import pytest
import torch
from torch import nn

from counterpoint.runtime import threads
from counterpoint.runtime.threads import few_threads
from counterpoint.train import threads as trial
from counterpoint.train.threads import computing


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
