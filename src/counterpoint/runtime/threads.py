"""The number of threads that a session needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_WEIGHTS_A_THREAD = 16_000_000


@contextmanager
def few_threads(model: nn.Module) -> Iterator[None]:
    """Compute the ticks of one session with as many threads as its model can use.

    The products of one tick of a small model take microseconds, and after each of them all threads
    wait for the slowest. If other programs use the cores, a thread may wait for its core a hundred
    times as long: a conversation of 13 s then took ten minutes with two threads, and 30 s with one.

    Args:
        model: A model on a CPU. The number of threads is never raised.
    """
    before = torch.get_num_threads()
    num_weights = sum(weight.numel() for weight in model.parameters())
    torch.set_num_threads(max(1, min(before, num_weights // _WEIGHTS_A_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
