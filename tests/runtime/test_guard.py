"""Overlapping calls and calls behind a fork are refused; calls in turn are not."""

import os
import subprocess
import sys
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


WRONG_KINDS = """
import torch
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.sampler import Sampling
from counterpoint.systems.moshi import Moshi, tiny
engine = Engine(Moshi(tiny()).agent_alone(), 2)
session = engine.admit()
ids = torch.zeros(1, 2).long()
calls = [
    lambda: engine.step(None),
    lambda: engine.step([session]),
    lambda: engine.step({None: {}}),
    lambda: engine.step({"0": {}}),
    lambda: engine.step({session: None}),
    lambda: engine.step({session: {1: 2}}),
    lambda: engine.step({session: {"user_semantic": None}}),
    lambda: engine.admit(3),
    lambda: engine.admit(prompt=3),
    lambda: engine.admit(prompt={"text": 3}),
    lambda: engine.admit(prompt={1: ids}),
    lambda: engine.admit(voice=3),
    lambda: engine.reset("0"),
    lambda: engine.end(None),
    lambda: engine.end(0.0),
    lambda: engine.share("a", 3),
    lambda: engine.share("a", {"text": [1]}),
    lambda: engine.unshare(3),
    lambda: Sampling(temperature="1"),
    lambda: Sampling(top_k=1.5),
    lambda: Sampling(seed=None),
]
for number, call in enumerate(calls):
    try:
        call()
        print(number, "was accepted")
    except ValueError as error:
        assert "\\n" not in str(error)
print(engine.running)
"""


def test_wrong_kinds_of_arguments_are_errors_of_one_line() -> None:
    """In a process of its own, in which no test checks annotations."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WRONG_KINDS], env=environment, capture_output=True, check=False
    )
    assert (done.stdout.decode(), done.stderr.decode()) == ("[0]\n", "")


def test_an_engine_is_guarded() -> None:
    from counterpoint.runtime.engine import Engine
    from tests.systems.tiny_moshi import build

    engine = Engine(build("agent_only"), 2)
    with engine.guard, pytest.raises(RuntimeError, match="one thread at a time"):
        engine.admit()
    assert engine.admit() == 0
