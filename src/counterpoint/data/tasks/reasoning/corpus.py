"""Corpora of reasoning, whose knobs are independent of each other."""

import math
import random
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    draw,
    is_scored,
)
from counterpoint.data.tasks.reasoning.families import FAMILIES
from counterpoint.data.tasks.reasoning.family import (
    ANSWER_MARK,
    SOLUTION_END,
    STEP_END,
    Family,
    write_solution,
)
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.digests import json_digest
from counterpoint.errors import UserError, nearest

NUM_FOLDS = 8
"""Number of parts into which all questions are divided by their statements."""

SCORED_FOLD = 0
"""Fold of the questions for scoring, which are in no training item of any corpus."""

MOST_OPERATIONS = 24
"""Largest number of operations that every family can state."""

LABEL_SYMBOLS = 4
"""Number of last symbols of a step's result that are the label of the whole after the step."""

_TRIES = 200
_ENDLESS = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning(ExactMatch):
    """Questions with their reasoning and their answers; a `ScoredTask`.

    The knobs are independent: `families`, `templates` and `shapes` set the diversity, `step_errors`
    and `skipped_steps` the quality, `operations` and `longest_of` the length, `unique` the number
    of items, beyond which they repeat.

    The folds divide all questions by their statements, so that two corpora with different folds
    have no question in common. Items for scoring (`is_scored`) are of a fold of their own, never
    have faults, and are not limited by `unique`.

    Attributes:
        families: Names of the families, of `FAMILIES`.
        shares: Relative number of items of each family; equal shares by default.
        templates: Numbers of the wordings that are used.
        shapes: Number of different shapes for each family and number of operations; 0 is no limit.
        operations: Smallest and largest number of operations; all are equally frequent.
        step_errors: Share of the written steps with a wrong result, from which the item goes on.
        skipped_steps: Share of the steps that are not written; 1 leaves only the answer.
        unique: Number of different items for training, after which they repeat; 0 is no limit.
        longest_of: Take only the item with the longest solution of so many.
        most_symbols: Largest number of symbols of an item; longer ones are drawn again.
        folds: Folds of the questions for training, from 1 to 7.
    """

    name: ClassVar[str] = "reasoning"
    primary: ClassVar[str] = "answer"
    families: tuple[str, ...] = tuple(FAMILIES)
    shares: tuple[float, ...] = ()
    templates: tuple[int, ...] = tuple(range(8))
    shapes: int = 0
    operations: tuple[int, int] = (2, 5)
    step_errors: float = 0.0
    skipped_steps: float = 0.0
    unique: int = 0
    longest_of: int = 1
    most_symbols: int = 512
    folds: tuple[int, ...] = tuple(range(1, NUM_FOLDS))

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise UserError(
                    f"`families` must be of {', '.join(FAMILIES)}: got {name!r}. "
                    f"{nearest(name, FAMILIES)}"
                )
        if not self.families or len(self.shares) not in (0, len(self.families)):
            raise UserError(
                "`shares` must be one number for each of `families`, or empty: got "
                f"{len(self.shares)} for {len(self.families)}."
            )
        self._check_shares()
        least = min(len(FAMILIES[name].wordings) for name in self.families)
        if not self.templates or not set(self.templates) <= set(range(least)):
            raise UserError(f"`templates` must be of 0 to {least - 1}: got {self.templates}.")
        if not 1 <= self.operations[0] <= self.operations[1] <= MOST_OPERATIONS:
            raise UserError(
                f"`operations` must be 1 to {MOST_OPERATIONS}, the smaller one first: got "
                f"{self.operations}."
            )
        if not self.folds or not set(self.folds) <= set(range(1, NUM_FOLDS)):
            raise UserError(f"`folds` must be of 1 to {NUM_FOLDS - 1}: got {self.folds}.")
        for name, least in (("longest_of", 1), ("most_symbols", 1), ("unique", 0), ("shapes", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"`{name}` must be >= {least}: got {getattr(self, name)}.")

    def _check_shares(self) -> None:
        total = sum(self.shares)
        if not all(share >= 0 for share in self.shares) or (self.shares and not total):
            raise UserError(f"`shares` must be >= 0 and not all 0: got {self.shares}.")
        if not math.isfinite(total):
            raise UserError(f"`shares` must have a finite sum: got {self.shares}.")
        for name in ("step_errors", "skipped_steps"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"`{name}` must be 0 to 1, as a share is: got {value}.")

    def item(self, seed: int, number: int) -> ReasoningItem:
        """Return the item with a number; see `ScoredTask.item`.

        Raises:
            UserError: No item is as short as `most_symbols` asks.
        """
        if self.unique and not is_scored(seed):
            number %= self.unique
        first = number * self.longest_of
        some = (self._one(seed, first + place) for place in range(self.longest_of))
        return max(some, key=lambda item: len(item.solution))

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; "part" knows a part of the statement; see `Family.guess`."""
        return {"oracle": _oracle, "part": _part}

    def _one(self, seed: int, number: int) -> ReasoningItem:
        rng = draw(seed, number)
        family = FAMILIES[rng.choices(self.families, self.shares or None)[0]]
        folds = (SCORED_FOLD,) if is_scored(seed) else self.folds
        for _ in range(_TRIES):
            template = rng.choice(self.templates)
            operations = rng.randint(*self.operations)
            shape = rng.randrange(self.shapes or _ENDLESS)
            structure = random.Random(f"{family.name} {operations} {shape}")
            statement = family.statement(operations, structure, rng)
            if zlib.crc32(f"{family.name} {statement}".encode()) % NUM_FOLDS not in folds:
                continue
            faults = (0.0, 0.0) if is_scored(seed) else (self.step_errors, self.skipped_steps)
            text = _Text(family, statement, template, rng, faults)
            if len(text.writer.text) <= self.most_symbols:
                return text.item(operations, shape)
        raise UserError(
            f"`most_symbols` must allow items of {family.name!r} with {self.operations[0]} to "
            f"{self.operations[1]} operations: none of {_TRIES} has up to {self.most_symbols} "
            "symbols. Raise it, or take fewer operations or more shapes."
        )


class _Text:
    """The text of an item: its question and a solution with faults."""

    def __init__(
        self,
        family: Family,
        statement: str,
        template: int,
        rng: random.Random,
        faults: tuple[float, float],
    ) -> None:
        self.family = family
        self.template = template
        self.writer = writer = Writer()
        writer.write(family.question(statement, template) + SOLUTION_END)
        self.thought_start = len(writer.text)
        solution = write_solution(family.solve(statement), rng, *faults)
        for line, result in zip(solution.lines, solution.results, strict=True):
            writer.write(line + STEP_END)
            writer.label(result[-LABEL_SYMBOLS:])
        self.answer_start = len(writer.text)
        writer.write(ANSWER_MARK)
        writer.answer(Reasoning.primary, solution.answer)
        writer.write(SOLUTION_END)
        self.is_correct = solution.answer == _true_answer(family, statement)

    def item(self, operations: int, shape: int) -> ReasoningItem:
        """Return the item."""
        return ReasoningItem(
            text=self.writer.text,
            answers=tuple(self.writer.answers),
            whole=tuple(self.writer.whole),
            family=self.family.name,
            template=self.template,
            operations=operations,
            shape=shape,
            is_correct=self.is_correct,
            thought_start=self.thought_start,
            answer_start=self.answer_start,
            id=json_digest(self.writer.text)[:16],
        )


def _true_answer(family: Family, statement: str) -> str:
    return write_solution(family.solve(statement), random.Random(0)).answer


def _question(item: Item) -> tuple[Family, str]:
    if not isinstance(item, ReasoningItem):
        raise TypeError(f"An item must be a ReasoningItem, got {type(item).__name__}.")
    family = FAMILIES[item.family]
    return family, family.statement_of(item.prompt[:-1])


def answer_floors(items: Sequence[ReasoningItem]) -> dict[str, dict[str, float]]:
    """Return the shares of right answers of policies that learn nothing, by policy and family.

    "constant answer" is the answer that is right most often in the items of a family; "part of the
    question" knows a part of the statement; see
    `counterpoint.data.tasks.reasoning.family.Family.guess`.

    Args:
        items: Items as `Reasoning` makes them.
    """
    floors: dict[str, dict[str, float]] = {"constant answer": {}, "part of the question": {}}
    for family in dict.fromkeys(item.family for item in items):
        own = [item for item in items if item.family == family]
        answers = [item.text[item.answer_start + 1 : -1] for item in own]
        guessed = [_part(item, random.Random(number))[0] for number, item in enumerate(own)]
        most = Counter(answers).most_common(1)[0][1]
        floors["constant answer"][family] = most / len(own)
        floors["part of the question"][family] = sum(map(str.__eq__, answers, guessed)) / len(own)
    return floors


def _oracle(item: Item, rng: random.Random) -> Replies:
    """Solve the question from its text."""
    return {0: _true_answer(*_question(item))}


def _part(item: Item, rng: random.Random) -> Replies:
    """Answer from a part of the statement."""
    family, statement = _question(item)
    (guess,) = family.guess.values()
    return {0: guess(statement, rng)}
