"""Control of poems: what a system writes under the plan of another poem.

A system that has learned all symbols of `acrostic` reads a plan and the filler behind it. Its whole
is exchanged for that of another item, it is given the end of the prompt, and it writes the poem by
itself. `Acrostic.judge` scores the poem against its own plan and against the other one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.errors import UserError
from counterpoint.evaluate.control import Way
from counterpoint.evaluate.write_on import Beginning, Pairing, pairs_of, write_both
from counterpoint.systems.contract import System


@dataclass(frozen=True, kw_only=True, slots=True)
class PoemScores:
    """Scores of poems against their own plans and against those of other poems.

    Attributes:
        own_letters: Share of the lines that begin as the own plan says, where the plans differ.
        other_letters: Share of the same lines that begin as the other plan says.
        own_rhymes: Share of the lines that rhyme as the own plan says.
        other_rhymes: Share of the lines that rhyme as the other plan says.
        own_length: Share of the lines that are as long as the own plan says.
        other_length: Share of the lines that are as long as the other plan says.
        violations: Letters in each 100 that break the alternation of consonants and vowels.
    """

    own_letters: float
    other_letters: float
    own_rhymes: float
    other_rhymes: float
    own_length: float
    other_length: float
    violations: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PoemControl:
    """What an exchange of the whole changes in poems.

    Attributes:
        way: How the whole was exchanged.
        temperature: Temperature of sampling; 0 always takes the likeliest symbol.
        num_poems: Number of poems under either whole.
        own: Scores of the poems that were written under the own whole.
        other: Scores of those that were written under the whole of the other poem.
    """

    way: Way
    temperature: float
    num_poems: int
    own: PoemScores
    other: PoemScores


def paired_poems(items: Sequence[Item]) -> Pairing:
    """Pair each item with the next one whose prompt is as long and whose letters are others."""
    prompts = [len(item.facts["prompt"]) for item in items]
    return pairs_of(prompts, [tuple(item.facts["word"]) for item in items])


def control_poems(
    system: System,
    task: Acrostic,
    items: Sequence[Item],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[PoemControl]:
    """Let a system write poems under its own whole and under that of another item.

    The last symbol of the prompt is read after the exchange, and the first letter is written after
    that.

    Args:
        system: System that has learned all symbols of the task, in evaluation mode.
        task: The task.
        items: Its items. Those that cannot be paired are left out; see `paired_poems`.
        temperature: Divisor of the scores; 0 always takes the likeliest symbol.
        seed: Seed of what is sampled. Both poems of an item have the same random numbers.

    Returns:
        One result for each way that the system allows.

    Raises:
        UserError: No two items can be paired.
    """
    places, donors = paired_poems(items)
    if not places:
        raise UserError(
            "Some items must have prompts of one length and other first letters: got "
            f"{len(items)} items without such a pair. Take more."
        )
    own = [items[place] for place in places]
    beginnings = [
        Beginning(item=item, exchange_ticks=number, num_given=number)
        for item in own
        for number in [len(item.facts["prompt"])]
    ]
    words = np.random.SeedSequence(seed).generate_state(len(own), np.uint64)
    written = write_both(
        system,
        beginnings,
        donors,
        [int(word >> np.uint64(1)) for word in words],
        temperature=temperature,
        most_symbols=(max(task.lengths) + 2) * task.num_lines,
    )
    lenders = [own[one] for one in donors]
    return [
        PoemControl(
            way=way,
            temperature=temperature,
            num_poems=len(own),
            own=judged(task, own, lenders, under_own),
            other=judged(task, own, lenders, under_other),
        )
        for way, under_own, under_other in written
    ]


def poem_floors(
    task: Acrostic, items: Sequence[Item], strangers: Sequence[Item]
) -> dict[str, PoemScores]:
    """Return the scores of poems that no model has written.

    Args:
        task: The task.
        items: Items that are paired as in `control_poems`.
        strangers: Other items, such as those that are learned from.

    Returns:
        Scores of the "own" poems, which obey no other plan; of the "other" poems, which obey it in
        everything; and of faultless poems "without the plan", those of strangers.
    """
    places, donors = paired_poems(items)
    own = [items[place] for place in places]
    lenders = [own[one] for one in donors]
    unknown = [strangers[number % len(strangers)] for number in range(len(own))]
    sides = {"own": own, "other": lenders, "without the plan": unknown}
    return {
        name: judged(task, own, lenders, [_poem(item) for item in side])
        for name, side in sides.items()
    }


def judged(
    task: Acrostic, items: Sequence[Item], others: Sequence[Item], poems: Sequence[str]
) -> PoemScores:
    """Return the scores of poems against their own plans and against those of other items.

    Args:
        task: The task.
        items: An item for each poem.
        others: The item of the other plan for each poem.
        poems: The poems.
    """
    own = [task.judge(item, poem) for item, poem in zip(items, poems, strict=True)]
    other = [task.judge(item, poem) for item, poem in zip(others, poems, strict=True)]
    firsts = [
        (line[:1], mine, theirs)
        for item, lender, poem in zip(items, others, poems, strict=True)
        for line, mine, theirs in zip(
            task.lines(item, poem), item.facts["word"], lender.facts["word"], strict=True
        )
        if mine != theirs
    ]
    differing = max(len(firsts), 1)
    return PoemScores(
        own_letters=sum(letter == mine for letter, mine, _ in firsts) / differing,
        other_letters=sum(letter == theirs for letter, _, theirs in firsts) / differing,
        own_rhymes=_mean(own, "rhyme"),
        other_rhymes=_mean(other, "rhyme"),
        own_length=_mean(own, "length"),
        other_length=_mean(other, "length"),
        violations=_mean(own, "violations"),
    )


def _mean(scores: Sequence[dict[str, float]], name: str) -> float:
    return sum(one[name] for one in scores) / len(scores)


def _poem(item: Item) -> str:
    return item.text[len(item.facts["prompt"]) :]
