import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Int, UInt

from counterpoint.data.loader import Loader
from counterpoint.data.passes import Cursor, Passes
from counterpoint.data.token_deal import MemberWeight, TokenDeal, pieces, weights_at
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch


class Unequal:
    """Rows of unequal numbers of tokens, which are their places, each with one item."""

    def __init__(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        self.counts = np.array(counts)
        self.firsts = np.cumsum(counts) - counts if firsts is None else np.array(firsts)

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        raise AssertionError("a deal needs the counts only")

    def tokens(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        return self.counts[indices]

    def items(self, index: int) -> UInt[np.ndarray, " n"]:
        return self.firsts[[index]].astype(np.uint64)

    def spans(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        return np.stack((self.firsts, self.firsts + self.counts), 1)[indices]

    def rest(self, spans: Int[np.ndarray, "n 2"]) -> "Unequal":
        size = int(self.counts[0])
        firsts = [first for begin, end in spans for first in range(begin, end - size + 1, size)]
        return Unequal([size] * len(firsts), firsts)


def hands(rows: Mapping[str, Sequence[int]], **cursor: Any) -> dict[str, Passes]:
    """Each member has items of its own."""
    return {
        name: Passes(Cursor(name=name, **cursor), Loader(Unequal(counts), 1, 0), set())
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
    assert [amount.unique_items for _, amount in first + second] == [1] * 8 + [0] * 2
    cursor = shared["a"].cursor
    again = {"a": Passes(cursor, Loader(Unequal([10] * 8), 1, 0), set())}
    third = TokenDeal("more", 20, weights, again, 1).taken
    assert [turn.number for turn, _ in third] == [10, 11]


def placed(deal: TokenDeal, loader: Passes) -> list[int]:
    """Return the places of all rows of a deal, in order."""
    found: list[int] = []
    for turn, _ in deal.taken:
        ((rows, indices),) = loader._parts([turn.number])
        assert isinstance(rows, Unequal)
        (span,) = rows.spans(indices)
        found += range(*span)
    return found


@pytest.mark.parametrize("sizes", [(4, 2, 4), (2, 4, 3), (4, 4, 2), (3, 4, 2)])
def test_nothing_is_read_twice_in_a_pass_whatever_the_rows(sizes: tuple[int, ...]) -> None:
    """Three phases with rows of other lengths read a third of a pass each, and then the next."""
    weights = [MemberWeight(member="a", weight=1.0)]
    cursor = Cursor(name="a")
    read: list[int] = []
    for number, size in enumerate(sizes):
        rows = Passes(cursor, Loader(Unequal([size] * (120 // size)), 1, 0), set())
        read += placed(TokenDeal(str(number), 24, weights, {"a": rows}, 1), rows)
    assert len(read) == len(set(read)) == 72
    rows = Passes(cursor, Loader(Unequal([5] * 24), 1, 0), set())
    left = placed(TokenDeal("rest", 200, weights, {"a": rows}, 1), rows)
    rest, other = left[: -(cursor.turn - 24) * 5], left[-(cursor.turn - 24) * 5 :]
    assert rest
    assert not {*rest} & {*read}
    assert len(rest) == len({*rest})  # then comes another pass, in which everything is read
    assert len({*other}) == min(len(other), 120)


def test_the_rest_of_a_pass_takes_its_last_turns() -> None:
    """With rows that divide those before, every place is read once in every pass."""
    weights = [MemberWeight(member="a", weight=1.0)]
    cursor = Cursor(name="a")
    read: list[int] = []
    turns: list[int] = []
    for size, tokens in ((4, 144), (2, 216)):
        rows = Passes(cursor, Loader(Unequal([size] * (120 // size)), 1, 0), set())
        deal = TokenDeal(str(size), tokens, weights, {"a": rows}, 1)
        turns += [turn.number for turn, _ in deal.taken]
        read += placed(deal, rows)
    assert [sorted(read[begin : begin + 120]) for begin in (0, 120, 240)] == [[*range(120)]] * 3
    assert turns == [*range(36), *range(72, 180)]


def test_rows_that_do_not_say_what_they_hold_must_stay() -> None:
    class Plain:
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
            """Rows 0 and 1 are equal."""
            ids = torch.from_numpy(np.maximum(np.asarray(indices), 1))[:, None].expand(-1, 10)
            starts = torch.zeros(ids.shape, dtype=torch.int64)
            return Batch(ticks={"a": ids}, targets={}, document_start=starts, size=10)

    weights = [MemberWeight(member="a", weight=1.0)]
    cursor = Cursor(name="a")
    taken = TokenDeal("pre", 60, weights, {"a": Passes(cursor, Loader(Plain(4), 1, 0), set())}, 1)
    assert sum(amount.items for _, amount in taken.taken) == 6
    assert sum(amount.unique_items for _, amount in taken.taken) == 3
    with pytest.raises(UserError, match="must keep its rows .* 4 rows became 5 before all were"):
        Passes(cursor, Loader(Plain(5), 1, 0), set())


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
    with pytest.raises(UserError, match="`weight` of 'a' must be finite and >= 0: got -1"):
        MemberWeight(member="a", weight=-1)
    with pytest.raises(UserError, match=r"`begin` and `end` of 'a' must be shares .* 0.5 and 0.5"):
        MemberWeight(member="a", weight=1, begin=0.5, end=0.5)
