"""The number of threads that a session needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from counterpoint.train.threads import choose_threads, computing, fixed_by, time_threads

_WEIGHTS_A_THREAD = 16_000_000


@contextmanager
def few_threads(model: nn.Module) -> Iterator[None]:
    """Compute the ticks of one session with as many threads as make them faster.

    The products of one tick of a small model take microseconds, and after each of them all threads
    wait for the slowest. If other programs use the cores, a thread may wait for its core a hundred
    times as long: a conversation of 13 s then took ten minutes with two threads, and 30 s with one.
    Therefore a small model gets one thread, and for a large one products of a tick are measured.

    Args:
        model: A model on a CPU. A number of threads that the user has fixed is kept, and none is
            raised.
    """
    with computing(None if fixed_by() else _num_threads(model)):
        yield


def _num_threads(model: nn.Module) -> int:
    num_weights = sum(weight.numel() for weight in model.parameters())
    most = max(1, min(torch.get_num_threads(), num_weights // _WEIGHTS_A_THREAD))
    choice = choose_threads(most, None, "", lambda numbers: time_threads([model], numbers, rows=1))
    return choice.num_threads
