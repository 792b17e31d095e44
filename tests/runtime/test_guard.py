"""Overlapping calls and calls behind a fork are refused; calls in turn are not."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from counterpoint.runtime.guard import Guard, guarded


class Counter:
    """Counts, and waits in the middle where it is asked to."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.count = 0
        self.entered, self.leave = threading.Event(), threading.Event()

    @guarded
    def add(self, number: int = 1, *, wait: bool = False) -> int:
        if wait:
            self.entered.set()
            assert self.leave.wait(10)
        if number < 0:
            raise ValueError(number)
        self.count += number
        return self.count


def test_calls_in_turn_are_fine_whatever_their_thread() -> None:
    counter = Counter()
    with pytest.raises(ValueError, match="-1"):
        counter.add(-1)
    for number in range(1, 5):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(counter.add).result() == number


def test_overlapping_calls_are_refused() -> None:
    counter = Counter()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(counter.add, 5, wait=True)
        assert counter.entered.wait(10)
        with pytest.raises(RuntimeError, match="one thread at a time"):
            counter.add()
        counter.leave.set()
        assert first.result() == 5
    assert counter.add() == 6


@pytest.mark.filterwarnings("ignore:This process")
def test_calls_behind_a_fork_are_refused() -> None:
    counter = Counter()
    child = os.fork()
    if child == 0:
        try:
            counter.add()
        except RuntimeError as error:
            os._exit(7 if "was forked off" in str(error) else 8)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
