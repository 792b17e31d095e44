"""Lanes: where the slow work of a conversation runs while it goes on hearing.

A job is an iterator; its steps are results, such as pieces of a text. A lane runs one job at a time
and tells which steps are finished at a moment of the conversation. There are two kinds:

- `ThreadLane` runs its jobs in threads. The conversation must be paced like the sound. A job that
  is dropped goes on until its step ends, while the next job has begun in another thread. So an
  engine may be called by several threads at once, by each lane that uses it and by what was
  dropped: it must bear that, or have a lock.
- `TimedLane` runs a job without threads, as far as the conversation has come: a step that took
  0.3 s is finished 0.3 s after the step before it. So a recording can be answered faster than it
  lasts, with the times at which its answers would have come if every lane had its own processor.
"""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

_MOST_WORKERS = 4  # threads of a lane: a job that hangs keeps one

Timer = Callable[[], float]
"""Returns seconds; only differences count."""


class LaneStep(NamedTuple):
    """What a job has given.

    Attributes:
        at_s: Time of the conversation at which it was finished.
        value: The result; ``None`` if the job has ended.
        is_last: Whether the job has ended.
        error: Why it failed, if it did.
    """

    at_s: float
    value: Any
    is_last: bool = False
    error: Exception | None = None


@runtime_checkable
class Lane(Protocol):
    """Runs one job at a time."""

    @property
    def busy(self) -> bool:
        """Whether a job runs, or has steps that were not polled."""

    def start(self, job: Iterator[Any], now_s: float) -> None:
        """Begin a job; a job that still runs is dropped, with the steps that were not polled."""

    def poll(self, now_s: float) -> list[LaneStep]:
        """Return the steps that are finished by now and were not returned before."""

    def stop(self) -> None:
        """Drop the job. A thread ends with the step in which it is."""

    def close(self, wait_s: float) -> None:
        """Drop the job, and wait at most so many seconds until its step has ended."""


LaneFactory = Callable[[], Lane]


def close_lanes(lanes: Iterable[Lane], wait_s: float) -> None:
    """Close lanes, and wait at most so many seconds for all of them together."""
    until_s = time.monotonic() + wait_s
    every = list(lanes)
    for lane in every:
        lane.stop()  # all of them at once, so that none works on while another is waited for
    for lane in every:
        lane.close(max(until_s - time.monotonic(), 0.0))


def failure(error: BaseException) -> Exception:
    """Return what an engine raised as an error, also if it wanted to end the process."""
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}".rstrip(": "))


@dataclass(slots=True)
class _Work:
    """A job in a thread, with what it has given so far."""

    job: Iterator[Any]
    found: deque[tuple[Any, bool, Exception | None]]
    is_dropped: bool = False
    is_done: bool = False

    def run(self) -> None:
        """Take all steps of the job, until it is dropped."""
        problem: Exception | None = None
        try:
            for value in self.job:
                if self.is_dropped:
                    break
                self.found.append((value, False, None))
        except BaseException as error:  # an engine may fail in any way, and the talk goes on
            problem = failure(error)
        self.job = iter(())  # without a reference a generator ends, and what writes for it
        self.is_done = True
        self.found.append((None, True, problem))


class _Worker:
    """A thread that runs one work after another.

    Memory that an engine frees stays with the thread that took it, so a new thread for every job
    would let a long conversation grow.
    """

    def __init__(self) -> None:
        self._wanted = queue.SimpleQueue[_Work | None]()
        self._work: _Work | None = None
        self._thread = threading.Thread(target=_run_all, args=(self._wanted,), daemon=True)
        self._thread.start()

    @property
    def is_free(self) -> bool:
        """Whether no work runs."""
        return self._work is None or self._work.is_done

    def run(self, work: _Work) -> None:
        """Begin a work; none may run."""
        self._work = work
        self._wanted.put(work)

    def end(self) -> None:
        """End the thread after its work."""
        self._wanted.put(None)

    def join(self, wait_s: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(wait_s)


def _run_all(wanted: "queue.SimpleQueue[_Work | None]") -> None:
    while (work := wanted.get()) is not None:
        work.run()


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


class ThreadLane:
    """A lane whose jobs run in threads; its methods are called by one thread only.

    `start` and `stop` never wait. The steps of a job that was dropped are lost, but the step that
    runs goes on to its end in the background, with all that it does.
    """

    def __init__(self) -> None:
        self._work: _Work | None = None
        self._workers: list[_Worker] = []
        weakref.finalize(self, _end_all, self._workers)

    @property
    def busy(self) -> bool:
        """See `Lane.busy`."""
        return self._work is not None

    def start(self, job: Iterator[Any], now_s: float) -> None:
        """See `Lane.start`."""
        self.stop()
        self._work = _Work(job, deque())
        free = next((worker for worker in self._workers if worker.is_free), None)
        if free is None and len(self._workers) == _MOST_WORKERS:
            hangs = RuntimeError(f"{_MOST_WORKERS} jobs hang")
            self._work.found.append((None, True, hangs))
            return
        if free is None:
            free = _Worker()
            self._workers.append(free)
        free.run(self._work)

    def poll(self, now_s: float) -> list[LaneStep]:
        """See `Lane.poll`."""
        steps: list[LaneStep] = []
        while self._work is not None and self._work.found:
            value, is_last, error = self._work.found.popleft()
            steps.append(LaneStep(now_s, value, is_last, error))
            if is_last:
                self._work = None
        return steps

    def stop(self) -> None:
        """See `Lane.stop`."""
        if self._work is not None:
            self._work.is_dropped = True
            self._work = None

    def close(self, wait_s: float) -> None:
        """See `Lane.close`."""
        self.stop()
        until_s = time.monotonic() + wait_s
        _end_all(self._workers)
        for worker in self._workers:
            worker.join(max(until_s - time.monotonic(), 0.0))
        self._workers.clear()


class TimedLane:
    """A lane that runs its job in the caller's thread, and charges what it took.

    Args:
        clock: Returns seconds, to time the steps.
    """

    def __init__(self, clock: Timer = time.perf_counter) -> None:
        self._clock = clock
        self._job: Iterator[Any] | None = None
        self._ahead: LaneStep | None = None
        self._free_s = 0.0

    @property
    def busy(self) -> bool:
        """See `Lane.busy`."""
        return self._job is not None or self._ahead is not None

    def start(self, job: Iterator[Any], now_s: float) -> None:
        """See `Lane.start`."""
        self.stop()
        self._job = job
        self._free_s = now_s

    def poll(self, now_s: float) -> list[LaneStep]:
        """See `Lane.poll`."""
        steps: list[LaneStep] = []
        while self.busy:
            self._ahead = self._ahead or self._take()
            if self._ahead.at_s > now_s:
                break
            steps.append(self._ahead)
            self._ahead = None
        return steps

    def stop(self) -> None:
        """See `Lane.stop`."""
        self._job = self._ahead = None

    def close(self, wait_s: float) -> None:
        """See `Lane.close`."""
        self.stop()

    def _take(self) -> LaneStep:
        """Run the job for one step."""
        if self._job is None:
            raise AssertionError("a lane without a job takes no step")
        began = self._clock()
        value = None
        is_last = True
        error: Exception | None = None
        try:
            value = next(self._job)
            is_last = False
        except StopIteration:
            pass
        except (Exception, SystemExit) as problem:  # see `_Work.run`; Ctrl-C is the user's
            error = failure(problem)
        self._free_s += self._clock() - began
        if is_last:
            self._job = None
        return LaneStep(self._free_s, value, is_last, error)
