"""The number of threads that a session needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from counterpoint.train.threads import choose_threads, computing, fixed_by, time_threads

_WEIGHTS_A_THREAD = 16_000_000

_Item = TypeVar("_Item")


def threads_of_session(model: nn.Module) -> int | None:
    """Return the number of threads that makes the ticks of one session fastest.

    The products of one tick of a small model take microseconds, and after each of them all threads
    wait for the slowest. If other programs use the cores, a thread may wait for its core a hundred
    times as long: a conversation of 13 s then took ten minutes with two threads, and 30 s with one.
    Therefore a small model gets one thread, and for a large one products of a tick are measured.

    Args:
        model: A model on a CPU.

    Returns:
        A number that is not larger than that of torch; ``None`` if the user has fixed the number,
        which is then kept.
    """
    if fixed_by():
        return None
    num_weights = sum(weight.numel() for weight in model.parameters())
    most = max(1, min(torch.get_num_threads(), num_weights // _WEIGHTS_A_THREAD))
    choice = choose_threads(most, None, "", lambda numbers: time_threads([model], numbers, rows=1))
    return choice.num_threads


@contextmanager
def few_threads(model: nn.Module) -> Iterator[None]:
    """Compute in the block with the threads of one session (`threads_of_session`)."""
    with computing(threads_of_session(model)):
        yield


def in_few_threads(model: nn.Module, items: Iterator[_Item]) -> Iterator[_Item]:
    """Give items, each of which is computed with the threads of one session.

    Between the items the number of threads is the caller's own.

    Args:
        model: The model that computes the items.
        items: What it computes, item by item.
    """
    num_threads = threads_of_session(model)
    while True:
        with computing(num_threads):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
