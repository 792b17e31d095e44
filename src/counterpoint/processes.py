"""Processes that work for this one and end with it, and how Ctrl-C ends this one."""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_PATIENCE_S = 3.0
_SHOW_CURSOR = "\x1b[?25h"


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
    waiting = deque(items)
    processes = list[Any]()
    pipes = dict[Any, Any]()  # to each process; no thread and no lock that could be waited for
    try:
        for _ in range(min(num_processes, len(items))):
            process, pipe = _start(work)
            processes.append(process)
            pipes[pipe] = process
            _give(pipe, waiting)
        for _ in items:
            pipe, content = _next(pipes)
            done, value = pickle.loads(content)
            if not done:
                raise value
            _give(pipe, waiting)
            yield value
    finally:
        _end(processes)


def _start(work: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A process that waits for items, and the pipe to it."""
    context = get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(work, other_end), daemon=True)
    with other_end, _without_interruptions():
        process.start()
    return process, pipe


def _give(pipe: Any, waiting: deque[Any]) -> None:
    """Send the next item, if there is one; that a process has ended is noticed by `_next`."""
    if waiting:
        with contextlib.suppress(OSError):
            pipe.send((waiting.popleft(),))


def _next(pipes: dict[Any, Any]) -> tuple[Any, bytes]:
    """A process that is done, by its pipe, and what it has sent."""
    pipe = connection.wait(list(pipes))[0]
    try:
        return pipe, pipe.recv_bytes()  # type: ignore[union-attr]
    except (EOFError, OSError):
        process = pipes[pipe]
        process.join()
        raise OSError(
            f"A process that helps ended with status {process.exitcode}. Run again: what was made "
            "is kept."
        ) from None


def _end(processes: Sequence[Any]) -> None:
    """End all; what one has half written is removed, unless it does not listen for seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        process.kill()
        process.join()


@contextmanager
def _without_interruptions() -> Iterator[None]:
    """What is started in the block never sees Ctrl-C, and this process sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any], Any], pipe: Any) -> None:
    """What a process does."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    # Processes share the cores, and sums may depend on how many threads share them.
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _leave)
    try:
        while True:
            (item,) = pipe.recv()
            pipe.send_bytes(attempted(work, item))
    except (SystemExit, KeyboardInterrupt, EOFError, OSError):
        # What was half written is gone, training that was stopped is saved, and nobody waits.
        os._exit(1)


def _leave(number: int, frame: object) -> None:
    raise SystemExit


def attempted(work: Callable[[Any], Any], item: Any) -> bytes:
    """Whether the work on an item succeeded, and its result or the error: pickled."""
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


@contextmanager
def interruptible() -> Iterator[None]:
    """Whoever presses Ctrl-C twice in the block is obeyed at once, whatever is going on.

    The first Ctrl-C does what it does without this: it raises `KeyboardInterrupt`, or a training
    loop notes it and saves. The second ends this process and those that work for it. A thread of
    its own sees to that, because a signal's handler waits for the main thread, which may be in a
    long computation or already be cleaning up.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # only the main thread receives signals, and none where they are ignored
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = Thread(target=_leave_at_second, args=(reader,), name="interruptions", daemon=True)
    watch.start()

    def interrupt(number: int, frame: Any) -> None:
        # The second is for the watch alone: it must not end the cleaning up with a traceback.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(before)
        os.close(writer)
        watch.join()
        os.close(reader)


def _leave_at_second(reader: int) -> None:
    """Read the numbers of the signals that come, until the other end is closed."""
    came = 0
    while number := os.read(reader, 1):
        came += number[0] == signal.SIGINT
        if came == 2:
            with contextlib.suppress(Exception):  # nothing may keep this process
                if sys.stderr.isatty():
                    sys.stderr.write(_SHOW_CURSOR)  # a bar may have hidden it
                    sys.stderr.flush()
                for process in list(_started_by(os.getpid())):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            os._exit(INTERRUPTED)


def _started_by(process: int) -> Iterator[int]:
    """The processes that one has started, and those that they have started, such as Ray's.

    Where the system does not tell, only those of `multiprocessing`.
    """
    if not Path("/proc/self/task").is_dir():
        yield from (child.pid for child in active_children() if child.pid is not None)
        return
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            yield child
            yield from _started_by(child)
