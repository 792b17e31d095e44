"""Items of a task: a text, the answers in it, and how answers are scored.

A task is a frozen config with options. Its items are pure functions of a seed and a number, so that
everyone makes the same items. An item is a text of single-byte symbols whose last part asks
questions and contains the right answers; a model is scored on these answers only, each read after
the true text before it. `policies` answer from a part of the text only, without a model: their
scores are the floors that a model has to beat.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

HELD_OUT_SEED = 1_000_000
"""Added to the seed of the training items for held-out items, so that these are different."""


Trained = Literal["all", "answer", "spans"]
"""Symbols of an item that carry a loss: all; the answers; or all spans except the prompt."""

PROMPT = "prompt"
"""Name of the span that is given to a model, which it does not learn to write."""


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """A right answer within an item.

    Attributes:
        kind: Kind of the question, such as "part", "whole" or "joint".
        start: Place of its first symbol in the text of the item.
        text: The answer itself.
    """

    kind: str
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class WholeLabel:
    """A statement about the whole of an item so far, in a few symbols.

    A coarse stream of text can be trained with such labels; see `Item.whole`.

    Attributes:
        start: Number of first symbols of the text of which the label is true; it holds until the
            next label.
        text: The label itself.
    """

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A text with answers.

    Attributes:
        text: Symbols of one byte each.
        answers: Answers, in the order in which they stand in the text.
        facts: Values from which the text was made, for policies and scorers; no model sees them.
        whole: Labels of the whole, in the order of their starts. Only models that write a second
            stream of text are trained with them; no answer depends on them.
    """

    text: str
    answers: tuple[ItemAnswer, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    whole: tuple[WholeLabel, ...] = ()

    @property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """First symbol and end of each named part of the text; by default there are none."""
        return {}


def trained_symbols(item: Item, trained: Trained) -> Bool[np.ndarray, " n"]:
    """Return which symbols of an item carry a loss.

    With "spans", an item without spans is trained as a whole, as text is.
    """
    if trained == "all" or (trained == "spans" and not item.spans):
        return np.full(len(item.text), True)
    found = np.full(len(item.text), False)
    answers = [(one.start, one.start + len(one.text)) for one in item.answers]
    kept = [bounds for name, bounds in item.spans.items() if name != PROMPT]
    for first, stop in kept if trained == "spans" else answers:
        found[first:stop] = True
    return found


Replies = Mapping[int, str]
"""Texts that were answered, by the number of the answer within its item."""

ItemPolicy = Callable[[Item, random.Random], Replies]
"""Function that answers an item from its facts."""


@runtime_checkable
class ScoredTask(Protocol):
    """A generator with a scorer and floors: a frozen dataclass whose fields are its options.

    The first line of its docstring says what it asks; see `asked`.
    """

    @property
    def name(self) -> str:
        """Short name, such as "logbook"."""

    @property
    def primary(self) -> str:
        """The score that decides, which was declared before anything was run."""

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item."""

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number: a pure function of seed and number."""

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; "oracle" reads the whole text, the others a part of it."""

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the scores of answers by name, `primary` among them."""

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the numerator and denominator of an item; the primary score is a ratio of sums."""


def asked(task: ScoredTask) -> str:
    """Return the sentence that says what a task asks: the first line of its docstring."""
    return (type(task).__doc__ or "").partition("\n")[0]


class ExactMatch:
    """Base of tasks whose answers are right if they are equal to the true ones.

    Attributes:
        scoring: Additional rules for the scorer of exported items: "flag" is the answer whose F1
            is scored, "together" a score of all answers of an item at once, "asked" the kind that
            lm-eval asks if it is not the primary score.
    """

    __slots__ = ()
    primary: ClassVar[str]
    scoring: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the share of right answers by kind; see `ScoredTask.score`."""
        return accuracy(items, given)

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the right and all answers of the primary kind; see `ScoredTask.counts`."""
        own = [number for number, one in enumerate(item.answers) if one.kind == self.primary]
        return sum(given.get(number) == item.answers[number].text for number in own), len(own)


def draw(seed: int, number: int) -> random.Random:
    """Return the random numbers of one item, which do not depend on those of other items."""
    return random.Random(f"{seed} {number}")  # seeded by text: equal on every machine


class Writer:
    """Writes the text of an item piece by piece and records the places of its answers."""

    def __init__(self) -> None:
        """Begin with an empty text."""
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
        """Add a label that holds from here on, unless the same label holds already."""
        if not self.whole or self.whole[-1].text != text:
            self.whole.append(WholeLabel(len(self.text), text))

    def item(self, **facts: Any) -> Item:
        """Return the item."""
        if not self.text.isascii():
            raise AssertionError("items are made of single bytes")
        return Item(self.text, tuple(self.answers), facts, tuple(self.whole))


def is_scored(seed: int) -> bool:
    """Return whether a seed is for scoring; it selects items of tasks with finitely many."""
    return seed >= HELD_OUT_SEED // 2


def accuracy(items: Iterable[Item], given: Iterable[Replies]) -> dict[str, float]:
    """Return the share of right answers by kind; a missing answer is wrong."""
    right: dict[str, list[bool]] = {}
    for item, answers in zip(items, given, strict=True):
        for number, answer in enumerate(item.answers):
            right.setdefault(answer.kind, []).append(answers.get(number) == answer.text)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def floors(task: ScoredTask, num_items: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of every policy of a task and of the best constant, by policy and name.

    The policies answer the items 0 to ``num_items - 1`` of the seed.
    """
    items = [task.item(seed, number) for number in range(num_items)]
    found = {}
    for name, policy in task.policies().items():
        given = [policy(item, draw(seed, -1 - number)) for number, item in enumerate(items)]
        found[name] = task.score(items, given)
    most = commonest(items)
    found["constant"] = task.score(items, [always(most, item) for item in items])
    return found


def commonest(items: Iterable[Item]) -> dict[str, str]:
    """Return the most frequent right answer by kind: no constant answer is right more often."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        for answer in item.answers:
            counts.setdefault(answer.kind, Counter())[answer.text] += 1
    return {kind: own.most_common(1)[0][0] for kind, own in counts.items()}


def always(texts: Mapping[str, str], item: Item) -> Replies:
    """Return the same answer to every question of a kind."""
    return {number: texts[one.kind] for number, one in enumerate(item.answers)}
