from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Int

from counterpoint.data.loader import Loader, Share, spread_turn
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


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=4))
def test_turns_follow_weights_and_are_counted(weights: list[float]) -> None:
    turns = [spread_turn(slot, weights) for slot in range(260)]
    for number, weight in enumerate(weights):
        own = [turn for whose, turn in turns if whose == number]
        assert own == list(range(len(own)))
        assert abs(len(own) - 260 * weight / sum(weights)) < len(weights)


def test_lists_are_read_by_their_weights_each_with_epochs_of_its_own() -> None:
    shares = [Share(range(3), 1.0), Share(range(3, 13), 2.0)]
    loader = Loader(Numbered(13), 4, 0, shares=shares)
    read = global_rows(loader, range(45))
    first = [row for row in read if row < 3]
    second = [row for row in read if row >= 3]
    assert (len(first), len(second)) == (60, 120)
    for own, rows in ((first, range(3)), (second, range(3, 13))):
        for begin in range(0, len(own), len(rows)):
            assert sorted(own[begin : begin + len(rows)]) == [*rows]
    ranks = [Loader(Numbered(13), 4, 0, rank, 2, shares) for rank in range(2)]
    together = [int(i) for step in range(45) for one in ranks for i in one.indices(step)]
    assert together == read


def test_one_list_is_read_as_if_it_had_no_weight() -> None:
    plain = Loader(Numbered(7), 3, 1)
    weighted = Loader(Numbered(7), 3, 1, shares=[Share(range(7), 5.0)])
    assert global_rows(plain, range(9)) == global_rows(weighted, range(9))
