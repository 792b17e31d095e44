"""T3: every section has the same keys with other values; questions name section and key."""

import random
from collections.abc import Mapping
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
    """Recall by two keys: neither the section nor the key is enough.

    The whole is the section that is being read, and "?" from the questions on.

    Attributes:
        num_sections: Number of sections; at most 26.
        num_keys: Number of keys of a section; at most 26.
        num_questions: Number of questions at the end.
        filler: Number of symbols without a meaning after every section.
        recency: Exponent of the section's number in the probability that a question is about it;
            0 makes all sections equally likely.

    Source: multi-query associative recall (arXiv:2312.04927) and its compositional form.
    """

    name: ClassVar[str] = "sections"
    primary: ClassVar[str] = "joint"
    num_sections: int = 8
    num_keys: int = 8
    num_questions: int = 4
    filler: int = 8
    recency: float = 0.0

    def __post_init__(self) -> None:
        if not (1 <= self.num_sections <= 26 and 1 <= self.num_keys <= 26):
            raise UserError(
                "A text must have up to 26 sections with up to 26 keys: got "
                f"{self.num_sections} and {self.num_keys}."
            )
        if not 1 <= self.num_questions <= self.num_sections * self.num_keys:
            raise UserError(
                "`num_questions` must be 1 to the number of values, "
                f"{self.num_sections * self.num_keys}: got {self.num_questions}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.num_sections * (2 * self.num_keys + self.filler + 4) + 5 * self.num_questions

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        keys = ascii_lowercase[: self.num_keys]
        writer = Writer()
        table = []
        for section in ascii_uppercase[: self.num_sections]:
            values = dict(zip(keys, rng.choices(_VALUES, k=self.num_keys), strict=True))
            table.append(values)
            order = rng.sample(keys, len(keys))
            writer.write(f"{section}:")
            writer.label(section)
            writer.write("".join(key + values[key] for key in order) + " ")
            writer.write("".join(rng.choices(_FILLER, k=self.filler)) + " ")
        writer.label("?")
        places = [(s, key) for s in range(self.num_sections) for key in keys]
        # The highest values of u ** (1 / weight) are a weighted sample without replacement.
        drawn = {place: rng.random() ** ((place[0] + 1) ** -self.recency) for place in places}
        asked = sorted(places, key=drawn.__getitem__)[-self.num_questions :]
        rng.shuffle(asked)
        for section_number, key in asked:
            writer.write(f"{ascii_uppercase[section_number]}{key}=")
            writer.answer("joint", table[section_number][key])
            writer.write(" ")
        return writer.item(table=table, asked=asked)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""

        def last_section(item: Item, rng: random.Random) -> Replies:
            table = item.facts["table"]
            return {i: table[-1][key] for i, (_, key) in enumerate(item.facts["asked"])}

        def key_only(item: Item, rng: random.Random) -> Replies:
            table = item.facts["table"]
            return {i: rng.choice(table)[key] for i, (_, key) in enumerate(item.facts["asked"])}

        def section_only(item: Item, rng: random.Random) -> Replies:
            table = item.facts["table"]
            return {
                i: rng.choice(list(table[section].values()))
                for i, (section, _) in enumerate(item.facts["asked"])
            }

        return {
            "oracle": _rule,
            "key only": key_only,
            "section only": section_only,
            "last section": last_section,
        }


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
