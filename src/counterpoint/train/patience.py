"""Ends a reinforcement that cannot learn, in one line that says why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from counterpoint.data.tasks.verify import SUCCESS, Verified, pass_at_k
from counterpoint.errors import UserError


class NoRewardError(UserError):
    """No reward tells solutions apart; the message is one line with the pass@k that shows it."""


@dataclass(kw_only=True, slots=True)
class Patience:
    """Counts rounds of solutions that teach nothing: the advantages of all trained rows are 0.

    What matters is that rewards differ within a group, whatever they are: negative ones teach too,
    and partial credit of one size teaches nothing. Rounds in which every solution is right teach
    nothing either, but then there is nothing left to learn; they are not counted.

    Attributes:
        rounds: Number of such rounds in a row after which the training ends.
        group_size: Number of solutions of a question.
        idle: Number of right solutions of each question, by the number of the round, since the last
            round that taught something. A round that is written again is counted once.
    """

    rounds: int
    group_size: int
    idle: dict[int, list[int]] = field(default_factory=dict)

    def watch(self, number: int, outcomes: Sequence[Verified], *, teaches: bool) -> None:
        """Count a round.

        Args:
            number: Number of the round.
            outcomes: What its solutions are worth; those of a question stand together.
            teaches: Whether a row that carries a loss has an advantage other than 0.

        Raises:
            NoRewardError: As many rounds as `rounds` have taught nothing.
        """
        rewards = [outcome.reward for outcome in outcomes]
        size = self.group_size
        groups = [rewards[first : first + size] for first in range(0, len(rewards), size)]
        right = [sum(reward >= SUCCESS for reward in group) for group in groups]
        if teaches:
            self.idle = {}
        elif sum(right) < len(rewards):
            self.idle[number] = right
        if len(self.idle) >= self.rounds:
            raise NoRewardError(self._reason(outcomes))

    def _reason(self, newest: Sequence[Verified]) -> str:
        right = list(chain.from_iterable(self.idle.values()))
        size = self.group_size
        estimates = ", ".join(f"pass@{k} {pass_at_k(right, size, k):.3f}" for k in (1, size))
        bound = ""
        if not any(right):
            # With n failures the true share is below 1 - 0.05^(1/n) with 95 % confidence.
            most = 1 - 0.05 ** (1 / len(right))
            bound = f"; pass@{size} is below {most:.3f} with 95 % confidence"
        failures = Counter(outcome.failure for outcome in newest if outcome.failure)
        failed = ", ".join(f"{count} {failure}" for failure, count in failures.items())
        judged = f"; of the newest {len(newest)} judgements, {failed}" if failed else ""
        longer = ", raise `limit_s`" if "timed out" in failures else ""
        mend = f"See why the verifier fails{longer}, train" if failed else "Train"
        return (
            "Rewards must tell solutions of a question apart for a model to learn from them: "
            f"{estimates} of the last {len(right)} questions ({len(right) * size} solutions; none "
            f"that ended is better or worse than the others of its question{bound}{judged}). "
            f"{mend} longer before, or ask questions that it solves sometimes."
        )

    @property
    def progress(self) -> Any:
        """What a checkpoint keeps, as JSON: rounds with their numbers of right solutions."""
        return [[number, right] for number, right in self.idle.items()]

    def go_on(self, progress: Any) -> None:
        """Go on from what a checkpoint has kept."""
        self.idle = {number: list(right) for number, right in progress}
