import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from jaxtyping import Int

from counterpoint.data.loader import Loader
from counterpoint.data.token_deal import Cursor, MemberWeight, TokenDeal, pieces, weights_at
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch


class Unequal:
    """Rows of unequal numbers of tokens, each with one item."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.array(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        raise AssertionError("a deal needs the counts only")

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        return self.counts[indices]

    def items(self, index: int) -> Int[np.ndarray, " n"]:
        return np.array([index])


def hands(rows: Mapping[str, Sequence[int]], **cursor: Any) -> dict[str, tuple[Cursor, Loader]]:
    return {
        name: (Cursor(name=name, **cursor), Loader(Unequal(counts), 1, 0))
        for name, counts in rows.items()
    }


def test_shares_of_tokens_are_kept_within_one_row_at_every_moment() -> None:
    for trial in range(12):
        chance = random.Random(trial)
        names = [str(number) for number in range(chance.randint(2, 6))]
        cuts = sorted({0.0, 1.0, *(round(chance.random(), 2) for _ in range(chance.randint(0, 3)))})
        weights = [
            MemberWeight(
                member=name,
                weight=chance.choice([0, 1, chance.random(), 0.01]) + (name == "0") * 0.1,
                begin=begin,
                end=end,
            )
            for begin, end in zip(cuts, cuts[1:], strict=False)
            for name in names
        ]
        longest = 100
        rows = {name: [chance.randint(20, longest) for _ in range(30)] for name in names}
        deal = TokenDeal("pre", 4000, weights, hands(rows), 8)
        got = dict.fromkeys(names, 0)
        for turn, amount in deal.taken:
            got[turn.member] += amount.tokens
            total = sum(got.values())
            for name in names:
                # Beyond the tokens of the phase the last shares go on.
                wanted = sum(
                    held.get(name, 0)
                    / sum(held.values())
                    * ((total if end == 1 else min(total, end * 4000)) - begin * 4000)
                    for begin, end in pieces(weights)
                    for held in [weights_at(weights, begin)]
                    if total > begin * 4000
                )
                assert abs(got[name] - wanted) < longest + 1e-6, trial
        assert 4000 <= sum(got.values()) < 4000 + 8 * longest


def test_rows_by_number_would_miss_the_shares_of_tokens() -> None:
    """Rows of one member are five times as long, and it gets no more tokens for that."""
    rows = {"long": [100] * 10, "short": [20] * 10}
    weights = [MemberWeight(member=name, weight=1.0) for name in rows]
    amounts = TokenDeal("pre", 10_000, weights, hands(rows), 1).taken
    by_name = {
        name: sum(amount.tokens for turn, amount in amounts if turn.member == name) for name in rows
    }
    assert abs(by_name["long"] - by_name["short"]) <= 100
    numbers = [sum(turn.member == name for turn, _ in amounts) for name in rows]
    assert numbers[1] == pytest.approx(5 * numbers[0], rel=0.1)


def test_ranks_share_what_one_process_reads() -> None:
    rows = {"a": [30, 50, 40], "b": [70, 20]}
    weights = [MemberWeight(member="a", weight=0.3), MemberWeight(member="b", weight=0.7)]
    alone = TokenDeal("pre", 2000, weights, hands(rows), 4)
    parts = [TokenDeal("pre", 2000, weights, hands(rows), 4, rank, 2) for rank in (0, 1)]
    every = [turn for step in range(alone.num_steps) for turn in alone.turns(step)]
    assert every == [turn for turn, _ in alone.taken]
    for step in range(alone.num_steps):
        assert alone.turns(step) == [turn for part in parts for turn in part.turns(step)]
        for name, amount in alone.amounts(step).items():
            added = zip(*(part.amounts(step)[name] for part in parts), strict=True)
            assert amount == Amount(*map(sum, added))


def test_later_phases_go_on_where_earlier_ones_stopped() -> None:
    shared = hands({"a": [10] * 8})
    weights = [MemberWeight(member="a", weight=1.0)]
    first = TokenDeal("pre", 50, weights, shared, 1).taken
    second = TokenDeal("sft", 50, weights, shared, 1).taken
    assert [turn.number for turn, _ in first + second] == list(range(10))
    assert [amount.new_items for _, amount in first + second] == [1] * 8 + [0] * 2
    other = {"a": (shared["a"][0], Loader(Unequal([20] * 4), 1, 0))}
    third = TokenDeal("long", 20, weights, other, 1).taken
    assert [turn.number for turn, _ in third] == [5]  # 10 of 8 rows were read: 5 of 4


def test_an_exhausted_source_is_an_error_or_its_share_is_taken_over() -> None:
    rows = {"a": [10] * 5, "b": [10] * 1000}
    weights = [MemberWeight(member="a", weight=0.5), MemberWeight(member="b", weight=0.5)]
    limits = {"most_passes": 2.0}
    with pytest.raises(
        UserError,
        match=r"'a' must last to the last batch of phase 'sft': its 5 rows have been read 2 ti",
    ):
        TokenDeal("sft", 400, weights, hands(rows, **limits), 1)
    taken_over = TokenDeal(
        "sft", 400, weights, hands(rows, others_take_over=True, **limits), 1
    ).taken
    names = [turn.member for turn, _ in taken_over]
    assert (names.count("a"), names.count("b")) == (10, 30)
    assert set(names[20:]) == {"b"}
    exactly = TokenDeal("sft", 200, weights, hands(rows, **limits), 1).taken
    assert len(exactly) == 20
    with pytest.raises(UserError, match=r"all its members \(a\) are exhausted after 100 of 400"):
        TokenDeal(
            "sft", 400, weights[:1], hands({"a": [10] * 5}, others_take_over=True, **limits), 1
        )


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(UserError, match="`weight` of 'a' must be >= 0: got -1"):
        MemberWeight(member="a", weight=-1)
    with pytest.raises(UserError, match=r"`begin` and `end` of 'a' must be shares .* 0.5 and 0.5"):
        MemberWeight(member="a", weight=1, begin=0.5, end=0.5)
