import pytest
import torch
from torch import Tensor

from counterpoint.blocks.block_grid import gather_blocks, lay_blocks, newest_steps


def blocks_by_hand(early: list[bool], starts: list[int], size: int) -> list[list[int]]:
    """Finished blocks of a row as lists of steps, by the definition."""
    found: list[list[int]] = []
    block: list[int] = []
    for step, ends in enumerate(early):
        if starts[step] == step:
            block = []
        block.append(step)
        if ends or len(block) == size:
            found.append(block)
            block = []
    return found


def random_row(num_steps: int) -> tuple[Tensor, Tensor]:
    """Early ends, and the start of each step's document."""
    is_start = torch.rand(num_steps) < 0.1
    is_start[0] = True
    start = torch.where(is_start, torch.arange(num_steps), 0).cummax(0).values
    return torch.rand(num_steps) < 0.3, start


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_grid_is_the_blocks_by_hand(size: int) -> None:
    rows = [random_row(50) for _ in range(6)]
    early, start = (torch.stack(part) for part in zip(*rows, strict=True))
    grid = lay_blocks(early, start, size)
    assert grid.end.shape[1] == int(grid.finished[:, -1].max())
    for row in range(6):
        blocks = blocks_by_hand(early[row].tolist(), start[row].tolist(), size)
        for step in range(50):
            done = [block for block in blocks if block[-1] <= step]
            assert grid.finished[row, step] == len(done)
            latest = max([int(start[row, step]) - 1, *(block[-1] for block in done)])
            assert grid.place[row, step] == step - latest
        for number, block in enumerate(blocks):
            assert grid.end[row, number] == block[-1]
            assert grid.step[row, number][grid.real[row, number]].tolist() == block
        assert not grid.real[row, len(blocks) :].any()


@pytest.mark.parametrize("size", [1, 3, 4])
def test_chunks_give_the_blocks_of_the_whole_row(size: int) -> None:
    """Rows get different numbers of steps, some none; blocks come out once, in order."""
    early, x = torch.rand(3, 60) < 0.25, torch.randn(3, 60, 2)
    read = torch.zeros(3, dtype=torch.long)
    pending, place = torch.zeros(3, size, 2), torch.zeros(3, dtype=torch.long)
    found: list[list[Tensor]] = [[], [], []]
    while read.min() < 60:
        lengths = torch.minimum(torch.randint(0, 8, (3,)), 60 - read)
        numbers = (read[:, None] + torch.arange(7)).clamp(max=59)
        chunk = x.gather(1, numbers[..., None].expand(-1, -1, 2))
        grid = lay_blocks(
            early.gather(1, numbers), -place[:, None].expand(-1, 7), size, lengths=lengths
        )
        steps = torch.cat((pending, chunk), 1)
        blocks = gather_blocks(steps, grid)
        for row in range(3):
            for number in range(int(grid.finished[row, -1])):
                found[row].append(blocks[row, number][grid.real[row, number]])
        after = torch.cat((place[:, None], grid.place), 1).gather(1, lengths[:, None])[:, 0]
        pending = newest_steps(steps, size, lengths)
        place, read = after, read + lengths
    for row in range(3):
        whole = blocks_by_hand(early[row].tolist(), [0] * 60, size)
        for block, expected in zip(found[row], whole, strict=True):
            assert torch.equal(block, x[row, expected])


def test_gathered_blocks_are_zero_where_they_are_short() -> None:
    early = torch.tensor([[False, True, False, False, True, False]])
    grid = lay_blocks(early, torch.zeros(1, 6, dtype=torch.long), 4)
    before = torch.full((1, 4, 1), 9.0)
    blocks = gather_blocks(torch.cat((before, torch.arange(1.0, 7.0)[None, :, None]), 1), grid)
    assert blocks[0, :, :, 0].tolist() == [[0, 0, 1, 2], [0, 3, 4, 5]]


def test_the_newest_steps_of_full_rows_are_those_of_their_lengths() -> None:
    x = torch.randn(3, 4 + 6, 2)
    assert torch.equal(newest_steps(x, 4, None), newest_steps(x, 4, torch.full((3,), 6)))
