"""T5: claims about registers, to be judged as soon as they are made."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from types import MappingProxyType
from typing import ClassVar

from counterpoint.data.tasks.items import (
    Item,
    ItemPolicy,
    Replies,
    Writer,
    accuracy,
    always,
    draw,
)
from counterpoint.errors import UserError

_RIGHT = "."
_WRONG = "!"
_FILLER = "/_|~"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamAudit:
    """Judge every claim about a register at once, from all updates of the register before it.

    The text is a stream of updates ("a+3") and claims ("a=7"), with a verdict after each claim.
    Half of the texts have one false claim, or each claim is false with a probability of its
    own. Some claims may be questions instead ("a?7"), whose answer is the value itself. Scores:
    "f1" and "recall" of finding false claims, "false alarms" a text, and "value" of the
    questions. The whole is the values of all registers, one after another.

    Attributes:
        num_registers: Number of registers, which start at 0 and count modulo 10.
        num_steps: Number of updates and claims.
        claim_share: Share of the steps that are claims.
        filler: Number of symbols without a meaning after every step.
        largest_change: Largest number that an update adds; 1 to 9.
        false_share: Share of the claims that are false; ``None`` makes one claim false in half of
            the texts.
        question_share: Share of the claims that are questions.
        first_claim: Number of steps at the beginning that are all updates.
    """

    name: ClassVar[str] = "audit"
    primary: ClassVar[str] = "f1"
    scoring: ClassVar[Mapping[str, str]] = MappingProxyType({"flag": _WRONG, "asked": "verdict"})
    num_registers: int = 4
    num_steps: int = 60
    claim_share: float = 0.4
    filler: int = 0
    largest_change: int = 9
    false_share: float | None = None
    question_share: float = 0.0
    first_claim: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_registers <= 26:
            raise UserError(f"`num_registers` must be 1 to 26: got {self.num_registers}.")
        if not 1 <= self.largest_change <= 9:
            raise UserError(f"`largest_change` must be 1 to 9: got {self.largest_change}.")

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return (5 + self.filler) * self.num_steps - min(self.first_claim, self.num_steps)

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        drawn = [rng.random() < self.claim_share for _ in range(self.num_steps)]
        claims = [claim and step >= self.first_claim for step, claim in enumerate(drawn)]
        asked = self._questions(rng, claims)
        false = self._false_claims(rng, claims)
        values = [0] * self.num_registers
        writer = Writer()
        steps: list[tuple[int, int, bool]] = []
        for step, claim in enumerate(claims):
            gap = "".join(rng.choices(_FILLER, k=self.filler)) + " "
            register = rng.randrange(self.num_registers)
            letter = ascii_lowercase[register]
            writer.label("".join(map(str, values)))
            if not claim:
                change = rng.randrange(1, self.largest_change + 1)
                values[register] = (values[register] + change) % 10
                writer.write(f"{letter}+{change}{gap}")
                steps.append((register, change, False))
                continue
            if step in asked:
                writer.write(f"{letter}?")
                writer.answer("value", str(values[register]))
                writer.write(gap)
                steps.append((register, values[register], True))
                continue
            wrong = step in false
            shown = (values[register] + (rng.randrange(1, 10) if wrong else 0)) % 10
            writer.write(f"{letter}={shown}")
            writer.answer("verdict", _WRONG if wrong else _RIGHT)
            writer.write(gap)
            steps.append((register, shown, True))
        return writer.item(steps=steps)

    def _questions(self, rng: random.Random, claims: Sequence[bool]) -> set[int]:
        """Return the steps of the claims that are questions."""
        if not self.question_share:
            return set()
        return {
            step
            for step, claim in enumerate(claims)
            if claim and rng.random() < self.question_share
        }

    def _false_claims(self, rng: random.Random, claims: Sequence[bool]) -> set[int]:
        """Return the steps of the claims that are false."""
        places = [step for step, claim in enumerate(claims) if claim]
        if self.false_share is not None:
            return {step for step in places if rng.random() < self.false_share}
        return {rng.choice(places)} if places and rng.random() < 0.5 else set()

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": self._window(self.num_steps),
            "last 8 steps": self._window(8),
            "last 16 steps": self._window(16),
            "always wrong": lambda item, rng: always({"verdict": _WRONG, "value": "0"}, item),
        }

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the scores of answers; see `ScoredTask.score`."""
        outcomes = [_outcomes(item, answers) for item, answers in zip(items, given, strict=True)]
        found, missed, alarms = (sum(counts) for counts in zip(*outcomes, strict=True))
        values = accuracy(items, given).get("value")
        return {
            "f1": 2 * found / max(2 * found + missed + alarms, 1),
            "recall": found / max(found + missed, 1),
            "false alarms": alarms / max(len(items), 1),
        } | ({} if values is None else {"value": values})

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the numerator and denominator of an item; see `ScoredTask.counts`."""
        found, missed, alarms = _outcomes(item, given)
        return 2 * found, 2 * found + missed + alarms

    def _window(self, num_steps: int) -> ItemPolicy:
        """Return a policy that reads so many steps and flags claims that contradict them."""

        def policy(item: Item, rng: random.Random) -> Replies:
            steps = item.facts["steps"]
            true = _true_values(item)
            given: dict[int, str] = {}
            for step, (register, shown, claim) in enumerate(steps):
                if not claim:
                    continue
                first = max(0, step - num_steps)
                known = 0 if first == 0 else None
                for other, (own, number, is_claim) in enumerate(steps[first:step], first):
                    if own != register:
                        continue
                    if other in true:
                        known = true[other]
                    elif known is not None and not is_claim:
                        known = (known + number) % 10
                number = len(given)
                if item.answers[number].kind == "value":
                    given[number] = str(rng.randrange(10) if known is None else known)
                    continue
                false = known is not None and known != shown
                given[number] = _WRONG if false else _RIGHT
            return given

        return policy


def _true_values(item: Item) -> dict[int, int]:
    """Return the value of a register at each step that tells it: a true claim, or a question.

    The verdict on a claim stands in the text, so who reads a claim reads whether it is true.
    """
    steps = item.facts["steps"]
    asked = [step for step, (_, _, claim) in enumerate(steps) if claim]
    return {
        step: steps[step][1]
        for step, answer in zip(asked, item.answers, strict=True)
        if answer.text != _WRONG
    }


def _outcomes(item: Item, given: Replies) -> tuple[int, int, int]:
    """Return the numbers of false claims found and missed, and of true claims flagged."""
    claims = [number for number, one in enumerate(item.answers) if one.kind == "verdict"]
    flags = [given.get(number) == _WRONG for number in claims]
    false = [item.answers[number].text == _WRONG for number in claims]
    pairs = list(zip(flags, false, strict=True))
    return pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
