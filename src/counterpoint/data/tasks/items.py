"""Items of a task: a text, the answers in it, and how answers are scored.

A task is a frozen config with knobs. Its items are pure functions of a seed and a number, so that
anybody makes the same ones. An item is text of single-byte symbols, whose last part asks questions
and gives the right answers; a model is scored on these answers alone, each read behind the true
text before it. `policies` are answers that anyone could give who sees a part of the text only: what
they get is the floor that a model has to beat.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

HELD_OUT_SEED = 1_000_000
"""Added to the seed of the items that are learned from: items that are scored are others."""


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """A right answer within an item.

    Attributes:
        kind: What is asked, such as "part", "whole" or "joint".
        start: Place of its first symbol in the text of the item.
        text: The answer itself.
    """

    kind: str
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class WholeLabel:
    """What can be said of the whole of an item so far, in a few symbols.

    It is what a coarse stream of text can be trained with; see `Item.whole`.

    Attributes:
        start: It is true of this many first symbols of the text, and until the next label.
        text: The label itself.
    """

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A text with answers.

    Attributes:
        text: Symbols of one byte each.
        answers: In the order in which they stand in the text.
        facts: What the text was made from, for policies and scorers; no model sees it.
        whole: Coarse text beside it, in the order of its starts. Only models that write a second
            stream of text are trained with it; no answer depends on it.
    """

    text: str
    answers: tuple[ItemAnswer, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    whole: tuple[WholeLabel, ...] = ()


Replies = Mapping[int, str]
"""What was answered, by the number of the answer within its item."""

ItemPolicy = Callable[[Item, random.Random], Replies]
"""Answers an item from its facts."""


@runtime_checkable
class ScoredTask(Protocol):
    """A generator with a scorer and floors; a frozen dataclass whose fields are its knobs."""

    @property
    def name(self) -> str:
        """Short name, such as "logbook"."""
        ...

    @property
    def primary(self) -> str:
        """The score that decides: it was declared before anything was run."""
        ...

    @property
    def most_symbols(self) -> int:
        """No item is longer than this."""
        ...

    def item(self, seed: int, number: int) -> Item:
        """The item of that number: a pure function."""
        ...

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Policies by name; "oracle" reads the whole text, the others a part of it."""
        ...

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Scores of answers by name, `primary` among them."""
        ...

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Numerator and denominator of one item: the primary score is the ratio of their sums."""
        ...


class ExactMatch:
    """Scoring of a task whose answers are right where they are equal: a base of such tasks.

    Attributes:
        scoring: What lines of exported items say to their scorer beyond that: "flag" the answer
            whose F1 is scored, "together" a score of all answers of an item at once, "asked" the
            kind that lm-eval asks, where it is not the primary score.
    """

    __slots__ = ()
    primary: ClassVar[str]
    scoring: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Share of right answers by kind; see `ScoredTask.score`."""
        return accuracy(items, given)

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Right answers of the primary kind, and all of them; see `ScoredTask.counts`."""
        own = [number for number, one in enumerate(item.answers) if one.kind == self.primary]
        return sum(given.get(number) == item.answers[number].text for number in own), len(own)


def draw(seed: int, number: int) -> random.Random:
    """Random numbers of one item: those of other items do not move when one draws more."""
    return random.Random(f"{seed} {number}")  # seeded by text: equal on every machine


class Writer:
    """Writes the text of an item piece by piece and remembers where its answers stand."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.text = ""
        self.answers: list[ItemAnswer] = []
        self.whole: list[WholeLabel] = []

    def write(self, text: str) -> None:
        """Add symbols."""
        self.text += text

    def answer(self, kind: str, text: str) -> None:
        """Add an answer."""
        self.answers.append(ItemAnswer(kind, len(self.text), text))
        self.text += text

    def label(self, text: str) -> None:
        """Say what holds of the whole from here on; what holds already is not said again."""
        if not self.whole or self.whole[-1].text != text:
            self.whole.append(WholeLabel(len(self.text), text))

    def item(self, **facts: Any) -> Item:
        """The item."""
        if not self.text.isascii():
            raise AssertionError("items are made of single bytes")
        return Item(self.text, tuple(self.answers), facts, tuple(self.whole))


def is_scored(seed: int) -> bool:
    """Whether a seed gives items that are scored, of tasks that have a finite number of them."""
    return seed >= HELD_OUT_SEED // 2


def accuracy(items: Iterable[Item], given: Iterable[Replies]) -> dict[str, float]:
    """Share of right answers, by kind; an answer that was not given is wrong."""
    right: dict[str, list[bool]] = {}
    for item, answers in zip(items, given, strict=True):
        for number, answer in enumerate(item.answers):
            right.setdefault(answer.kind, []).append(answers.get(number) == answer.text)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def floors(task: ScoredTask, num_items: int, seed: int) -> dict[str, dict[str, float]]:
    """Scores of every policy of a task, by policy and name, and of the best constant."""
    items = [task.item(seed, number) for number in range(num_items)]
    found = {}
    for name, policy in task.policies().items():
        given = [policy(item, draw(seed, -1 - number)) for number, item in enumerate(items)]
        found[name] = task.score(items, given)
    most = commonest(items)
    found["constant"] = task.score(items, [always(most, item) for item in items])
    return found


def commonest(items: Iterable[Item]) -> dict[str, str]:
    """The answer that is right most often, by kind: no other constant is right more often."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        for answer in item.answers:
            counts.setdefault(answer.kind, Counter())[answer.text] += 1
    return {kind: own.most_common(1)[0][0] for kind, own in counts.items()}


def always(texts: Mapping[str, str], item: Item) -> Replies:
    """The same answer to every question of a kind."""
    return {number: texts[one.kind] for number, one in enumerate(item.answers)}
