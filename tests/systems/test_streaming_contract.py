"""What every system promises of its sessions: streaming is offline, and sessions are rows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.systems.two_stream import TwoStream
from tests.systems.tiny_models import VOCAB, batch_of

System = Any  # each has a state type of its own


def random_ids(rows: int, ticks: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, ticks))


def tensors(state: object) -> Iterator[Tensor]:
    """Every tensor of a state, which is nothing but nested tuples of them."""
    if isinstance(state, Tensor):
        yield state
    else:
        assert isinstance(state, tuple)
        for part in state:
            yield from tensors(part)


def num_ticks_of(model: System) -> int:
    """Ticks after which every ring of the model has wrapped several times."""
    if isinstance(model, TwoStream):
        slots = model.initial_state(1).published.coarse.shape[1] * model.config.block_ticks
        return 2 * max(model.part.capacity, slots) + 5
    return min(4 * model.tower.capacity, 400) + 5


def offline(model: System, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(batch_of(ids))["part"]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def stream(model: System, ids: Tensor, chunks: list[int], state: Any = None) -> Tensor:
    if state is None:
        state = model.initial_state(len(ids))
    pieces, first = [], 0
    for length in chunks:
        logits, state = model.extend({"part": ids[:, first : first + length]}, state)
        pieces.append(logits["part"])
        first += length
    assert first == ids.shape[1]
    return torch.cat(pieces, 1)


def random_chunks(num_ticks: int, longest: int) -> list[int]:
    chunks: list[int] = []
    while (left := num_ticks - sum(chunks)) > 0:
        # Half of the chunks are single ticks, as in generation.
        length = 1 if torch.rand(()) < 0.5 else int(torch.randint(1, longest + 1, ()))
        chunks.append(min(length, left))
    return chunks


def test_state_is_rows_of_zeros(model: System) -> None:
    for tensor in tensors(model.initial_state(3)):
        assert len(tensor) == 3
        assert not tensor.any()


def test_streaming_in_any_chunks_is_offline(model: System) -> None:
    ids = random_ids(2, num_ticks_of(model))
    close(
        stream(model, ids, random_chunks(ids.shape[1], max(9, ids.shape[1] // 12))),
        offline(model, ids),
    )


def test_streaming_at_once_is_offline(model: System) -> None:
    """One chunk that is longer than any internal one, then nothing, then a tick."""
    ids = random_ids(2, num_ticks_of(model))
    chunks = [ids.shape[1] - 1, 0, 1]
    close(stream(model, ids, chunks), offline(model, ids))


def test_streaming_tick_by_tick_is_offline(model: System) -> None:
    ids = random_ids(1, min(num_ticks_of(model), 60))
    close(stream(model, ids, [1] * ids.shape[1]), offline(model, ids))


def test_rows_of_different_lengths_equal_rows_alone(model: System) -> None:
    """Rows get different numbers of ticks in every call; none is a pause."""
    num_rows, num_calls = 4, 14
    most = torch.tensor([1, 2, 5, 30]).repeat(num_calls)[:num_calls]  # the last is many chunks
    lengths = (torch.rand(num_calls, num_rows) * (most[:, None] + 1)).long()
    lengths[:4, 0] = 0  # a row that is paused before it ever began
    ids = random_ids(num_rows, int(lengths.sum(0).max()))
    expected = [offline(model, ids[i : i + 1, : int(lengths[:, i].sum())])[0] for i in range(4)]
    read, state = torch.zeros(num_rows, dtype=torch.long), model.initial_state(num_rows)
    for real in lengths:
        width = int(real.max()) + 1  # and one column that no row uses
        chunk = torch.randint(0, VOCAB, (num_rows, width))  # what is not real may be anything
        for row in range(num_rows):
            chunk[row, : real[row]] = ids[row, read[row] : read[row] + real[row]]
        with torch.no_grad():
            logits, state = model.extend({"part": chunk}, state, real)
        for row in range(num_rows):
            ours = logits["part"][row, : real[row]]
            close(ours, expected[row][read[row] : read[row] + real[row]])
        read += real


def test_rows_are_isolated_bit_for_bit(model: System) -> None:
    """Row 0 reads the same while other rows read other things, pause, run ahead and reset."""
    num_ticks = min(num_ticks_of(model), 60)
    chunks = random_chunks(num_ticks, 7)
    mine = random_ids(1, num_ticks)

    @torch.no_grad()
    def run(busy: bool, head_start: int) -> Tensor:
        state = model.initial_state(3)
        if head_start:
            lengths = torch.tensor([0, head_start, head_start // 2])
            _, state = model.extend({"part": random_ids(3, head_start)}, state, lengths)
        pieces, first = [], 0
        for length in chunks:
            ids = random_ids(3, length)
            ids[0] = mine[0, first : first + length]
            lengths = torch.full((3,), length)
            if busy:
                lengths[1:] = torch.randint(0, length + 1, (2,))
                if torch.rand(()) < 0.2:
                    for tensor in tensors(state):
                        tensor[2] = 0
            logits, state = model.extend({"part": ids}, state, lengths)
            pieces.append(logits["part"][0])
            first += length
        return torch.cat(pieces)

    alone = run(busy=False, head_start=0)
    assert torch.equal(run(busy=False, head_start=100), alone)
    assert torch.equal(run(busy=True, head_start=100), alone)


def test_zeroed_row_is_a_new_session(model: System) -> None:
    first, second = random_ids(3, 43), random_ids(3, 39)
    expected = offline(model, torch.cat((first, second), 1))[:, 43:]
    with torch.no_grad():
        _, state = model.extend({"part": first}, model.initial_state(3))
    for tensor in tensors(state):
        tensor[1] = 0
    logits = stream(model, second, random_chunks(39, 7), state)
    close(logits[1], offline(model, second)[1])
    close(logits[[0, 2]], expected[[0, 2]])


def test_state_bytes_agree_with_real_ones(model: System) -> None:
    state = model.initial_state(1)
    real = sum(tensor.nbytes for tensor in tensors(state))
    for num_ticks in (1, 50, 333):
        assert model.state_bytes_per_tick(num_ticks) * num_ticks == pytest.approx(real, rel=0.02)
    with torch.no_grad():
        _, state = model.extend({"part": random_ids(1, 50)}, state)
    assert sum(tensor.nbytes for tensor in tensors(state)) == real
