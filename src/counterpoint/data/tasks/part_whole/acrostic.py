"""T6: lines to be written after a plan that stands long before them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    draw,
)
from counterpoint.data.tasks.scoring import CONSONANTS, VOWELS, judge_poem, lines_of
from counterpoint.errors import UserError

_SCHEMES = ("AABB", "ABAB", "ABBA", "AAAA")


@dataclass(frozen=True, kw_only=True, slots=True)
class Acrostic(ExactMatch):
    """Begin every line of a poem with the letter that a plan long before it says.

    The plan has first letters, a rhyme scheme, and the length of a line. Consonants and vowels
    alternate; a line begins with a consonant and has an even length. The last two letters of a
    line rhyme as the scheme says, and each stanza of four lines has rhymes of its own. Within
    the text, the answers "acrostic" are the first letters, and the answers "rhyme" are endings
    that an earlier line determines. `judge` scores a poem that a model has written. The whole
    is the first letters of the current line and of the next three lines.

    Attributes:
        num_lines: Number of lines, in stanzas of four.
        filler: Number of symbols without a meaning between the plan and the poem.
        any_order: Whether the three parts of the plan stand in random order.
        lengths: Even numbers of letters, of which the lines of a poem have one.
    """

    name: ClassVar[str] = "acrostic"
    primary: ClassVar[str] = "acrostic"
    num_lines: int = 8
    filler: int = 64
    any_order: bool = False
    lengths: tuple[int, ...] = (8, 10, 12)

    def __post_init__(self) -> None:
        if self.num_lines < 4 or self.num_lines % 4:
            raise UserError(
                f"`num_lines` must be a multiple of 4, as stanzas are: got {self.num_lines}."
            )
        if not self.lengths or any(length < 4 or length % 2 for length in self.lengths):
            raise UserError(f"`lengths` must be even and >= 4: got {self.lengths}.")

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return len(" AABB 12 \n") + self.filler + (max(self.lengths) + 2) * self.num_lines

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        word = rng.choices(CONSONANTS, k=self.num_lines)
        scheme = rng.choice(_SCHEMES)
        length = rng.choice(self.lengths)
        writer = Writer()
        plan = ["".join(word), scheme, str(length)]
        if self.any_order:
            rng.shuffle(plan)
        writer.write(" ".join(plan) + " ")
        writer.write("".join(rng.choices("0123456789.,;:", k=self.filler)) + "\n")
        prompt = writer.text
        rhymes: dict[str, str] = {}
        for line, first in enumerate(word):
            if line % 4 == 0:
                rhymes = {}
            writer.label("".join(word[line : line + 4]))
            writer.answer("acrostic", first)
            body = [rng.choice(VOWELS if place % 2 else CONSONANTS) for place in range(length)]
            writer.write("".join(body[1:-2]))
            letter = scheme[line % 4]
            if letter in rhymes:
                writer.answer("rhyme", rhymes[letter])
            else:
                taken = set(rhymes.values())
                endings = [c + v for c in CONSONANTS for v in VOWELS if c + v not in taken]
                rhymes[letter] = rng.choice(endings)
                writer.write(rhymes[letter])
            writer.write("\n")
        return writer.item(prompt=prompt, word=word, scheme=scheme, length=length)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""

        def oracle(item: Item, rng: random.Random) -> Replies:
            return {number: answer.text for number, answer in enumerate(item.answers)}

        def without_plan(item: Item, rng: random.Random) -> Replies:
            """Know the poem so far: rhyme with one of the last two lines of the stanza."""
            given = {}
            for number, answer in enumerate(item.answers):
                lines = item.text[len(item.facts["prompt"]) : answer.start].split("\n")[:-1]
                stanza = lines[len(lines) // 4 * 4 :]
                if answer.kind == "acrostic":
                    given[number] = rng.choice(CONSONANTS)
                elif stanza:
                    given[number] = rng.choice(stanza)[-2:]
            return given

        return {
            "oracle": oracle,
            "without the plan": without_plan,
        }

    def plan(self, item: Item) -> dict[str, Any]:
        """Return the plan of an item and the place where its poem starts; see `HasPlan`."""
        facts = item.facts
        start = len(facts["prompt"])
        letters = list(facts["word"])
        return {
            "start": start,
            "letters": letters,
            "rhymes": facts["scheme"],
            "length": facts["length"],
        }

    def lines(self, item: Item, poem: str) -> list[str]:
        """Return as many lines of a text as a poem has; those that are missing are empty."""
        return lines_of(self.plan(item), poem)

    def judge(self, item: Item, poem: str) -> dict[str, float]:
        """Return the scores of a poem that was written after the item's plan.

        Returns:
            Shares of the lines and violations in 100 letters; see `scoring.judge_poem`.
        """
        parts = judge_poem(self.plan(item), poem)
        return {name: own / max(of, 1.0) for name, (own, of) in parts.items()}
