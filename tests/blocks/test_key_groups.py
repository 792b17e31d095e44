"""Groups of queries hold every key that one of them may read, and read what all read alone."""

import pytest
import torch
from torch import Tensor

from counterpoint.blocks import key_groups
from counterpoint.blocks.block_grid import lay_blocks
from counterpoint.blocks.key_groups import KeyGroups, group_keys, keys_run, read_scores, read_sums
from counterpoint.streams.clock import (
    Span,
    finished_span,
    grouped_keys,
    most_keys,
    span_mask,
    span_of_each,
)

BLOCK = 4


def documents(num_rows: int, num_steps: int, share: float) -> Tensor:
    """First step of the document of each step; about this share of the steps begins one."""
    begins = torch.rand(num_rows, num_steps) < share
    step = torch.arange(num_steps)
    return torch.where(begins, step, 0).cummax(1).values


def spans(*, early: bool, lag: int, share: float, window: int, num_steps: int = 150) -> Span:
    """What fine steps of rows may read of their blocks; the last row may read nothing."""
    start = documents(8, num_steps, share)
    ends = torch.rand(8, num_steps) < torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat(2)[:8, None]
    grid = lay_blocks(ends if early else None, start, BLOCK)
    assert grid.shortest == (1 if early else BLOCK)
    first = torch.nn.functional.pad(grid.finished, (1, 0)).gather(1, start)
    seen = finished_span(grid.finished, lag, first, window)
    return Span(seen.start, seen.stop * (torch.arange(8) < 7)[:, None])


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_group_has_every_key_that_one_of_its_queries_may_read(
    early: bool, lag: int, size: int
) -> None:
    torch.manual_seed(size)
    for share in (0.0, 0.05, 0.4):
        for window in (1, 3, 10):
            seen = spans(early=early, lag=lag, share=share, window=window)
            most = most_keys(window, size, 1 if early else BLOCK)
            groups = KeyGroups(size, grouped_keys(seen, size, most))
            assert (groups.key >= 0).all()
            assert (groups.key < max(int(seen.stop.max()), most)).all()
            number = torch.arange(max(int(seen.stop.max()), most))[None]
            mask = groups.mask(seen)[:, None].float()
            everywhere = groups.spread(mask, number.shape[1])[:, 0]
            assert torch.equal(everywhere.bool(), span_mask(seen, number))


@pytest.mark.parametrize(("size", "shortest"), [(1, 4), (2, 4), (8, 4), (9, 4), (10, 4), (6, 1)])
def test_a_group_has_no_more_keys_than_its_queries_may_read_in_the_worst_case(
    size: int, shortest: int
) -> None:
    """Wherever blocks end: the worst of all phases reads exactly so many."""
    window = 5
    step = torch.arange(200)
    read = 0
    for phase in range(shortest):
        stop = (step + phase) // shortest
        first, last = stop[40 : -size - 1], stop[40 + size - 1 : -2]
        read = max(read, int((last - first).max()) + window)
    assert most_keys(window, size, shortest) == read


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("num_queries", [64, 61])
def test_scores_and_sums_are_those_of_all_keys(each: int, num_queries: int) -> None:
    torch.manual_seed(each)
    seen = spans(early=True, lag=1, share=0.02, window=4, num_steps=num_queries)
    num_keys = max(int(seen.stop.max()), most_keys(4, 8, 1))
    groups = KeyGroups(8, grouped_keys(seen, 8, most_keys(4, 8, 1))).each(each)
    mask = groups.mask(span_of_each(seen, each))[:, None]
    q = torch.randn(8, 2, num_queries, 6, dtype=torch.float64)
    k, v = torch.randn(2, 8, 2, num_keys * each, 6, dtype=torch.float64)
    few = read_scores(q, k, groups)
    every = read_scores(q, k, None)
    number = torch.arange(num_keys).repeat_interleave(each)[None]
    hidden = ~span_mask(seen, number)[:, None]
    spread = groups.spread(few * mask, num_keys * each)
    torch.testing.assert_close(spread, every.masked_fill(hidden, 0), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        read_sums(few * mask, v, groups), read_sums(spread, v, None), rtol=0, atol=1e-12
    )
    index = torch.randint(groups.key.shape[2], (8, num_queries, 2))
    chosen = groups.chosen(index)
    for query in range(num_queries):
        own = groups.key[:, query // 8].gather(1, index[:, query])
        assert torch.equal(chosen[:, query], own)


def test_short_rows_and_wide_windows_are_read_densely() -> None:
    def groups(num_keys: int, window: int, shortest: int) -> KeyGroups | None:
        step = torch.arange(num_keys * shortest)[None]
        seen = finished_span((step + 1) // shortest, 0, 0, window)
        return group_keys(seen, num_keys, window, shortest)

    assert groups(key_groups.FEW_KEYS, 8, 1) is None
    for window, shape in ((8, (1, 41, 8 + 7)), (64, (1, 6, 64 + 63))):  # at most twice the window
        found = groups(key_groups.FEW_KEYS + 1, window, 1)
        assert found is not None
        assert found.key.shape == shape
    assert groups(512, 1000, 8) is None
    assert groups(512, 256 - 8, 8) is None  # a group has half of the keys
    assert groups(513, 256 - 8, 8) is not None
    for num_keys in (320, 321, 640, 4000):
        dense = groups(num_keys, 80, 1) is None
        wanted = num_keys if dense else (80 + 63) * -(-num_keys // 64) * 64 / num_keys
        assert keys_run(num_keys, num_keys, 80, 1) == wanted


@pytest.mark.parametrize("num_first", [1, 3])
def test_every_group_reads_the_first_keys_too_and_its_own_behind_them(num_first: int) -> None:
    torch.manual_seed(num_first)
    seen = spans(early=True, lag=0, share=0.05, window=3)
    groups = KeyGroups(8, grouped_keys(seen, 8, most_keys(3, 8, 1)))
    behind = groups.behind(num_first)
    num_keys = num_first + int(groups.key.max()) + 1
    memory = torch.randn(8, 2, num_keys, 5)
    q = torch.randn(8, 2, seen.stop.shape[1], 5)
    own = groups.scores(q, memory[:, :, num_first:])
    first = q @ memory[:, :, :num_first].transpose(-1, -2)
    torch.testing.assert_close(behind.scores(q, memory), torch.cat((first, own), 3))
