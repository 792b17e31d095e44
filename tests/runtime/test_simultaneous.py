import gc
import threading
import time
import weakref
from contextlib import AbstractContextManager
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.errors import UserError
from counterpoint.runtime.beside import InProcess, InStream, InThread
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.systems.two_stream import TwoStream
from tests.runtime import tiny

ROWS = 3
WORKERS: tuple[Literal["thread", "process"], ...] = ("thread", "process")


def tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in tensors(part)]


class SlowWhole(TwoStream):
    """The same model with a whole tower that does not start before it is allowed to."""

    gate: threading.Event
    begun: int = 0

    def read_whole_tower(self, *arguments: Any) -> None:
        self.begun += 1
        self.gate.wait(5)
        super().read_whole_tower(*arguments)


def slow_whole(lag_blocks: int) -> SlowWhole:
    system = SlowWhole(tiny.two_stream(lag_blocks).config)
    tiny.randomise(system)
    system.gate = threading.Event()
    return system


class LateWhole(TwoStream):
    """The same model with a whole tower that takes its time in a thread of its own."""

    def read_whole_tower(self, *arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.03)
        super().read_whole_tower(*arguments)


def late_whole(lag_blocks: int, **changes: Any) -> LateWhole:
    system = LateWhole(tiny.two_stream(lag_blocks, **changes).config)
    tiny.randomise(system)
    return system


@torch.no_grad()
def assert_equals_read(
    system: TwoStream,
    ids: Tensor,
    chunks: list[Tensor],
    worker: Literal["thread", "process"] = "thread",
) -> int:
    """Both ways through the same chunks, each given by the lengths of its rows; jobs of one."""
    rows, read = torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.long)
    expected_state = system.initial_state(len(ids))
    with Simultaneous(system, worker=worker) as simultaneous:
        state = simultaneous.initial_state(len(ids))
        for lengths in chunks:
            offset = torch.arange(int(lengths.max()))
            ticks = {"part": ids[rows[:, None], read[:, None] + offset]}
            hidden, state = simultaneous.read(ticks, state, lengths)
            expected, expected_state = system.read(ticks, expected_state, lengths)
            real = offset < lengths[:, None]
            assert torch.equal(hidden[real], expected[real])
            read += lengths
        simultaneous.wait()
        for found, wanted in zip(tensors(state), tensors(expected_state), strict=True):
            assert torch.equal(found, wanted)
        return simultaneous.num_jobs


@settings(max_examples=12)
@given(
    chunks=st.lists(st.tuples(*[st.integers(0, 9)] * ROWS), min_size=1, max_size=16),
    lag_blocks=st.integers(1, 3),
)
@torch.no_grad()
def test_simultaneous_equals_read_bit_for_bit(
    chunks: list[tuple[int, ...]], lag_blocks: int
) -> None:
    system = tiny.two_stream(lag_blocks)
    generator = torch.Generator().manual_seed(len(chunks))
    expected_state = system.initial_state(ROWS)
    with Simultaneous(system) as simultaneous:
        state = simultaneous.initial_state(ROWS)
        for counts in chunks:
            lengths = torch.tensor(counts)
            ids = torch.randint(tiny.VOCAB, (ROWS, max(*counts, 1)), generator=generator)
            hidden, state = simultaneous.read({"part": ids}, state, lengths)
            expected, expected_state = system.read({"part": ids}, expected_state, lengths)
            assert torch.equal(hidden, expected)
        simultaneous.wait()
        for found, wanted in zip(tensors(state), tensors(expected_state), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("lag_blocks", [1, 2])
@torch.no_grad()
def test_part_waits_only_for_a_block_that_is_due(lag_blocks: int) -> None:
    system = slow_whole(lag_blocks)
    tick = {"part": torch.tensor([[1]])}
    with Simultaneous(system) as simultaneous:
        state = simultaneous.initial_state(1)
        # Block 0 is finished at the last of 4 ticks, and due when block `lag_blocks` is.
        for _ in range((1 + lag_blocks) * tiny.BLOCK - 1):
            _, state = simultaneous.read(tick, state)
        assert (simultaneous.num_jobs, simultaneous.num_misses, system.begun) == (lag_blocks, 0, 1)

        def open_when_awaited() -> None:
            while not simultaneous.num_misses:
                time.sleep(0.001)
            system.gate.set()

        threading.Thread(target=open_when_awaited, daemon=True).start()
        _, state = simultaneous.read(tick, state)
        assert (simultaneous.num_jobs, simultaneous.num_misses) == (1 + lag_blocks, 1)
        simultaneous.wait()
        for _ in range(tiny.BLOCK - 1):
            _, state = simultaneous.read(tick, state)
        assert simultaneous.num_misses == 1


@pytest.mark.parametrize("boundary_ids", [(), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("lag_blocks", [1, 2])
def test_due_blocks_are_awaited_behind_a_row_that_paused(
    lag_blocks: int, boundary_ids: tuple[int, ...]
) -> None:
    """The first job belongs to row 0, which stops and never needs it."""
    system = late_whole(lag_blocks, boundary_ids=boundary_ids)
    ids = torch.randint(tiny.VOCAB, (2, 40), generator=torch.Generator().manual_seed(3))
    ids[0, : tiny.BLOCK] = 0
    chunks = [torch.tensor([int(t < tiny.BLOCK), int(t >= 2)]) for t in range(30)]
    assert assert_equals_read(system, ids, chunks) >= 7


@pytest.mark.parametrize(
    ("changes", "chunk_ticks"),
    [
        ({"part": tiny.tower(3)}, 3),
        ({"whole": tiny.tower(2, width=24), "boundary_ids": tuple(range(1, 11))}, 2),
    ],
)
def test_chunks_longer_than_the_rings_allow_run_in_turn(
    changes: dict[str, Any], chunk_ticks: int
) -> None:
    system = late_whole(1, block_ticks=8, **changes)
    assert system.chunk_ticks == chunk_ticks
    ids = torch.randint(tiny.VOCAB, (1, 64), generator=torch.Generator().manual_seed(3))
    lengths = [8, 1, 2, 5, 1, 1, 2, 8, 3, 1, 1, 4, 1, 8, 1, 1]
    assert assert_equals_read(system, ids, [torch.tensor([n]) for n in lengths]) > 0


@pytest.mark.parametrize(
    "mode", [torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_worker_computes_in_the_mode_of_the_caller(mode: AbstractContextManager[Any]) -> None:
    ids = torch.randint(tiny.VOCAB, (1, 24), generator=torch.Generator().manual_seed(3))
    with mode:
        assert assert_equals_read(tiny.two_stream(1), ids, [torch.tensor([1])] * 24) == 6


def test_a_process_computes_the_same_for_every_kind_of_whole() -> None:
    """A level above, recall, rows that pause, and both modes of the caller."""
    above = LevelConfig(
        whole=tiny.tower(4), lower_layers=1, block_ticks=2, lag_blocks=1, compressor="mean"
    )
    system = tiny.two_stream(1, levels=(above,), recall=RecallConfig(), boundary_ids=(1, 2, 3))
    ids = torch.randint(tiny.VOCAB, (2, 60), generator=torch.Generator().manual_seed(3))
    chunks = [torch.tensor([t % 3, 1]) for t in range(40)]
    for mode in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            assert assert_equals_read(system, ids, chunks, "process") > 10


@pytest.mark.parametrize("worker", WORKERS)
@torch.no_grad()
def test_new_batch_may_begin_while_the_last_one_has_work_left(
    worker: Literal["thread", "process"],
) -> None:
    tick = {"part": torch.ones(2, tiny.BLOCK, dtype=torch.long)}
    with Simultaneous(late_whole(1), worker=worker) as simultaneous:
        simultaneous.read(tick, simultaneous.initial_state(2))
        three = {"part": torch.ones(3, tiny.BLOCK, dtype=torch.long)}
        state = simultaneous.initial_state(3)
        for _ in range(3):
            _, state = simultaneous.read(three, state)
        assert state.whole.finished.tolist() == [3] * 3


def test_sessions_run_simultaneously_and_start_again() -> None:
    system = tiny.two_stream(1)

    def ids(model: TwoStream | Simultaneous) -> list[list[int]]:
        sessions = Sessions(model, 2, sliding=True)
        for row in (0, 1):
            sessions.start(row, Sampling(seed=row))
            sessions.feed({row: [5] * (7 + row)})
        found = []
        for tick in range(40):
            if tick == 17:
                found.append(sessions[1].sampled)
                sessions.start(1, Sampling(seed=9))
                sessions.feed({1: [3]})
            sessions.step()
        return [*found, sessions[0].sampled, sessions[1].sampled]

    expected = ids(system)
    for worker in WORKERS:
        with Simultaneous(system, worker=worker) as simultaneous:
            assert ids(simultaneous) == expected
            assert simultaneous.num_jobs > 0


def test_worker_has_its_own_threads_and_ends_with_the_block() -> None:
    before = torch.get_num_threads()
    with Simultaneous(tiny.two_stream(1), num_threads=before + 1) as simultaneous:
        assert torch.get_num_threads() == before
        assert isinstance(simultaneous._worker, InThread)
        assert simultaneous._worker._worker.submit(torch.get_num_threads).result() == before + 1
        fresh: list[int] = []
        other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert fresh == [before]
    assert not any(thread.name.startswith("whole-tower") for thread in threading.enumerate())


@pytest.mark.parametrize("worker", WORKERS)
def test_failure_of_the_whole_tower_is_raised(worker: Literal["thread", "process"]) -> None:
    system = tiny.two_stream(1)
    del system.whole.layers[1].mlp
    simultaneous = Simultaneous(system, worker=worker)
    with simultaneous, pytest.raises(AttributeError, match="mlp"):
        list(generate(simultaneous, [1], num_ticks=3 * tiny.BLOCK))


def test_a_process_that_has_ended_is_named() -> None:
    with Simultaneous(tiny.two_stream(1), worker="process") as simultaneous:
        assert isinstance(simultaneous._worker, InProcess)
        simultaneous._worker._worker._process.kill()
        with pytest.raises(OSError, match="ended with status -9"):
            list(generate(simultaneous, [1], num_ticks=3 * tiny.BLOCK))


def test_a_compiled_model_is_refused_for_a_process() -> None:
    system = tiny.two_stream(1)
    compile_ticks(system)
    with pytest.raises(UserError, match="compiled model cannot be sent"):
        Simultaneous(system, worker="process")


def test_a_stream_is_refused_without_a_cuda_device() -> None:
    with pytest.raises(UserError, match="CUDA device only: this model is on cpu"):
        Simultaneous(tiny.two_stream(1), worker="stream")


class Stream:
    """A CUDA stream that notes what is asked of it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def record_event(self) -> "Event":
        return Event("begun", self.notes).record(self)

    def wait_event(self, event: "Event") -> None:
        self.notes.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        self.notes.append(f"{self.name} ends")

    def __enter__(self) -> None:
        self.notes.append(f"into {self.name}")

    def __exit__(self, *error: object) -> None:
        self.notes.append(f"out of {self.name}")


class Event:
    """A CUDA event that notes where it is recorded."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def record(self, stream: Stream) -> "Event":
        self.notes.append(f"{stream.name} records {self.name}")
        return self

    def query(self) -> bool:
        return False


class OnStream:
    """A system whose tower notes that it reads."""

    device = torch.device("cuda", 1)

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def read_whole_tower(self, lower: Any, state: Any) -> None:
        self.notes.append(f"reads {state}")
        if state == "broken rings":
            raise RuntimeError("broken")


class Lower:
    x = torch.zeros(1)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the streams of device 1; the current device of the caller is 0."""
    notes: list[str] = []
    streams = {device: Stream(f"caller on {device}", notes) for device in (0, 1)}
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("whole", notes))
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event("done", notes))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device=None: streams[device.index if device else 0]
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    return notes


def test_streams_wait_for_each_other(notes: list[str]) -> None:
    """The order of what is queued, without a GPU; `tests/gpu` compares results on one."""
    worker = InStream(OnStream(notes), 1)
    job = worker.submit(Lower(), "rings")
    job.result()
    assert not job.done()  # the thread has queued its kernels, and they still run
    worker.close()
    assert notes == [
        "caller on 1 records begun",
        "into whole",
        "whole waits for begun",
        "reads rings",
        "whole records done",
        "out of whole",
        "caller on 1 waits for done",
        "whole ends",
    ]


def test_what_a_stream_reads_is_kept_until_the_caller_waits_for_it(notes: list[str]) -> None:
    """Freed memory would be given to the caller's next kernels while the stream still uses it."""
    worker = InStream(OnStream(notes), 1)
    lower = Lower()
    left = weakref.ref(lower)
    job = worker.submit(lower, "rings")
    del lower
    worker.submit(Lower(), "others").result()  # the thread has left the first job behind
    gc.collect()
    assert left() is not None
    job.result()
    del job
    gc.collect()
    assert left() is None
    worker.close()


def test_a_caller_also_waits_for_kernels_of_a_job_that_failed(notes: list[str]) -> None:
    worker = InStream(OnStream(notes), 1)
    with pytest.raises(RuntimeError, match="broken"):
        worker.submit(Lower(), "broken rings").result()
    assert notes[-1] == "caller on 1 waits for done"
    worker.close()


def test_model_without_lag_is_refused() -> None:
    with pytest.raises(ValueError, match="`lag_blocks` >= 1: this model has 0"):
        Simultaneous(tiny.two_stream(0))
