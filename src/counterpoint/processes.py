"""Processes that work for this one and end with it, even where it is killed."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread

import torch


def process_pool(num_processes: int) -> ProcessPoolExecutor:
    """Fresh processes, each with one thread for its sums, that leave interruptions to this one.

    Each imports what it needs anew: nothing of this process (threads, locks, open files) is in it.
    The caller closes the pool, best in a ``with`` statement.
    """
    return ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Processes share the cores, and sums may depend on how many threads share them.
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
