"""Questions of the package reasoning-gym, for breadth: more than a hundred verified families.

They have answers and verifiers, but no steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.data.tasks.items import ExactMatch, ItemPolicy, Writer, draw
from counterpoint.data.tasks.reasoning.family import ANSWER_MARK, SOLUTION_END
from counterpoint.data.tasks.reasoning.gym_verifier import ENTRY, gym_entries
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.digests import json_digest
from counterpoint.errors import UserError

_TRIES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class GymReasoning(ExactMatch):
    """Questions of some families of reasoning-gym, equally often; a `ScoredTask`.

    Items whose texts are not ASCII, whose answers have several lines or a "#", or that are too
    long, are drawn again. The facts of an item hold the package's own entry, for `gym_reward`.

    Attributes:
        families: Names of the package's data sets, such as "chain_sum".
        most_symbols: Largest number of symbols of an item.
    """

    name: ClassVar[str] = "reasoning gym"
    primary: ClassVar[str] = "answer"
    families: tuple[str, ...] = ("chain_sum", "gcd", "letter_counting", "number_sorting")
    most_symbols: int = 512

    def __post_init__(self) -> None:
        if not self.families:
            raise UserError("`families` must have at least one name of a data set: got none.")

    def item(self, seed: int, number: int) -> ReasoningItem:
        """Return the item with a number; see `ScoredTask.item`.

        Raises:
            UserError: A family is unknown, or no item of it fits.
            MissingPackageError: The package is not installed.
        """
        rng = draw(seed, number)
        family = rng.choice(self.families)
        for _ in range(_TRIES):
            # An entry is a function of its index; the index is drawn, so that seeds do not overlap.
            entry = gym_entries(family)[rng.getrandbits(48)]
            answer = entry["answer"]
            writer = Writer()
            text = f"{entry['question']}{SOLUTION_END}"
            if not (_fits(answer) and text.isascii()):
                continue
            writer.write(text + ANSWER_MARK)
            writer.answer(self.primary, answer)
            writer.write(SOLUTION_END)
            if len(writer.text) <= self.most_symbols:
                return ReasoningItem(
                    text=writer.text,
                    answers=tuple(writer.answers),
                    facts={ENTRY: entry},
                    family=family,
                    thought_start=len(text),
                    answer_start=len(text),
                    id=json_digest(writer.text)[:16],
                )
        raise UserError(
            f"`families` must have items of up to {self.most_symbols} ASCII symbols with an answer "
            f"in one line: none of {_TRIES} of {family!r} is so. Raise `most_symbols` or leave it "
            "out."
        )

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; the oracle gives the package's own answer."""
        return {"oracle": lambda item, rng: {0: item.facts[ENTRY]["answer"]}}


def _fits(answer: Any) -> bool:
    if not isinstance(answer, str) or not answer.isascii():
        return False
    return ANSWER_MARK not in answer and SOLUTION_END not in answer
