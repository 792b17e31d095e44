import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from counterpoint.train import threads
from counterpoint.train.checkpoint import checkpoint_paths, read_manifest
from counterpoint.train.distributed import World
from counterpoint.train.threads import (
    choose_threads,
    computing,
    fixed_by,
    in_one_line,
    settle_threads,
    time_threads,
)
from tests.train.tiny import run_here, settings


class Machine:
    """A machine on which a product takes so long with 1, 2, ... threads."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = dict(zip((1, 2, 4, 6, 8), seconds, strict=False))
        self.measured: list[tuple[int, ...]] = []

    def __call__(self, numbers: Sequence[int]) -> Mapping[int, float]:
        self.measured.append(tuple(numbers))
        return {number: self.seconds[number] for number in numbers}


IDLE = (1.0, 0.5, 0.3, 0.23, 0.2)
BUSY = (1.0, 40.0, 40.0, 40.0, 40.0)
HALF_BUSY = (1.0, 0.5, 0.9, 5.0, 20.0)


@pytest.mark.parametrize(
    ("seconds", "most", "begun", "chosen", "why"),
    [
        (IDLE, 1, None, 1, ""),  # there is nothing to choose
        (IDLE, 2, None, 2, "with 2 of 2 threads: they take 0.5 times the time of 1"),
        (IDLE, 8, None, 8, "with 8 of 8 threads: they take 0.67 times the time of 4"),
        (IDLE, 6, None, 6, "with 6 of 6 threads: they take 0.77 times the time of 4"),
        (BUSY, 2, None, 1, "with 1 thread: 2 take 40 times the time"),
        (HALF_BUSY, 8, None, 2, "with 2 threads: 4 take 1.8 times the time"),
        ((1.0, 0.9), 2, None, 1, "with 1 thread: 2 take 0.9 times the time"),  # no clear gain
        (IDLE, 2, 1, 1, "with 1 thread, as the run began"),
        (BUSY, 2, 1, 1, "with 1 thread, as the run began"),
        (IDLE, 8, 2, 2, "with 2 threads, as the run began"),
        ((1.0, 1.5), 2, 2, 2, "with 2 threads, as the run began"),  # slower, but not much
        (BUSY, 2, 2, 1, "with 1 thread, although the run began with 2: they take 40 times"),
        (IDLE, 2, 8, 2, "with 2 threads, although the run began with 8: 2 can be had here"),
        (IDLE, 1, 2, 1, "with 1 thread, although the run began with 2: 1 can be had here"),
    ],
)
def test_as_many_threads_are_taken_as_make_products_faster(
    seconds: tuple[float, ...], most: int, begun: int | None, chosen: int, why: str
) -> None:
    found = choose_threads(most, begun, "", Machine(*seconds))
    assert found.num_threads == chosen
    assert found.why.startswith(why)
    assert bool(why) == bool(found.why)


@pytest.mark.parametrize(
    ("seconds", "begun", "why"),
    [
        (IDLE, None, ""),
        (IDLE, 2, ""),
        (BUSY, None, "with 2 threads, as OMP_NUM_THREADS says, but one takes less: they take 40"),
        (IDLE, 4, "with 2 threads, as OMP_NUM_THREADS says, although the run began with 4"),
    ],
)
def test_a_number_of_the_user_is_kept(
    seconds: tuple[float, ...], begun: int | None, why: str
) -> None:
    found = choose_threads(2, begun, "OMP_NUM_THREADS", Machine(*seconds))
    assert found.num_threads == 2
    assert found.why.startswith(why)
    assert bool(why) == bool(found.why)


def test_only_what_matters_is_measured() -> None:
    machine = Machine(*HALF_BUSY)
    choose_threads(8, None, "", machine)
    assert machine.measured == [(1, 2), (2, 4)]
    choose_threads(1, None, "OMP_NUM_THREADS", machine)
    choose_threads(8, 1, "", machine)
    assert len(machine.measured) == 2


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose torch has chosen a thread for each of its cores, two at least."""
    for name in threads._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with computing(max(threads._num_cores(), 2)):
        yield


def test_a_number_of_the_user_is_seen(several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fixed_by() == ""
    monkeypatch.setattr(threads, "_num_cores", lambda: 8)
    assert fixed_by() == "torch.set_num_threads"
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    assert fixed_by() == "MKL_NUM_THREADS"


def test_the_cores_of_this_process_are_counted() -> None:
    assert 1 <= threads._num_cores() <= (os.cpu_count() or 1)


def test_the_number_of_threads_ends_with_its_block() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), computing(3):
        1 / (torch.get_num_threads() - 3)
    assert torch.get_num_threads() == before
    with computing(None):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("rows", [None, 1])
def test_products_of_the_system_are_timed(rows: int | None) -> None:
    before = torch.get_num_threads()
    found = time_threads([nn.Linear(8, 32)], (1, 2), rows)
    assert [*found] == [1, 2]
    assert all(0 < seconds < 1 for seconds in found.values())
    assert torch.get_num_threads() == before


def test_what_was_chosen_for_all_work_is_not_chosen_again(several: None, tmp_path: Path) -> None:
    world = World(num_threads=1)
    assert settle_threads([nn.Linear(2, 2)], [tmp_path], world) == (world, "")
    world = World(device=torch.device("cuda"))
    assert settle_threads([nn.Linear(2, 2)], [tmp_path], world) == (world, "")


def test_a_run_keeps_its_number_or_says_that_it_changes(
    several: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(*seconds: float) -> tuple[int | None, str]:
        machine = Machine(*seconds)
        monkeypatch.setattr(threads, "time_threads", lambda systems, numbers: machine(numbers))
        world, why = settle_threads([nn.Linear(2, 2)], [tmp_path], World())
        return world.num_threads, why

    number, why = settle(*IDLE)
    assert number is not None
    assert number >= 2
    config = settings(1, keep_checkpoints=9)
    with computing(number):
        run_here(tmp_path, config)
    assert read_manifest(checkpoint_paths(tmp_path)[0])["num_threads"] == number
    assert settle(1.0, 1.2, 1.2, 1.2, 1.2) == (number, f"with {number} threads, as the run began")
    number, why = settle(*BUSY)
    assert (number, why[:39]) == (1, "with 1 thread, although the run began w")
    with computing(1):
        run_here(tmp_path, replace(config, num_steps=2))
    assert settle(*IDLE) == (1, "with 1 thread, as the run began")


@pytest.mark.parametrize(
    ("precision", "several_threads", "line"),
    [
        ("computing in float32: why", "with 1 thread", "computing in float32: why; with 1 thread"),
        ("computing in float32: why", "", "computing in float32: why"),
        ("", "with 1 thread", "computing with 1 thread"),
        ("", "", ""),
    ],
)
def test_all_is_told_in_one_line(precision: str, several_threads: str, line: str) -> None:
    assert in_one_line(precision, several_threads) == line
