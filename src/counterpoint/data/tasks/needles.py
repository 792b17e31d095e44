"""Needles in a haystack: short sentences "The key is value." hidden in running text.

A key has several words, and every word of every key stands in other keys too. A weight of plain
attention depends on one key of the text, so no single word tells the right needle from the others.
All keys are alike in this, so nothing but the question says which one will be asked for.

Source: the needles of arXiv:2504.00927 v2, which hides 2, 4 and 6 of them in 2,000 and
4,000 tokens. Deviations: keys are made of random syllables and not names of cities, they share
words, and what is read is bytes.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

from counterpoint.data.tasks.items import ExactMatch, Item, ItemPolicy, Replies, Writer, draw
from counterpoint.data.tasks.shelf import book_files, running_text
from counterpoint.errors import UserError

_CONSONANTS = "bdfghjklmnprstvz"
_WORDS = tuple(map("".join, product(_CONSONANTS, "aeiou", _CONSONANTS)))  # 1,280
_ANY_NEEDLE = re.compile(r"The ([a-z ]+) is (\d+)\. ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Needles(ExactMatch):
    """Recall a value by its key from a sentence that is hidden in the text of books.

    The score is "needle", the share of right answers. Digits are left out of the text, so that
    nothing else in it looks like a needle. Items to learn from, to choose settings on and to report
    have the text of different books; see `counterpoint.data.tasks.shelf`.

    Attributes:
        folder: Folder of books; "" is the King James Bible.
        num_needles: Number of needles, of which one is asked for at the end.
        haystack_symbols: Number of symbols of the text without the needles, up to a word's end.
        depth: Share of the text before the needle that is asked for; ``None`` is a random one, as
            all other needles have it.
        key_words: Number of words of a key, of three letters each.
        value_digits: Number of digits of a value.
        num_sharing: Number of other needles that have a word of a key in its place, for each word
            of each key. ``num_needles`` is a multiple of one more, and at least so many times that
            or ``key_words``.
    """

    name: ClassVar[str] = "needles"
    primary: ClassVar[str] = "needle"
    folder: str = ""
    num_needles: int = 6
    haystack_symbols: int = 2000
    depth: float | None = None
    key_words: int = 2
    value_digits: int = 4
    num_sharing: int = 1

    def __post_init__(self) -> None:
        for name, least in (("key_words", 1), ("value_digits", 1), ("num_sharing", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be >= {least}: got {getattr(self, name)}.")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise UserError(f"`depth` must be a share from 0 to 1, or None: got {self.depth}.")
        if self.key_words == 1 and self.num_sharing:
            raise UserError(
                "Keys of one word cannot share it and differ: `num_sharing` must be 0, got "
                f"{self.num_sharing}. Give keys two words."
            )
        alike = self.num_sharing + 1
        # Fewer words in a place than places would make two places of all keys the same.
        least = alike * (max(alike, self.key_words) if self.num_sharing else 1)
        most = len(_WORDS) // self.key_words * alike
        if self.num_needles % alike or not least <= self.num_needles <= most:
            raise UserError(
                f"With keys of {self.key_words} words, each in {self.num_sharing} other needles, "
                f"`num_needles` must be a multiple of {alike} from {least} to {most}: got "
                f"{self.num_needles}."
            )
        if self.haystack_symbols < 40:
            raise UserError(
                f"`haystack_symbols` must be >= 40, a few words: got {self.haystack_symbols}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        needle = len("The  is . ") + 4 * self.key_words - 1 + self.value_digits
        return self.haystack_symbols + (self.num_needles + 1) * needle

    @property
    def files(self) -> Mapping[str, Path]:
        """Files of the books; see `counterpoint.data.tasks.named.ReadsFiles`."""
        return book_files(self.folder)

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`.

        Raises:
            UserError: The books are shorter than a haystack.
        """
        rng = draw(seed, number)
        words = self._haystack(rng, seed)
        values = rng.choices(range(10**self.value_digits), k=self.num_needles)
        needles = [
            (" ".join(key), f"{value:0{self.value_digits}}")
            for key, value in zip(self._keys(rng), values, strict=True)
        ]
        asked = rng.randrange(self.num_needles)
        key, answer = needles[asked]
        depths = [rng.random() for _ in needles]
        if self.depth is not None:
            depths[asked] = self.depth
        hidden = sorted(zip(depths, needles, strict=True))
        writer = Writer()
        start = 0
        for depth, (own, value) in hidden:
            stop = round(depth * len(words))
            writer.write("".join(f"{word} " for word in words[start:stop]))
            writer.write(f"The {own} is {value}. ")
            start = stop
        writer.write("".join(f"{word} " for word in words[start:]) + f"#The {key} is ")
        writer.answer(self.primary, answer)
        return writer.item(key=key)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        return {
            "oracle": lambda item, rng: _with(item, rng, self.key_words),
            "half of the key": lambda item, rng: _with(item, rng, self.key_words // 2),
            "most repeated words": _most_repeated,
            "any needle": lambda item, rng: _with(item, rng, 0),
            "first needle": lambda item, rng: {0: _ANY_NEEDLE.findall(item.text)[0][1]},
            "last needle": lambda item, rng: {0: _ANY_NEEDLE.findall(item.text)[-1][1]},
        }

    def _haystack(self, rng: random.Random, seed: int) -> list[str]:
        """Return the whole words of a random piece of the books of a seed."""
        text = running_text(self.folder, seed)
        last = len(text) - self.haystack_symbols
        if last < 0:
            raise UserError(
                f"The books in {self.folder or 'the Bible'!r} must have more text than a haystack "
                f"of {self.haystack_symbols} symbols: those of seed {seed} have {len(text)}. Take "
                "other books, or a smaller `haystack_symbols`."
            )
        start = rng.randint(0, last)
        # The first and the last word may be parts of words.
        return text[start : start + self.haystack_symbols].split(" ")[1:-1]

    def _keys(self, rng: random.Random) -> list[list[str]]:
        """Return the words of all keys, of which none is special."""
        alike = self.num_sharing + 1
        most = self.num_needles // alike  # different words in a place
        words = rng.sample(_WORDS, most * self.key_words)
        places = [words[most * place : most * (place + 1)] for place in range(self.key_words)]
        # Turning the words of a place against those before it makes keys that differ.
        return [
            [own[(first + place * turn) % most] for place, own in enumerate(places)]
            for first in range(most)
            for turn in range(alike)
        ]


def _most_repeated(item: Item, rng: random.Random) -> Replies:
    """Answer with a needle whose words stand in most needles, whatever is asked for."""
    needles = _ANY_NEEDLE.findall(item.text)
    counts = Counter(word for key, _ in needles for word in key.split())
    rng.shuffle(needles)
    return {0: max(needles, key=lambda one: sum(counts[word] for word in one[0].split()))[1]}


def _with(item: Item, rng: random.Random, known: int) -> Replies:
    """Answer with a random needle whose key begins with the first words of the one asked for."""
    asked = item.facts["key"].split()[:known]
    needles = _ANY_NEEDLE.findall(item.text)
    return {0: rng.choice([value for key, value in needles if key.split()[:known] == asked])}
