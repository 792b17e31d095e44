"""What every system promises of its sessions: streaming is offline, and sessions are rows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.streams.spec import Ticks
from tests.systems.contract_models import (
    batch_of,
    close,
    equal,
    joined,
    piece,
    random_ticks,
    rows_of,
    skip_if_rows_touch,
)
from tests.systems.scoring import extend, write_scores

System = Any  # each has a state type of its own


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
    return min(4 * model.window_ticks, 400) + 5


def offline(model: System, ticks: Ticks) -> Ticks:
    """Scores of the first element of the frame behind every tick."""
    first = model.layout.predicted[0]
    logits = every_element(model, ticks)[first.name]
    return {first.name: logits[:, :, 0] if first.has_codebooks else logits}


def every_element(model: System, ticks: Ticks) -> Ticks:
    with torch.no_grad():
        return model(batch_of(model, ticks))


@torch.no_grad()
def stream(model: System, ticks: Ticks, chunks: list[int], state: Any = None) -> Ticks:
    """What `extend` scores; of a frame that is written element by element, the first one."""
    num_rows, num_ticks = next(iter(ticks.values())).shape[:2]
    assert sum(chunks) == num_ticks
    if state is None:
        state = model.initial_state(num_rows)
    pieces, first = [], 0
    for length in chunks:
        logits, state = extend(model, piece(ticks, first, first + length), state)
        pieces.append(logits)
        first += length
    return joined(pieces)


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
    num_ticks = num_ticks_of(model)
    ticks = random_ticks(model, 2, num_ticks)
    chunks = random_chunks(num_ticks, max(9, num_ticks // 12))
    close(stream(model, ticks, chunks), offline(model, ticks))


def test_streaming_at_once_is_offline(model: System) -> None:
    """One chunk that is longer than any internal one, then nothing, then a tick."""
    num_ticks = num_ticks_of(model)
    ticks = random_ticks(model, 2, num_ticks)
    close(stream(model, ticks, [num_ticks - 1, 0, 1]), offline(model, ticks))


def test_streaming_tick_by_tick_is_offline(model: System) -> None:
    num_ticks = min(num_ticks_of(model), 60)
    ticks = random_ticks(model, 1, num_ticks)
    close(stream(model, ticks, [1] * num_ticks), offline(model, ticks))


def test_writing_after_any_chunk_is_offline_and_leaves_no_trace(model: System) -> None:
    """Every element of a frame is scored after those before it, and reading goes on the same."""
    num_ticks = min(num_ticks_of(model), 60)
    ticks = random_ticks(model, 2, num_ticks)
    expected = every_element(model, ticks)
    written = batch_of(model, ticks).targets
    state, read = model.initial_state(2), 0
    for length in random_chunks(num_ticks, 9):
        with torch.no_grad():
            hidden, state = model.read(piece(ticks, read, read + length), state)
            read += length
            frame = piece(written, read - 1, read)
            found, frame_written = write_scores(model, hidden[:, -1], frame, state)
        close(found, piece(expected, read - 1, read))
        assert equal(frame_written, frame)


def test_rows_of_different_lengths_equal_rows_alone(model: System) -> None:
    """Rows get different numbers of ticks in every call; none is a pause."""
    skip_if_rows_touch(model)
    num_rows, num_calls = 4, 14
    most = torch.tensor([1, 2, 5, 30]).repeat(num_calls)[:num_calls]  # the last is many chunks
    lengths = (torch.rand(num_calls, num_rows) * (most[:, None] + 1)).long()
    lengths[:4, 0] = 0  # a row that is paused before it ever began
    ticks = random_ticks(model, num_rows, int(lengths.sum(0).max()))
    expected = [
        offline(model, piece(rows_of(ticks, slice(i, i + 1)), 0, int(lengths[:, i].sum())))
        for i in range(num_rows)
    ]
    read, state = torch.zeros(num_rows, dtype=torch.long), model.initial_state(num_rows)
    for real in lengths:
        width = int(real.max()) + 1  # and one column that no row uses
        chunk = random_ticks(model, num_rows, width)  # what is not real may be anything
        for name, ids in chunk.items():
            for row in range(num_rows):
                ids[row, : real[row]] = ticks[name][row, read[row] : read[row] + real[row]]
        with torch.no_grad():
            logits, state = extend(model, chunk, state, real)
        for row in range(num_rows):
            first, length = int(read[row]), int(real[row])
            ours = piece(rows_of(logits, slice(row, row + 1)), 0, length)
            close(ours, piece(expected[row], first, first + length))
        read += real


def test_rows_are_isolated_bit_for_bit(model: System) -> None:
    """Row 0 reads the same while other rows read other things, pause, run ahead and reset."""
    skip_if_rows_touch(model)
    num_ticks = min(num_ticks_of(model), 44)
    chunks = random_chunks(num_ticks, 7)
    mine = random_ticks(model, 1, num_ticks)

    @torch.no_grad()
    def run(others: bool) -> Ticks:
        """Others have read before; for a while they go on beside row 0, and then as they like."""
        state = model.initial_state(3)
        if others:
            lengths = torch.tensor([0, 100, 50])
            _, state = extend(model, random_ticks(model, 3, 100), state, lengths)
        pieces, first = [], 0
        for length in chunks:
            ticks = random_ticks(model, 2, length)
            ticks = joined([piece(mine, first, first + length), ticks], dim=0)
            lengths = torch.full((3,), length)
            if others and first >= num_ticks // 3:
                lengths[1:] = torch.randint(0, length + 1, (2,))
                if torch.rand(()) < 0.2:
                    for tensor in tensors(state):
                        tensor[2] = 0
            logits, state = extend(model, ticks, state, lengths)
            pieces.append(rows_of(logits, slice(0, 1)))
            first += length
        return joined(pieces)

    assert equal(run(others=True), run(others=False))


def test_zeroed_row_is_a_new_session(model: System) -> None:
    skip_if_rows_touch(model)
    first, second = random_ticks(model, 3, 43), random_ticks(model, 3, 39)
    expected = piece(offline(model, joined([first, second])), 43, 43 + 39)
    with torch.no_grad():
        _, state = extend(model, first, model.initial_state(3))
    for tensor in tensors(state):
        tensor[1] = 0
    logits = stream(model, second, random_chunks(39, 7), state)
    close(rows_of(logits, 1), rows_of(offline(model, second), 1))
    close(rows_of(logits, [0, 2]), rows_of(expected, [0, 2]))


def test_state_bytes_agree_with_real_ones(model: System) -> None:
    state = model.initial_state(1)
    real = sum(tensor.nbytes for tensor in tensors(state))
    for num_ticks in (1, 50, 333):
        assert model.state_bytes_per_tick(num_ticks) * num_ticks == pytest.approx(real, rel=0.02)
    with torch.no_grad():
        _, state = extend(model, random_ticks(model, 1, 50), state)
    assert sum(tensor.nbytes for tensor in tensors(state)) == real
