"""Workers that run the whole tower of a staged system beside its part tower."""

import contextlib
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.processes import Worker
from counterpoint.systems.contract import State, state_tensors


@runtime_checkable
class Job(Protocol):
    """Work that was given to a worker; jobs are awaited in the order in which they were given."""

    def done(self) -> bool:
        """Return whether the result is there."""

    def result(self) -> Any:
        """Wait until the work is done; raise what it has raised."""


class _Modes(NamedTuple):
    """How the caller computes; torch keeps these modes separately for every thread."""

    inference: bool
    device: str
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def of_caller(cls, device: str) -> "_Modes":
        return cls(
            torch.is_inference_mode_enabled(),
            device,
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
        )

    def run(self, system: Any, lower: Any, state: State) -> None:
        """Feed the blocks of a chunk to the whole tower, as the caller would."""
        # All threads share one cache of weights that were cast, but not the streams that cast them.
        autocast = torch.autocast(self.device, self.dtype, self.autocast, cache_enabled=False)
        with torch.inference_mode(self.inference), torch.no_grad(), autocast:
            system.read_whole_tower(lower, state)


class InThread:
    """A whole tower in a thread of its own.

    Args:
        system: A staged system; see `counterpoint.runtime.simultaneous.Staged`.
        num_threads: Number of threads inside its operations.
    """

    def __init__(self, system: Any, num_threads: int) -> None:
        self._system = system
        callers_threads = torch.get_num_threads()
        self._worker = ThreadPoolExecutor(1, "whole-tower", torch.set_num_threads, (num_threads,))
        # Torch also makes the number set last the default of new threads: restore the caller's.
        self._worker.submit(torch.get_num_threads).result()
        torch.set_num_threads(callers_threads)

    def submit(self, lower: Any, state: State) -> Job:
        """Give a chunk to the whole tower."""
        modes = _Modes.of_caller(lower.x.device.type)
        return self._worker.submit(modes.run, self._system, lower, state)

    def close(self) -> None:
        """End the thread when its last job is done."""
        self._worker.shutdown()


class InStream:
    """A whole tower in a thread and a CUDA stream of its own, so that both towers' kernels overlap.

    Its kernels begin when those that the caller has queued before are done, and what the caller
    queues after `Job.result` waits for them.

    Args:
        system: A staged system on a GPU; see `counterpoint.runtime.simultaneous.Staged`.
        num_threads: Number of threads inside its operations on the CPU.

    Raises:
        UserError: The system is on another device.
    """

    def __init__(self, system: Any, num_threads: int) -> None:
        if system.device.type != "cuda":
            raise UserError(
                "A whole tower has a stream of its own on a CUDA device only: this model is on "
                f"{system.device}. Use a thread or a process."
            )
        self._system = system
        self._thread = InThread(self, num_threads)
        self._stream = torch.cuda.Stream(system.device)

    def submit(self, lower: Any, state: State) -> Job:
        """Give a chunk to the whole tower."""
        begun = torch.cuda.current_stream(self._system.device).record_event()
        done = torch.cuda.Event()
        queued = self._thread.submit(lower, (state, begun, done))
        return _Streamed(queued, done, self._system.device, (lower, state))

    def read_whole_tower(self, lower: Any, state: tuple[State, Any, Any]) -> None:
        """Queue the kernels of a chunk; called in the thread."""
        own, begun, done = state
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(begun)
            try:
                self._system.read_whole_tower(lower, own)
            finally:
                done.record(self._stream)

    def close(self) -> None:
        """End the thread when its last job is done."""
        self._thread.close()
        self._stream.synchronize()


class _Streamed(NamedTuple):
    """A job whose kernels may still run when the thread has queued them.

    Attributes:
        queued: The work of the thread, which queues the kernels.
        finished: The event behind these kernels.
        device: The device whose current stream waits for them.
        used: What the kernels read and write. It is kept until the caller's stream waits for them:
            torch gives freed memory to the next kernels of the stream that made it, and does not
            know that another stream still uses it.
    """

    queued: Job
    finished: Any
    device: torch.device
    used: tuple[Any, State]

    def done(self) -> bool:
        return self.queued.done() and bool(self.finished.query())

    def result(self) -> None:
        try:
            self.queued.result()
        finally:
            torch.cuda.current_stream(self.device).wait_event(self.finished)


class InProcess:
    """A whole tower in a process of its own, which shares the weights and the rings of the state.

    Only what a job needs of a chunk is sent. The rings are shared when they come first, and again
    when the caller comes with others.

    Args:
        system: A staged system on the CPU; see `counterpoint.runtime.simultaneous.Staged`.
        num_threads: Number of threads inside its operations.

    Raises:
        UserError: The system is on another device, or is compiled.
    """

    def __init__(self, system: Any, num_threads: int) -> None:
        if system.device.type != "cpu":
            raise UserError(
                "A whole tower has a process of its own on the CPU only: this model is on "
                f"{system.device}. Use a thread."
            )
        if set(system.tick_stages) & set(vars(system)):
            raise UserError("A compiled model cannot be sent to a process: expected a plain one.")
        self._worker = Worker(_WholeTower(system, num_threads))
        self._addresses = list[int]()
        self._num_awaited = 0

    def submit(self, lower: Any, state: State) -> Job:
        """Give a chunk to the whole tower."""
        lower, rings = lower.for_whole_tower(state)
        tensors = state_tensors(rings)
        known = self._addresses == [tensor.data_ptr() for tensor in tensors]
        if not known:
            for tensor in tensors:
                tensor.share_memory_()
            self._addresses = [tensor.data_ptr() for tensor in tensors]
        self._worker.give(_Chunk(_dumps(lower), _Modes.of_caller("cpu"), None if known else rings))
        self._num_awaited += 1
        return self

    # Jobs are awaited in their order, so the next answer is always that of the oldest job.

    def done(self) -> bool:
        """See `Job.done`."""
        return self._worker.has_answer()

    def result(self) -> None:
        """See `Job.result`."""
        self._num_awaited -= 1
        self._worker.answer()

    def close(self) -> None:
        """End the process when its last job is done."""
        while self._num_awaited:
            with contextlib.suppress(Exception):  # nobody asked for this result
                self.result()
        self._worker.close()


class _Chunk(NamedTuple):
    """A job as it is sent: a pickled chunk, and the rings if they are new."""

    lower: bytes
    modes: _Modes
    rings: State | None


class _WholeTower:
    """The work of the process."""

    def __init__(self, system: Any, num_threads: int) -> None:
        self._system = system
        self._num_threads = num_threads
        self._rings: State = None

    def __call__(self, chunk: _Chunk) -> None:
        if chunk.rings is not None:
            torch.set_num_threads(self._num_threads)
            self._rings = chunk.rings
        chunk.modes.run(self._system, pickle.loads(chunk.lower), self._rings)


class _Pickler(pickle.Pickler):
    """Pickles tensors by their bytes, which takes a tenth of the time of torch's way."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        # Numpy has no bfloat16.
        plain = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        return _tensor, (plain.numpy().tobytes(), value.dtype, tuple(value.shape))


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
