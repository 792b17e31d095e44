"""Items of a task: a text, the answers in it, and how answers are scored.

A task is a frozen config with options. Its items are pure functions of a seed and a number, so that
everyone makes the same items. An item is a text of single-byte symbols whose last part asks
questions and contains the right answers; a model is scored on these answers only, each read after
the true text before it. `policies` answer from a part of the text only, without a model: their
scores are the floors that a model has to beat.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from counterpoint.errors import UserError

HELD_OUT_SEED = 1_000_000
"""Added to the seed of the training items for held-out items, so that these are different."""

REPORTED_SEED = HELD_OUT_SEED - 1
"""Seed of the items that are reported. Lower seeds for scoring give items that choose settings."""

TUNED_SHARE = 0.1
"""Share of finite data to learn from that is set apart, so that settings are chosen on it."""

Trained = Literal["all", "answer", "spans"]
"""Symbols of an item that carry a loss: all; the answers; or all spans except the prompt."""

CONSTANT = "constant"
"""Name of the policy that always replies the same."""

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


class ReadText(NamedTuple):
    """A text whose cost is asked.

    Attributes:
        before: Text that is read before it; may be empty.
        text: The text itself.
    """

    before: str
    text: str


@runtime_checkable
class ReadItem(Protocol):
    """An item without answers: a model is asked what some texts cost it."""

    @property
    def readings(self) -> tuple[ReadText, ...]:
        """The texts, each read from the beginning of a document."""


Replies = Mapping[int, str]
"""Texts that were answered, by the number of the answer within its item."""

ItemPolicy = Callable[[Item, random.Random], Replies]
"""Function that answers an item from its facts."""

Nats = Sequence[Float[np.ndarray, " _n"]]
"""Costs of the bytes of each reading of an item."""

AnyPolicy = Callable[[Any, random.Random], Any]
"""Function that replies to an item of a task: an `ItemPolicy`, or one that returns `Nats`."""


@runtime_checkable
class AnyTask(Protocol):
    """Questions for a model with a scorer and floors: a frozen dataclass of options.

    An item is an `Item`, to which a model replies with `Replies`; or a `ReadItem`, to which it
    replies with `Nats`. The first line of its docstring says what it asks; see `asked`.
    """

    @property
    def name(self) -> str:
        """Short name, such as "logbook"."""

    @property
    def primary(self) -> str:
        """The score that decides: a share, of which more is better; declared before any run."""

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item, and of a row from which the task is learned."""

    def item(self, seed: int, number: int) -> Any:
        """Return the item with a number: a pure function of seed, number and files."""

    def policies(self) -> Mapping[str, Any]:
        """Return policies by name; "oracle" reads the whole text, the others a part of it."""

    def score(self, items: Sequence[Any], given: Sequence[Any]) -> dict[str, float]:
        """Return the scores of replies by name, `primary` among them."""

    def counts(self, item: Any, given: Any) -> tuple[float, float]:
        """Return the numerator and denominator of an item; the primary score is a ratio of sums."""


@runtime_checkable
class FiniteTask(Protocol):
    """A task with finitely many items for scoring."""

    def num_scored(self, seed: int) -> int:
        """Return how many different items a seed for scoring has, beginning with number 0."""


def scored_items(task: AnyTask, seed: int, num_items: int) -> list[Any]:
    """Return the first items of a seed for scoring, none of them twice.

    Raises:
        UserError: There is none.
    """
    count = min(num_items, task.num_scored(seed)) if isinstance(task, FiniteTask) else num_items
    if count < 1:
        raise UserError(
            f"{task.name} must have items that are scored: there is none of seed {seed}. Take a "
            "folder with more data."
        )
    return [task.item(seed, number) for number in range(count)]


@runtime_checkable
class ScoredTask(Protocol):
    """An `AnyTask` whose items have answers, so that it can be learned from items of other seeds.

    It does not inherit from `AnyTask`, because the command line cannot read a field of a protocol
    that has a protocol with properties as its base.
    """

    @property
    def name(self) -> str:
        """Short name, such as "logbook"."""

    @property
    def primary(self) -> str:
        """The score that decides: a share, of which more is better; declared before any run."""

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item, and of a row from which the task is learned."""

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number: a pure function of seed and number."""

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; "oracle" reads the whole text, the others a part of it."""

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the scores of answers by name, `primary` among them."""

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the numerator and denominator of an item; the primary score is a ratio of sums."""


@runtime_checkable
class GroupsSymbols(Protocol):
    """A task that knows what decides each symbol of a text, such as the depth in a tree."""

    def groups(self, item: Item) -> Mapping[str, Sequence[int]]:
        """Return the places of symbols in the text of an item, by the name of what decides them."""


@runtime_checkable
class HasPlan(Protocol):
    """A task whose texts a model can write itself, and whose scorer then needs the plan of each."""

    def plan(self, item: Item) -> Mapping[str, Any]:
        """Return the plan of an item, as `scoring.judge_poem` reads it, and where the text starts.

        It is a part of the exported line.
        """


def asked(task: AnyTask) -> str:
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


def share_of(text: str) -> float:
    """Return a number from 0 to 1 that depends on a text alone: equal texts are divided alike."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


_Value = TypeVar("_Value")


def divided(
    values: Sequence[_Value], text_of: Callable[[_Value], str], where: str
) -> dict[str, list[_Value]]:
    """Return the values that are "learned" from, and those that are "tuned" on.

    Args:
        values: Finite data to learn from.
        text_of: Function that returns the text by whose hash a value is put on a side.
        where: Place of the data, named in errors.

    Raises:
        UserError: Nothing is left to learn from.
    """
    found: dict[str, list[_Value]] = {"learned": [], "tuned": []}
    for value in values:
        found["tuned" if share_of(text_of(value)) < TUNED_SHARE else "learned"].append(value)
    if not found["learned"]:
        raise UserError(
            f"{where} must have something to learn from that is not scored: it has "
            f"{len(values)} such entries, and a tenth is set apart. Add more."
        )
    return found


def is_tuning(seed: int) -> bool:
    """Return whether a seed is for items that choose settings, of which none is reported."""
    return is_scored(seed) and seed < REPORTED_SEED


def accuracy(items: Iterable[Item], given: Iterable[Replies]) -> dict[str, float]:
    """Return the share of right answers by kind; a missing answer is wrong."""
    right: dict[str, list[bool]] = {}
    for item, answers in zip(items, given, strict=True):
        for number, answer in enumerate(item.answers):
            right.setdefault(answer.kind, []).append(answers.get(number) == answer.text)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def floors(task: AnyTask, num_items: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of every policy of a task and of the best constant, by policy and name.

    The policies answer the items 0 to ``num_items - 1`` of the seed.
    """
    items = [task.item(seed, number) for number in range(num_items)]
    found = {}
    for name, policy in all_policies(task, items).items():
        given = [policy(item, draw(seed, -1 - number)) for number, item in enumerate(items)]
        found[name] = task.score(items, given)
    return found


def all_policies(task: AnyTask, items: Sequence[Any]) -> dict[str, AnyPolicy]:
    """Return the policies of a task, and the best one that always replies the same, `CONSTANT`."""
    return {**task.policies(), CONSTANT: best_constant(items)}


def best_constant(items: Sequence[Any]) -> AnyPolicy:
    """Return the policy that replies the same to every item, as well as that is possible.

    Questions get the answer that is right most often; all bytes of readings cost the same.
    """
    if not all(isinstance(item, Item) for item in items):
        return lambda item, rng: byte_costs(item, np.full(256, np.log(256)))
    most = commonest(items)
    return lambda item, rng: always(most, item)


def byte_costs(item: ReadItem, nats: Float[np.ndarray, " 256"]) -> Nats:
    """Return the costs of the bytes of each reading where every byte has a fixed cost."""
    return [nats[np.frombuffer(one.text.encode(), np.uint8)] for one in item.readings]


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
