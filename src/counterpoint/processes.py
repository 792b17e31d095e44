"""Processes that work for this one and end with it, even where it is killed."""

import os
import pickle
import queue
import signal
from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def work_in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], num_processes: int
) -> Generator[_Result, None, None]:
    """Do the same work on many things, in several processes at once.

    Every process is fresh: nothing of this one (threads, locks, open files) is in it. Each gets
    ``work`` once, as a pickled copy, so that what ``work`` makes ready on first use stays ready;
    and each computes with one thread. Interruptions are left to this process. Close the generator
    where it is not read to its end, best with `contextlib.closing`: that ends the processes.

    Args:
        work: Called with one item; it can be pickled, as its results can.
        items: What to work on, in this order.
        num_processes: Processes, at least one; no more are started than there are items.

    Yields:
        A result for each item, in the order in which they are done.

    Raises:
        OSError: A process ended before its work did.
        Exception: Whatever ``work`` raises.
    """
    context = get_context("spawn")
    tasks: Any = context.Queue()
    results: Any = context.Queue()
    num_processes = min(num_processes, len(items))
    for item in items:
        tasks.put((item,))
    for _ in range(num_processes):
        tasks.put(())  # nothing is left
    processes = [
        context.Process(target=_serve, args=(work, tasks, results), daemon=True)
        for _ in range(num_processes)
    ]
    try:
        for process in processes:
            process.start()
        for _ in items:
            done, value = pickle.loads(_next(results, processes))
            if not done:
                raise value
            yield value
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        tasks.cancel_join_thread()


def _next(results: Any, processes: Sequence[Any]) -> bytes:
    """What is done next; processes that cannot do any more are noticed while waiting."""
    while True:
        try:
            found: bytes = results.get(timeout=1.0)
        except queue.Empty:
            codes = [process.exitcode for process in processes if process.exitcode]
            if codes:
                raise OSError(
                    f"A process that helps ended with status {codes[0]}. Run again: what was made "
                    "is kept."
                ) from None
        else:
            return found


def _serve(work: Callable[[Any], Any], tasks: Any, results: Any) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    # Processes share the cores, and sums may depend on how many threads share them.
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _leave)
    try:
        while task := tasks.get():
            results.put(_done(work, task[0]))
    except SystemExit:  # what was half written is gone; nobody waits for results
        os._exit(1)


def _leave(number: int, frame: object) -> None:
    raise SystemExit


def _done(work: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return pickle.dumps((True, work(item)))
    except Exception as error:
        try:
            return pickle.dumps((False, error))
        except Exception:  # an error of another package, with something inside
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
