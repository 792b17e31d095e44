"""T3: every section has the same keys with other values; questions name section and key."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits, punctuation
from typing import ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    draw,
)
from counterpoint.errors import UserError

_VALUES = digits + ascii_letters + "+-"  # 64
_FILLER = "".join(symbol for symbol in punctuation if symbol not in "+-=")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections(ExactMatch):
    """Recall a value by its section and its key: all sections have the same keys.

    Neither the section nor the key is enough. Some questions may be asked early, after each
    section and about the sections up to there. They are scored as "joint, early". The whole is
    the section that is being read, and "?" from the questions at the end on.

    Attributes:
        num_sections: Number of sections; at most 26.
        num_keys: Number of keys of a section; at most 26.
        num_questions: Number of questions at the end.
        filler: Number of symbols without a meaning after every section.
        recency: Exponent of the section's number in the probability that a question is about it;
            0 makes all sections equally likely.
        num_values: Number of different values; at most 64.
        num_early: Number of questions after each section but the last.

    Source: multi-query associative recall (arXiv:2312.04927) and its compositional form.
    """

    name: ClassVar[str] = "sections"
    primary: ClassVar[str] = "joint"
    num_sections: int = 8
    num_keys: int = 8
    num_questions: int = 4
    filler: int = 8
    recency: float = 0.0
    num_values: int = 64
    num_early: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.num_sections <= 26 and 1 <= self.num_keys <= 26):
            raise UserError(
                "A text must have up to 26 sections with up to 26 keys: got "
                f"{self.num_sections} and {self.num_keys}."
            )
        early = self.num_early * (self.num_sections - 1)
        if not 0 <= early < self.num_questions + early <= self.num_sections * self.num_keys:
            raise UserError(
                "A text must have one question or more at its end, and at most one about each of "
                f"its {self.num_sections * self.num_keys} places: got {self.num_questions} at the "
                f"end and {early} early ones."
            )
        if self.num_early > self.num_keys or not 1 <= self.num_values <= len(_VALUES):
            raise UserError(
                f"There must be at most as many early questions after a section as keys, and 1 to "
                f"{len(_VALUES)} values: got {self.num_early} and {self.num_values}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        num_questions = self.num_questions + self.num_early * (self.num_sections - 1)
        return self.num_sections * (2 * self.num_keys + self.filler + 4) + 5 * num_questions

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        keys = ascii_lowercase[: self.num_keys]
        writer = Writer()
        table: list[dict[str, str]] = []
        places: list[tuple[int, str]] = []
        early: list[tuple[int, str]] = []
        seen: list[int] = []
        for section in ascii_uppercase[: self.num_sections]:
            values = dict(
                zip(keys, rng.choices(_VALUES[: self.num_values], k=self.num_keys), strict=True)
            )
            table.append(values)
            order = rng.sample(keys, len(keys))
            writer.write(f"{section}:")
            writer.label(section)
            writer.write("".join(key + values[key] for key in order) + " ")
            writer.write("".join(rng.choices(_FILLER, k=self.filler)) + " ")
            places += [(len(table) - 1, key) for key in keys]
            if self.num_early and len(table) < self.num_sections:
                some = rng.sample(places, self.num_early)
                places = [place for place in places if place not in some]
                _ask(writer, "joint, early", table, some)
                early += some
                seen += [len(table)] * len(some)
        writer.label("?")
        # The highest values of u ** (1 / weight) are a weighted sample without replacement.
        drawn = {place: rng.random() ** ((place[0] + 1) ** -self.recency) for place in places}
        asked = sorted(places, key=drawn.__getitem__)[-self.num_questions :]
        rng.shuffle(asked)
        _ask(writer, "joint", table, asked)
        seen += [self.num_sections] * len(asked)
        return writer.item(table=table, asked=early + asked, seen=seen)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""

        def last_section(item: Item, rng: random.Random) -> Replies:
            return {i: table[-1][key] for i, (table, _, key) in enumerate(_questions(item))}

        def key_only(item: Item, rng: random.Random) -> Replies:
            return _likeliest(item, rng, lambda place, asked: place[1] == asked[1])

        def section_only(item: Item, rng: random.Random) -> Replies:
            return _likeliest(item, rng, lambda place, asked: place[0] == asked[0])

        return {
            "oracle": _rule,
            "key only": key_only,
            "section only": section_only,
            "last section": last_section,
        }


def _ask(
    writer: Writer, kind: str, table: list[dict[str, str]], places: list[tuple[int, str]]
) -> None:
    """Write questions about places, and their answers."""
    for section, key in places:
        writer.write(f"{ascii_uppercase[section]}{key}=")
        writer.answer(kind, table[section][key])
        writer.write(" ")


def _questions(item: Item) -> Iterator[tuple[list[dict[str, str]], int, str]]:
    """Yield of each question the sections before it, its section and its key."""
    facts = item.facts
    for (section, key), seen in zip(facts["asked"], facts["seen"], strict=True):
        yield facts["table"][:seen], section, key


def _likeliest(
    item: Item, rng: random.Random, may_be: Callable[[tuple[int, str], tuple[int, str]], bool]
) -> Replies:
    """Return the value that most of the places have that a question may be about.

    No place is asked for twice, so those that were asked before are left out.
    """
    told: set[tuple[int, str]] = set()
    given = {}
    for number, (table, asked_section, asked_key) in enumerate(_questions(item)):
        own = (asked_section, asked_key)
        counts = Counter(
            value
            for section, values in enumerate(table)
            for key, value in values.items()
            if (section, key) not in told and may_be((section, key), own)
        )
        most = max(counts.values())
        given[number] = rng.choice([value for value in counts if counts[value] == most])
        told.add(own)
    return given


def _rule(item: Item, rng: random.Random) -> Replies:
    """Answer with the values in the sections that the questions name."""
    words = item.text.split(" ")
    given = {}
    for number, answer in enumerate(item.answers):
        section = item.text[answer.start - 3]
        key = item.text[answer.start - 2]
        pairs = next(word[2:] for word in words if word.startswith(section + ":"))
        given[number] = pairs[pairs[::2].index(key) * 2 + 1]
    return given
