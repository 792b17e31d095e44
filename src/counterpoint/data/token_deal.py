"""Deals rows to the members of a mixture so that their shares of the tokens are as wanted.

Rows hold different numbers of tokens, so rows are not dealt in proportion to weights: each slot
goes to a member that is owed tokens, first to the one that will soonest be owed a whole row. The
number of tokens of a member therefore stays within one row of its share at every moment. A deal is
computed before the first step from the configs and the data alone: it is the same for any number of
processes, and a run that was killed goes on with the same rows.

Source: the rule of the earliest deadline among those that are owed is that of Tijdeman, The
chairman assignment problem, Discrete Math. 32 (1980), here for rows of unequal length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterpoint.data.mixture import MemberTurn
from counterpoint.data.passes import Passes
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount

_EPSILON = 1e-6  # tokens; rounding must not count as being owed something


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberWeight:
    """The weight of a member of a phase, over the whole phase or a part of it.

    Attributes:
        member: Name of the member.
        weight: Its weight; weights that hold at the same moment are divided by their sum, and are
            then shares of the tokens.
        begin: Share of the phase's tokens after which the weight holds.
        end: Share of the phase's tokens up to which it holds.
    """

    member: str
    weight: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(
                f"`weight` of {self.member!r} must be finite and >= 0: got {self.weight}."
            )
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(
                f"`begin` and `end` of {self.member!r} must be shares of the phase, 0 <= begin < "
                f"end <= 1: got {self.begin} and {self.end}."
            )


class TokenDeal:
    """The rows of a phase, slot by slot; a `counterpoint.data.mixture.Deal`.

    Args:
        phase: Name of the phase, for errors.
        tokens: Number of tokens after which the phase ends, with the batch that reaches it.
        weights: Weights of its members.
        hands: Rows of every member, by name; they are taken.
        batch_rows: Number of rows of a batch, over all processes.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        taken: The turn of each slot of all processes, and what its row holds, without targets.
        num_steps: Number of steps of the phase.

    Raises:
        UserError: At some moment no member has a weight, or a member is exhausted.
    """

    def __init__(
        self,
        phase: str,
        tokens: int,
        weights: Sequence[MemberWeight],
        hands: Mapping[str, Passes],
        batch_rows: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._hands = hands
        self._share = batch_rows // world_size
        self._rank = rank
        self._batch_rows = batch_rows
        self.taken = list(self._deal(phase, tokens, weights))
        self.num_steps = len(self.taken) // batch_rows
        for hand in hands.values():
            hand.leave()

    def turns(self, step: int) -> list[MemberTurn]:
        """Return the turns of this process in a step of the phase."""
        return [turn for turn, _ in self._own(step)]

    def amounts(self, step: int) -> dict[str, Amount]:
        """Return what these turns hold, without targets, for all members of the phase."""
        found = dict.fromkeys(self._hands, Amount())
        for turn, amount in self._own(step):
            before = found[turn.member]
            found[turn.member] = Amount(*(a + b for a, b in zip(before, amount, strict=True)))
        return found

    def _own(self, step: int) -> list[tuple[MemberTurn, Amount]]:
        first = step * self._batch_rows + self._rank * self._share
        return self.taken[first : first + self._share]

    def _deal(
        self, phase: str, tokens: int, weights: Sequence[MemberWeight]
    ) -> list[tuple[MemberTurn, Amount]]:
        taken: list[tuple[MemberTurn, Amount]] = []
        got = dict.fromkeys(self._hands, 0)
        owed = dict.fromkeys(self._hands, 0.0)
        total = 0
        left = self._stretches(phase, weights, total, tokens)
        while total < tokens or len(taken) % self._batch_rows:
            if total >= left[0].end and len(left) > 1:
                owed = left[0].owed(owed, left[0].end)
                del left[0]
            name = self._next(got, owed, left)
            if self._hands[name].is_exhausted:
                # It is needed and has no more: an error, or the others take its share.
                owed = left[0].owed(owed, total)
                left = self._stretches(phase, weights, total, tokens)
                continue
            turn, amount = self._hands[name].take()
            taken.append((turn, amount))
            got[name] += amount.tokens
            total += amount.tokens
        return taken

    def _next(
        self, got: Mapping[str, int], owed: Mapping[str, float], left: "Sequence[_Stretch]"
    ) -> str:
        """Return the member that will soonest be owed a whole row, of those now owed a part."""
        total = sum(got.values())
        # A member whose weight has just ended may still be owed a part of a row.
        rows = {
            name: hand.tokens
            for name, hand in self._hands.items()
            if name in left[0].shares or not hand.is_exhausted
        }
        waiting = [
            name
            for name, tokens in rows.items()
            if _reached(name, got[name] + _EPSILON, owed[name], left) < total + tokens
        ]

        def due(name: str) -> float:
            return _reached(name, got[name] + rows[name], owed[name], left)

        return min(waiting or left[0].shares, key=due)

    def _stretches(
        self, phase: str, weights: Sequence[MemberWeight], total: int, tokens: int
    ) -> "list[_Stretch]":
        """Return the rest of a phase after ``total`` tokens, with equal shares in each stretch."""
        found = []
        for begin, end in pieces(weights):
            if end * tokens > total or end == 1:
                held = weights_at(weights, begin)
                shares = self._shares(phase, held, f"{total:,} of {tokens:,} tokens")
                # The rows that fill the last batch have the shares of the end.
                stop = math.inf if end == 1 else end * tokens
                found.append(_Stretch(max(begin * tokens, total), stop, shares))
        return found

    def _shares(self, phase: str, held: Mapping[str, float], when: str) -> dict[str, float]:
        """Return the shares of those members with a weight that are not exhausted."""
        for name in held:
            hand = self._hands[name]
            if hand.is_exhausted and not hand.cursor.others_take_over:
                raise UserError(
                    f"{name!r} must last to the last batch of phase {phase!r}: its "
                    f"{len(hand.loader.rows)} rows have been read {hand.cursor.most_passes:g} "
                    f"times after {when}. Raise `most_passes`, lower its weight or the tokens, or "
                    "set `when_exhausted` to 'others'."
                )
        left = {name: own for name, own in held.items() if not self._hands[name].is_exhausted}
        if not left:
            raise UserError(
                f"Phase {phase!r} must have data to its end: all its members "
                f"({', '.join(held)}) are exhausted after {when}. Add data, raise `most_passes` "
                "or lower the tokens."
            )
        return {name: own / sum(left.values()) for name, own in left.items()}


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of a phase, from ``start`` to ``end`` tokens, in which the shares do not change."""

    start: float
    end: float
    shares: Mapping[str, float]

    def owed(self, before: Mapping[str, float], total: float) -> dict[str, float]:
        """Return the tokens to which members are entitled, given those at the start."""
        return {
            name: own + self.shares.get(name, 0.0) * (total - self.start)
            for name, own in before.items()
        }


def _reached(name: str, goal: float, owed: float, left: Sequence[_Stretch]) -> float:
    """Return the number of all tokens after which a member is entitled to ``goal`` tokens."""
    if owed >= goal:
        return left[0].start
    for stretch in left:
        share = stretch.shares.get(name, 0.0)
        if share > 0:
            more = share * (stretch.end - stretch.start)
            if owed + more >= goal:
                return stretch.start + (goal - owed) / share
            owed += more
    return math.inf


def pieces(weights: Sequence[MemberWeight]) -> list[tuple[float, float]]:
    """Return the parts of a phase, as shares of it, in which no weight changes."""
    ends = sorted({0.0, 1.0, *(end for one in weights for end in (one.begin, one.end))})
    return list(zip(ends, ends[1:], strict=False))


def weights_at(weights: Sequence[MemberWeight], place: float) -> dict[str, float]:
    """Return the weights above 0 that hold just after a place of a phase, by member."""
    found: dict[str, float] = {}
    for one in weights:
        if one.begin <= place < one.end and one.weight > 0:
            found[one.member] = found.get(one.member, 0.0) + one.weight
    return found
