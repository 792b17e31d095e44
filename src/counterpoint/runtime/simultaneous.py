"""Running the whole tower beside the part tower, which continues meanwhile."""

from collections import deque
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.beside import InProcess, InStream, InThread, Job
from counterpoint.runtime.session import Streaming
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Choose, State, System


@runtime_checkable
class LowerChunk(Protocol):
    """A chunk between the stages of a system: the lower layers have read it, nothing is written."""

    x: Float[Tensor, "B T D"]
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: Any

    def for_whole_tower(self, state: Any) -> tuple[Any, Any]:
        """Return what `read_whole_tower` needs of the chunk and of the state."""


@runtime_checkable
class Staged(Streaming, Protocol):
    """A system whose `read` has three stages; the middle one may run later.

    `counterpoint.systems.two_stream.TwoStream` is such a system; it documents the stages.
    """

    @property
    def chunk_ticks(self) -> int:
        """Largest number of ticks of a chunk."""

    @property
    def usable_blocks(self) -> int:
        """See `HasWhole.usable_blocks`."""

    def finished_blocks(self, state: State) -> Int[Tensor, " B"]:
        """See `HasWhole.finished_blocks`."""

    def read_lower(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> Any:
        """Run the lower layers of the part tower, and find the blocks that they finish."""

    def read_whole_tower(self, lower: Any, state: State) -> None:
        """Feed the finished blocks to the whole tower."""

    def read_upper(self, lower: Any, state: State) -> tuple[Float[Tensor, "B T D"], State]:
        """Run the upper layers of the part tower, guided by the published whole."""


class _Given(NamedTuple):
    """A chunk whose blocks were given to the whole tower."""

    lower: LowerChunk
    job: Job


class Simultaneous:
    """A `TwoStream` with a lag whose whole tower works while the part tower continues.

    A block that is finished at one tick is used ``lag_blocks`` blocks later; until then the whole
    tower has time to compute. The part tower waits only for chunks up to the latest one with a
    block that some row needs now. Chunks that are not ready by then are *misses*. With and without
    misses, the result equals that of `TwoStream.read` on the same chunks bit for bit; there are no
    gradients. The worker takes over the caller's inference mode and autocast.

    The worker is a thread, a process, or a thread with a CUDA stream of its own. Threads share
    Python's global lock, which a small model holds most of the time, so a second thread makes its
    ticks slower. A process has a lock of its own; weights and rings lie in memory that both read,
    and only finished blocks are sent. It takes seconds to start, needs a model on the CPU that is
    not compiled, and does not see changes of the model's modules.

    An instance serves the sessions of one batch and one state at a time; a new initial state ends
    the use of the one before. Code that reads or changes the whole of a state between two calls
    (resets a row, edits or swaps) must call `wait` first.

    Torch counts the threads inside operations separately for every thread: the worker uses
    ``num_threads``, and the caller keeps its own number. Together they should not exceed the number
    of cores, so call ``torch.set_num_threads`` with the rest. On a GPU a thread shares the queue of
    the part tower: the result is the same, and so is the time. With a stream both towers' kernels
    may overlap; this was not tried on a GPU yet, so nothing chooses it by itself.

    Args:
        system: The model, with ``lag_blocks >= 1``.
        num_threads: Number of threads inside operations of the whole tower.
        worker: Whether the whole tower has a thread or a process of its own, or a thread with a
            CUDA stream of its own.

    Attributes:
        num_jobs: Number of chunks with finished blocks that were given to the whole tower.
        num_misses: Number of chunks for which the part tower had to wait.

    Raises:
        UserError: The model has no lag, so the part tower always needs the newest block at once; or
            a process or a stream cannot run it.
    """

    def __init__(
        self,
        system: Staged,
        num_threads: int = 1,
        worker: Literal["thread", "process", "stream"] = "thread",
    ) -> None:
        if system.usable_blocks < 2:
            raise UserError(
                "The whole tower can run during later ticks only if `lag_blocks` >= 1: this model "
                f"has {system.usable_blocks - 1}. Train one with a lag, or run the towers in turn."
            )
        self.system = system
        self.layout = system.layout
        self.writes_with_tower = system.writes_with_tower
        self.num_jobs = 0
        self.num_misses = 0
        self._jobs: deque[_Given] = deque()
        kinds: dict[str, type[InThread | InProcess | InStream]] = {
            "thread": InThread,
            "process": InProcess,
            "stream": InStream,
        }
        self._worker = kinds[worker](system, num_threads)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first tick; see `System.initial_state`."""
        self.wait()
        return self.system.initial_state(batch_size)

    @torch.no_grad()
    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Read the next ticks; see `System.read`.

        In chunks longer than a block, or than the model takes at once, the towers run in turn.
        """
        if ticks["part"].shape[1] > min(self.layout.block_ticks, self.system.chunk_ticks):
            self.wait()
            return self.system.read(ticks, state, lengths)
        lower = self.system.read_lower(ticks, state, lengths)
        if lower.finished.any():
            self._submit(lower, state)
        usable = self.system.finished_blocks(lower.after) - (self.system.usable_blocks - 1)
        # All jobs are checked: the first one may belong to a row that has stopped, and is never
        # due.
        while any(_is_due(job.lower, usable) for job in self._jobs):
            job = self._jobs.popleft().job
            self.num_misses += not job.done()
            job.result()
        return self.system.read_upper(lower, state)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next tick; see `System.write`."""
        return self.system.write(hidden, choose, state)

    @property
    def device(self) -> torch.device:
        """See `System.device`."""
        return self.system.device

    @property
    def window_ticks(self) -> int:
        """See `System.window_ticks`."""
        return self.system.window_ticks

    def plain(self) -> System:
        """Return the model itself; see `System.plain`."""
        return self.system.plain()

    def wait(self) -> None:
        """Return when the whole tower has no work left."""
        while self._jobs:
            self._jobs.popleft().job.result()

    def _submit(self, lower: LowerChunk, state: State) -> None:
        """Give a chunk to the whole tower."""
        self._jobs.append(_Given(lower, self._worker.submit(lower, state)))
        self.num_jobs += 1

    def __enter__(self) -> "Simultaneous":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker when its last job is done."""
        self._worker.close()


def _is_due(lower: LowerChunk, usable: Int[Tensor, " B"]) -> bool:
    """Return whether a row may read a block of this job.

    ``usable`` is the number of visible blocks of each row.
    """
    return bool(((lower.finished > 0) & (lower.before < usable)).any())
