import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Sessions, generate
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.systems.two_stream import TwoStream
from tests.runtime import tiny

ROWS = 3


def tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in tensors(part)]


class SlowWhole(TwoStream):
    """The same model with a whole tower that does not start before it is allowed to."""

    gate: threading.Event
    begun: int = 0

    def extend_whole(self, *arguments: Any) -> None:
        self.begun += 1
        self.gate.wait(5)
        super().extend_whole(*arguments)


def slow_whole(lag_blocks: int) -> SlowWhole:
    system = SlowWhole(tiny.two_stream(lag_blocks).config)
    tiny.randomise(system)
    system.gate = threading.Event()
    return system


@settings(max_examples=12)
@given(
    chunks=st.lists(st.tuples(*[st.integers(0, 9)] * ROWS), min_size=1, max_size=16),
    lag_blocks=st.integers(1, 3),
)
@torch.no_grad()
def test_simultaneous_equals_extend_bit_for_bit(
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
            logits, state = simultaneous.extend({"part": ids}, state, lengths)
            expected, expected_state = system.extend({"part": ids}, expected_state, lengths)
            assert torch.equal(logits["part"], expected["part"])
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
            _, state = simultaneous.extend(tick, state)
        assert (simultaneous.num_jobs, simultaneous.num_misses, system.begun) == (lag_blocks, 0, 1)
        threading.Timer(0.1, system.gate.set).start()
        _, state = simultaneous.extend(tick, state)
        assert (simultaneous.num_jobs, simultaneous.num_misses) == (1 + lag_blocks, 1)
        simultaneous.wait()
        for _ in range(tiny.BLOCK - 1):
            _, state = simultaneous.extend(tick, state)
        assert simultaneous.num_misses == 1


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

    with Simultaneous(system) as simultaneous:
        assert ids(simultaneous) == ids(system)
        assert simultaneous.num_jobs > 0


def test_worker_has_its_own_threads_and_ends_with_the_block() -> None:
    before = torch.get_num_threads()
    with Simultaneous(tiny.two_stream(1), num_threads=before + 1) as simultaneous:
        assert torch.get_num_threads() == before
        assert simultaneous._worker.submit(torch.get_num_threads).result() == before + 1
        fresh: list[int] = []
        other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert fresh == [before]
    assert not any(thread.name.startswith("whole-tower") for thread in threading.enumerate())


def test_failure_of_the_whole_tower_is_raised() -> None:
    system = slow_whole(1)
    system.gate.set()
    del system.whole.layers[1].mlp
    with Simultaneous(system) as simultaneous, pytest.raises(AttributeError, match="mlp"):
        list(generate(simultaneous, [1], num_ticks=3 * tiny.BLOCK))


def test_model_without_lag_is_refused() -> None:
    with pytest.raises(ValueError, match="`lag_blocks` >= 1: this model has 0"):
        Simultaneous(tiny.two_stream(0))
