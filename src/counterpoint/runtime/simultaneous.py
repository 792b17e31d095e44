"""The whole tower in a thread of its own, beside the part tower instead of before its next step."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.session import Streaming
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Choose, State, System


@runtime_checkable
class LowerChunk(Protocol):
    """A chunk between the stages of a system: what its part tower has read, before it writes."""

    x: Float[Tensor, "B T D"]
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: Any


@runtime_checkable
class Staged(Streaming, Protocol):
    """A system whose `read` is three stages, the middle one of which may come later.

    `counterpoint.systems.two_stream.TwoStream` is one; see there.
    """

    @property
    def chunk_ticks(self) -> int:
        """Most ticks of a chunk."""
        ...

    @property
    def usable_blocks(self) -> int:
        """See `HasWhole.usable_blocks`."""
        ...

    def finished_blocks(self, state: State) -> Int[Tensor, " B"]:
        """See `HasWhole.finished_blocks`."""
        ...

    def read_lower(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> Any:
        """The part tower below the whole, and the blocks that it finishes."""
        ...

    def read_whole_tower(self, lower: Any, state: State) -> None:
        """The whole tower takes the blocks."""
        ...

    def read_upper(self, lower: Any, state: State) -> tuple[Float[Tensor, "B T D"], State]:
        """The part tower above, under the whole that is published."""
        ...


class _Job(NamedTuple):
    """A chunk whose blocks the whole tower has been given."""

    lower: LowerChunk
    future: Future[None]


class Simultaneous:
    """A `TwoStream` with a lag, whose whole tower works while the part tower goes on.

    A block that is finished at one tick is used ``lag_blocks`` blocks later. Until then the whole
    tower has time, and the part tower waits only for chunks up to the latest one with a block that
    is due in some row. Those that are not ready then are *misses*. What comes out equals
    `TwoStream.read` of the same chunks bit for bit, without gradients, with and without misses:
    the worker takes the caller's inference mode and autocast over.

    It serves the sessions of one batch, one state after the other; a new initial state ends the
    one before. Whoever reads or changes the whole of a state between two calls (resets a row,
    edits or swaps) calls `wait` first.

    Threads inside operations are counted for every thread by itself: the worker uses
    ``num_threads``, and the caller keeps its own number. Together they should not exceed the cores,
    so call ``torch.set_num_threads`` with what is left. On a GPU both towers share one queue: the
    result is the same, the time too.

    Args:
        system: The model, with ``lag_blocks >= 1``.
        num_threads: Threads inside operations of the whole tower.

    Attributes:
        num_jobs: Chunks with finished blocks that the whole tower has been given.
        num_misses: Chunks that the part tower had to wait for.

    Raises:
        UserError: The model has no lag, so the part tower always needs the newest block at once.
    """

    def __init__(self, system: Staged, num_threads: int = 1) -> None:
        if system.usable_blocks < 2:
            raise UserError(
                "The whole tower can only run beside the part tower with `lag_blocks` >= 1: this "
                f"model has {system.usable_blocks - 1}. Train one with a lag, or run them in turn."
            )
        self.system = system
        self.layout = system.layout
        self.writes_with_tower = system.writes_with_tower
        self.num_jobs = 0
        self.num_misses = 0
        self._jobs: deque[_Job] = deque()
        callers_threads = torch.get_num_threads()
        self._worker = ThreadPoolExecutor(1, "whole-tower", torch.set_num_threads, (num_threads,))
        # Torch also keeps the number last set as the default of later threads: put it back.
        self._worker.submit(torch.get_num_threads).result()
        torch.set_num_threads(callers_threads)

    def initial_state(self, batch_size: int) -> State:
        """State before the first tick; see `System.initial_state`."""
        self.wait()
        return self.system.initial_state(batch_size)

    @torch.no_grad()
    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Read some more ticks; see `System.read`.

        Chunks longer than a block, or than the model takes at once, run in turn.
        """
        if ticks["part"].shape[1] > min(self.layout.block_ticks, self.system.chunk_ticks):
            self.wait()
            return self.system.read(ticks, state, lengths)
        lower = self.system.read_lower(ticks, state, lengths)
        if lower.finished.any():
            self._submit(lower, state)
        usable = self.system.finished_blocks(lower.after) - (self.system.usable_blocks - 1)
        # All of them: the first may belong to a row that has stopped, and never be due.
        while any(_is_due(job.lower, usable) for job in self._jobs):
            future = self._jobs.popleft().future
            self.num_misses += not future.done()
            future.result()
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
        """The model itself; see `System.plain`."""
        return self.system.plain()

    def wait(self) -> None:
        """Come back when the whole tower has nothing left to do."""
        while self._jobs:
            self._jobs.popleft().future.result()

    def _submit(self, lower: LowerChunk, state: State) -> None:
        """Give the whole tower a chunk."""
        # Torch keeps all of these modes for every thread by itself.
        inference = torch.is_inference_mode_enabled()
        device = lower.x.device.type
        enabled = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device)

        def read_whole_tower() -> None:
            autocast = torch.autocast(device, dtype, enabled)
            with torch.inference_mode(inference), torch.no_grad(), autocast:
                self.system.read_whole_tower(lower, state)

        self._jobs.append(_Job(lower, self._worker.submit(read_whole_tower)))
        self.num_jobs += 1

    def __enter__(self) -> "Simultaneous":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread when its last job is done."""
        self._worker.shutdown()


def _is_due(lower: LowerChunk, usable: Int[Tensor, " B"]) -> bool:
    """Whether a row may read a block of this job: ``usable`` blocks of each row are visible."""
    return bool(((lower.finished > 0) & (lower.before < usable)).any())
