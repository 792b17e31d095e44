"""T5: claims about registers, to be judged as soon as they are made."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from types import MappingProxyType
from typing import ClassVar

from counterpoint.data.tasks.items import Item, ItemPolicy, Replies, Writer, always, draw
from counterpoint.errors import UserError

_RIGHT = "."
_WRONG = "!"
_FILLER = "/_|~"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamAudit:
    """A stream of updates ("a+3") and claims ("a=7"), with a verdict after each claim.

    Half of the texts have one false claim. Scores: "f1" and "recall" of finding false claims, and
    "false alarms" a text. The whole is the values of all registers, one after another.

    Attributes:
        num_registers: Number of registers, which start at 0 and count modulo 10.
        num_steps: Number of updates and claims.
        claim_share: Share of the steps that are claims.
        filler: Number of symbols without a meaning after every step.
    """

    name: ClassVar[str] = "audit"
    primary: ClassVar[str] = "f1"
    scoring: ClassVar[Mapping[str, str]] = MappingProxyType({"flag": _WRONG, "asked": "verdict"})
    num_registers: int = 4
    num_steps: int = 60
    claim_share: float = 0.4
    filler: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_registers <= 26:
            raise UserError(f"`num_registers` must be 1 to 26: got {self.num_registers}.")

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return (5 + self.filler) * self.num_steps

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        claims = [rng.random() < self.claim_share for _ in range(self.num_steps)]
        places = [step for step, claim in enumerate(claims) if claim]
        false_at = rng.choice(places) if places and rng.random() < 0.5 else -1
        values = [0] * self.num_registers
        writer = Writer()
        steps: list[tuple[int, int, bool]] = []
        for step, claim in enumerate(claims):
            gap = "".join(rng.choices(_FILLER, k=self.filler)) + " "
            register = rng.randrange(self.num_registers)
            letter = ascii_lowercase[register]
            writer.label("".join(map(str, values)))
            if not claim:
                change = rng.randrange(1, 10)
                values[register] = (values[register] + change) % 10
                writer.write(f"{letter}+{change}{gap}")
                steps.append((register, change, False))
                continue
            wrong = step == false_at
            shown = (values[register] + (rng.randrange(1, 10) if wrong else 0)) % 10
            writer.write(f"{letter}={shown}")
            writer.answer("verdict", _WRONG if wrong else _RIGHT)
            writer.write(gap)
            steps.append((register, shown, True))
        return writer.item(steps=steps)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": self._window(self.num_steps),
            "last 8 steps": self._window(8),
            "last 16 steps": self._window(16),
            "always wrong": lambda item, rng: always({"verdict": _WRONG}, item),
        }

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the scores of answers; see `ScoredTask.score`."""
        outcomes = [_outcomes(item, answers) for item, answers in zip(items, given, strict=True)]
        found, missed, alarms = (sum(counts) for counts in zip(*outcomes, strict=True))
        return {
            "f1": 2 * found / max(2 * found + missed + alarms, 1),
            "recall": found / max(found + missed, 1),
            "false alarms": alarms / max(len(items), 1),
        }

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the numerator and denominator of an item; see `ScoredTask.counts`."""
        found, missed, alarms = _outcomes(item, given)
        return 2 * found, 2 * found + missed + alarms

    def _window(self, num_steps: int) -> ItemPolicy:
        """Return a policy that reads so many steps and flags claims that contradict them."""

        def policy(item: Item, rng: random.Random) -> Replies:
            steps = item.facts["steps"]
            given: dict[int, str] = {}
            for step, (register, shown, claim) in enumerate(steps):
                if not claim:
                    continue
                first = max(0, step - num_steps)
                known = 0 if first == 0 else None
                for other, number, is_claim in steps[first:step]:
                    if other != register:
                        continue
                    if not is_claim:
                        known = None if known is None else (known + number) % 10
                    elif known is None:  # taken to be true
                        known = number
                false = known is not None and known != shown
                given[len(given)] = _WRONG if false else _RIGHT
            return given

        return policy


def _outcomes(item: Item, given: Replies) -> tuple[int, int, int]:
    """Return the numbers of false claims found and missed, and of true claims flagged."""
    flags = [given.get(number) == _WRONG for number in range(len(item.answers))]
    false = [answer.text == _WRONG for answer in item.answers]
    pairs = list(zip(flags, false, strict=True))
    return pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
