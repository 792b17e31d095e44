from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Int

from counterpoint.data.loader import Loader
from counterpoint.streams.batch import Batch


class Numbered:
    """Rows that hold nothing but their own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        ids = torch.from_numpy(indices)[:, None]
        return Batch(
            ticks={"part": ids}, targets={"part": ids}, document_start=ids * 0, size=len(ids)
        )


def global_rows(loader: Loader, steps: range) -> list[int]:
    return [int(i) for step in steps for i in loader.indices(step)]


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 50))
def test_ranks_share_the_same_global_batch(count: int, seed: int, step: int) -> None:
    rows = Numbered(count)
    alone = Loader(rows, 6, seed).indices(step)
    for world_size in (1, 2, 3, 6):
        parts = [
            Loader(rows, 6, seed, rank, world_size).indices(step) for rank in range(world_size)
        ]
        assert np.concatenate(parts).tolist() == alone.tolist()


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_every_epoch_reads_every_row_once(count: int, batch_rows: int, seed: int) -> None:
    read = global_rows(Loader(Numbered(count), batch_rows, seed), range(3 * count))
    for epoch in range(len(read) // count):
        assert Counter(read[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_order_is_a_function_of_seed_and_step_alone() -> None:
    straight = Loader(Numbered(10), 4, seed=5)
    expected = {step: straight.batch(step).ticks["part"].tolist() for step in range(12)}
    resumed = Loader(Numbered(10), 4, seed=5)
    for step in (11, 3, 7, 3, 0):
        assert resumed.batch(step).ticks["part"].tolist() == expected[step]


def test_order_changes_with_epoch_and_seed() -> None:
    loader = Loader(Numbered(100), 100, seed=0)
    orders = {tuple(loader.indices(step)) for step in range(5)}
    orders |= {tuple(Loader(Numbered(100), 100, seed=s).indices(0)) for s in range(1, 5)}
    assert len(orders) == 9
    assert tuple(range(100)) not in orders


def test_order_is_the_same_in_every_version() -> None:
    # Frozen: a run that is resumed after an upgrade must go on with the same order.
    assert Loader(Numbered(8), 8, seed=1).indices(0).tolist() == [2, 0, 1, 4, 5, 6, 7, 3]


def test_order_is_uniform() -> None:
    first = Counter(int(Loader(Numbered(5), 5, seed).indices(0)[0]) for seed in range(2000))
    assert set(first) == set(range(5))
    assert all(abs(count - 400) < 5 * 18 for count in first.values())  # 5 standard deviations


def test_corpus_shorter_than_a_batch_repeats() -> None:
    read = Loader(Numbered(2), 5, seed=0).indices(0)
    assert sorted(Counter(read.tolist()).values()) == [2, 3]


def test_misuse_is_refused() -> None:
    rows = Numbered(4)
    with pytest.raises(ValueError, match="corpus is empty"):
        Loader(Numbered(0), 2, 0)
    with pytest.raises(ValueError, match="batch_rows=4, world_size=3"):
        Loader(rows, 4, 0, 0, 3)
    with pytest.raises(ValueError, match="`batch_rows` must be"):
        Loader(rows, 0, 0)
    with pytest.raises(ValueError, match="rank=2, world_size=2"):
        Loader(rows, 4, 0, 2, 2)
    with pytest.raises(ValueError, match="`seed` must be >= 0"):
        Loader(rows, 4, -1)
    with pytest.raises(ValueError, match="`step` must be >= 0"):
        Loader(rows, 4, 0).indices(-1)
