"""Worker processes that end with this process, and what a command asks of its own process."""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells, and after SIGTERM."""

_PATIENCE_S = 3.0
_SPINS = "10000"
"""With a thirtieth of the default, two threads on two cores are as fast as with it.

On a busy machine they take 2 to 6 times as long as one thread, instead of 4 to 75 times.
"""
_SHOW_CURSOR = "\x1b[?25h"


def work_in_processes(
    work: Callable[[_Item], _Result], items: Sequence[_Item], num_processes: int
) -> Generator[_Result, None, None]:
    """Do the same work on many items, in several processes at once.

    Every process is fresh: it has no threads, locks or open files of this one. Each process gets
    ``work`` once, as a pickled copy, so that what ``work`` prepares on first use stays available,
    and computes with one thread. Interruptions are handled by this process. If the generator is not
    read to its end, close it, best with `contextlib.closing`: that ends the processes.

    Args:
        work: Function of one item. It and its results must be picklable.
        items: The items, begun in this order.
        num_processes: Number of processes, at least one; at most as many as items are started.

    Yields:
        A result for each item, in the order in which they are done.

    Raises:
        OSError: A process ended before its work did.
        Exception: Any error that ``work`` raises.
    """
    waiting = deque(items)
    processes = list[Any]()
    pipes = dict[Any, Any]()  # to each process; there is no thread or lock to wait for
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


class Worker:
    """A fresh process that does the same work on one item after another.

    Args:
        work: Function of one item, sent to the process once. It, items and results must be
            picklable; tensors that lie in shared memory stay shared.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._process, self._pipe = _start(work)

    def give(self, item: Any) -> None:
        """Send an item; the process takes the items in their order."""
        with contextlib.suppress(OSError):  # the next answer tells that it has ended
            self._pipe.send((item,))

    def has_answer(self) -> bool:
        """Return whether the result of the oldest unanswered item is there."""
        return bool(self._pipe.poll())

    def answer(self) -> Any:
        """Wait for the result of the oldest unanswered item.

        Raises:
            OSError: The process has ended.
            Exception: Any error that the work raised.
        """
        _, content = _next({self._pipe: self._process})
        done, value = pickle.loads(content)
        if not done:
            raise value
        return value

    def close(self) -> None:
        """End the process at once."""
        _end([self._process])
        self._pipe.close()


def _start(work: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Start a process that waits for items, and return it and the pipe to it."""
    context = get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(work, other_end), daemon=True)
    with other_end, _without_interruptions():
        process.start()
    return process, pipe


def _give(pipe: Any, waiting: deque[Any]) -> None:
    """Send the next item, if there is one; `_next` notices a process that has ended."""
    if waiting:
        with contextlib.suppress(OSError):
            pipe.send((waiting.popleft(),))


def _next(pipes: dict[Any, Any]) -> tuple[Any, bytes]:
    """Wait for a process that is done; return its pipe and what it has sent."""
    pipe = connection.wait(list(pipes))[0]
    try:
        return pipe, pipe.recv_bytes()  # type: ignore[union-attr]
    except (EOFError, OSError):
        process = pipes[pipe]
        process.join()
        raise OSError(
            f"A worker process ended with status {process.exitcode}. Run again: finished results "
            "are kept."
        ) from None


def _end(processes: Sequence[Any]) -> None:
    """End all processes; each has seconds to remove a half-written file before it is killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        process.kill()
        process.join()


@contextmanager
def _without_interruptions() -> Iterator[None]:
    """Hide Ctrl-C from processes started in the block; this process receives it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any], Any], pipe: Any) -> None:
    """Run the loop of a worker process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()
    # Processes share the cores, and sums may depend on the number of threads.
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _leave)
    try:
        while True:
            (item,) = pipe.recv()
            pipe.send_bytes(attempted(work, item))
    except (SystemExit, KeyboardInterrupt, EOFError, OSError):
        # Half-written files are gone, stopped training is saved, and nobody waits for this process.
        os._exit(1)


def _leave(number: int, frame: object) -> None:
    raise SystemExit


def attempted(work: Callable[[Any], Any], item: Any) -> bytes:
    """Return, pickled, whether the work on an item succeeded, and its result or error."""
    try:
        return pickle.dumps((True, work(item)))
    except Exception as error:
        try:
            return pickle.dumps((False, error))
        except Exception:  # an error of another package that cannot be pickled
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, then end this one too."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def wait_briefly() -> None:
    """Let threads that wait for each other give their core to other programs after a while.

    By default a thread of libgomp, which torch for Linux uses, spins for milliseconds, although on
    a busy machine the thread that it waits for needs that core. This is read when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does, and a second one end the process at once.

    The first signal has the usual effect of Ctrl-C: it raises `KeyboardInterrupt`, or a training
    loop notices it and saves. A second one of the same kind ends this process and its worker
    processes. A separate thread does that, because a signal handler waits for the main thread,
    which may be in a long computation or already cleaning up.
    """
    handlers = _interrupting()
    if not handlers:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = Thread(target=_leave_at_second, args=(reader,), name="interruptions", daemon=True)
    watch.start()

    def interrupt(number: int, frame: Any) -> None:
        # The watching thread counts the second one: it must not interrupt the cleaning up.
        for each in handlers:
            signal.signal(each, lambda number, frame: None)
        handlers[number](number, frame)

    try:
        with _handled(dict.fromkeys(handlers, interrupt)):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        watch.join()
        os.close(reader)


@contextmanager
def ended_at_once(told: str) -> Iterator[None]:
    """Let the first interruption end the process after a line, as long as it has nothing to keep.

    `KeyboardInterrupt` would be raised in whatever module is being imported, which may catch it or
    stay half a module.

    Args:
        told: The line, for stderr.
    """

    def leave(number: int, frame: Any) -> None:
        try:
            sys.stderr.write(f"{_SHOW_CURSOR * sys.stderr.isatty()}{told}\n")
            sys.stderr.flush()
        finally:  # also where nobody reads it
            os._exit(INTERRUPTED)

    with _handled(dict.fromkeys(_interrupting(), leave)):
        yield


def _interrupting() -> dict[int, Callable[[int, Any], Any]]:
    """Return how a program takes SIGINT and SIGTERM; the latter is taken like the former.

    Nothing is told of ignored signals, nor outside the main thread, which alone receives any.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if found[signal.SIGTERM] is signal.SIG_DFL:
        found[signal.SIGTERM] = signal.default_int_handler
    return {number: handler for number, handler in found.items() if callable(handler)}


@contextmanager
def _handled(handlers: Mapping[int, Callable[[int, Any], Any]]) -> Iterator[None]:
    """Take signals by these handlers in the block."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_at_second(reader: int) -> None:
    """Read the numbers of incoming signals until the other end is closed."""
    came = Counter[int]()
    while number := os.read(reader, 1):
        came[number[0]] += number[0] in (signal.SIGINT, signal.SIGTERM)
        if came[number[0]] == 2:  # a launcher may send the other one after a Ctrl-C
            with contextlib.suppress(Exception):  # nothing may keep this process alive
                if sys.stderr.isatty():
                    sys.stderr.write(_SHOW_CURSOR)  # a bar may have hidden it
                    sys.stderr.flush()
                for process in list(_started_by(os.getpid())):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            os._exit(INTERRUPTED)


def _started_by(process: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those started by them, such as Ray's.

    If the system does not tell, only those of `multiprocessing` are known.
    """
    if not Path("/proc/self/task").is_dir():
        yield from (child.pid for child in active_children() if child.pid is not None)
        return
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        children = ""
        with contextlib.suppress(OSError):  # a thread that has just ended
            children = file.read_text()
        for child in map(int, children.split()):
            yield child
            yield from _started_by(child)
