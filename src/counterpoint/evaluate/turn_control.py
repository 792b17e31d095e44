"""Control of what is said next: turns of a dialogue under the whole of another dialogue.

A dialogue is read up to a turn of the system. Its whole is exchanged for that of another dialogue
whose next turn begins at the same tick with another act, and the system writes the act of the turn.
Nothing is padded, because dialogues of which only one has been padded would be unlike those that
were learned from.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from counterpoint.data.tasks.items import Item, ItemAnswer
from counterpoint.errors import UserError
from counterpoint.evaluate.control import Way, control
from counterpoint.evaluate.item_whole import Followed, merged
from counterpoint.evaluate.write_on import Beginning, pairs_of, write_both
from counterpoint.systems.contract import System

ACT = "act"
SAID = "said"
OPENING = "S ["
CLOSING = "]"
"""What stands before and behind an act in the text of a dialogue."""
SPARE_SYMBOLS = 16
"""Number of symbols that may be written beyond those of the longest act."""


class ActTurn(NamedTuple):
    """A turn of the system.

    Attributes:
        dialogue: Number of the dialogue.
        item: The dialogue, with the act and the words of this turn as its only answers.
    """

    dialogue: int
    item: Item

    @property
    def act(self) -> ItemAnswer:
        """The answer that is the act."""
        return self.item.answers[0]

    @property
    def name(self) -> str:
        """The act itself, without a bracket behind it."""
        return self.act.text.removesuffix(CLOSING)

    @property
    def start(self) -> int:
        """Number of symbols before the turn."""
        return self.act.start - len(OPENING)


class TurnPairs(NamedTuple):
    """Turns that get the whole of another dialogue, in the order of their ticks.

    Attributes:
        turns: The turns.
        donors: Number of the turn at whose beginning each one's other whole is taken.
    """

    turns: list[ActTurn]
    donors: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnControl:
    """What an exchange of the whole before a turn changes.

    Attributes:
        way: How the whole was exchanged.
        num_pairs: Number of turns that got the whole of another dialogue, one or more of each
            dialogue.
        num_dialogues: Number of different dialogues of these turns.
        right: Share of the true act among those that are written under the own whole.
        already: Share of the act of the other dialogue under the own whole: what is obeyed without
            an exchange.
        kept: Share of the true act under the other whole.
        obeyed: Share of the act of the other dialogue under its whole.
        costs: Costs of the true act and of the true words of the turn, as `control` measures them.
    """

    way: Way
    num_pairs: int
    num_dialogues: int
    right: float
    already: float
    kept: float
    obeyed: float
    costs: tuple[Followed, ...]


def turns_of(items: Sequence[Item]) -> list[ActTurn]:
    """Return the turns of the system in dialogues of `counterpoint.data.tasks.dialogues`."""
    found = []
    for number, item in enumerate(items):
        for act, said in zip(item.answers, item.answers[1:], strict=False):
            if act.kind == ACT and said.kind == SAID:
                found.append(ActTurn(number, replace(item, answers=(act, said))))
    return found


def paired_turns(items: Sequence[Item]) -> TurnPairs:
    """Pair each turn with the next one that begins at the same tick with another act.

    Turns without such a partner are left out. All others may be donors of several turns.
    """
    turns = sorted(turns_of(items), key=lambda turn: turn.start)
    pairs = pairs_of([turn.start for turn in turns], [turn.name for turn in turns])
    return TurnPairs([turns[place] for place in pairs.places], pairs.donors)


@torch.no_grad()
def control_turns(system: System, items: Sequence[Item]) -> list[TurnControl]:
    """Let dialogues go on with a turn under their own whole and under that of another dialogue.

    Acts are written, always the likeliest symbol, because those of both dialogues may have
    different lengths. All that stands before the turn is read before the exchange, and `OPENING`
    after it.

    Args:
        system: System that reads and writes bytes, in evaluation mode. It must have learned where
            an act ends: from all symbols, or from the answers of `ClosedActs`.
        items: Dialogues of `counterpoint.data.tasks.dialogues`.

    Returns:
        One result for each way that the system allows.

    Raises:
        UserError: No two dialogues have turns that begin at the same tick with different acts.
    """
    turns, donors = paired_turns(items)
    if not turns:
        raise UserError(
            "Some dialogues must have turns that begin at the same tick with different acts: got "
            f"{len(items)} dialogues without such a pair. Take more."
        )
    costs = _costs(system, turns, donors)
    true = [turn.name for turn in turns]
    foreign = [true[one] for one in donors]
    return [
        TurnControl(
            way=way,
            num_pairs=len(turns),
            num_dialogues=len({turn.dialogue for turn in turns}),
            right=_share(own, true),
            already=_share(own, foreign),
            kept=_share(other, true),
            obeyed=_share(other, foreign),
            costs=costs[way],
        )
        for way, own, other in _acts(system, turns, donors)
    ]


def turn_floors(pairs: TurnPairs, acts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return how often policies that read no dialogue meet the true act and that of the donor.

    Args:
        pairs: Turns and their donors.
        acts: Acts of other dialogues, such as those that are learned from, from which the policies
            know how frequent each act is.

    Returns:
        For "most frequent", which always takes the most frequent act, and "chance", which draws an
        act of another dialogue, the expected shares "kept" and "obeyed".

    Raises:
        UserError: There are no acts.
    """
    if not acts:
        raise UserError("`acts` must be those of other dialogues, one or more: got none.")
    counts = Counter(acts)
    most = counts.most_common(1)[0][0]
    policies = {
        "most frequent": {most: 1.0},
        "chance": {act: count / len(acts) for act, count in counts.items()},
    }
    true = [turn.name for turn in pairs.turns]
    sides = {"kept": true, "obeyed": [true[one] for one in pairs.donors]}
    return {
        name: {
            side: sum(shares.get(act, 0.0) for act in wanted) / len(wanted)
            for side, wanted in sides.items()
        }
        for name, shares in policies.items()
    }


def _acts(
    system: System, turns: Sequence[ActTurn], donors: Sequence[int]
) -> Iterator[tuple[Way, list[str], list[str]]]:
    """Yield the acts that are written under the own whole and under that of the donor, by way."""
    beginnings = [
        Beginning(item=turn.item, exchange_ticks=turn.start + 1, num_given=turn.act.start)
        for turn in turns
    ]
    most = max(len(turn.name) for turn in turns) + SPARE_SYMBOLS
    seeds = [0] * len(turns)
    written = write_both(system, beginnings, donors, seeds, most_symbols=most, end_id=ord(CLOSING))
    for way, *sides in written:
        own, other = [[text.removesuffix(CLOSING) for text in texts] for texts in sides]
        yield way, own, other


def _costs(
    system: System, turns: Sequence[ActTurn], donors: Sequence[int]
) -> dict[Way, tuple[Followed, ...]]:
    """Return the costs of true acts and words, by way; turns of one tick are read together."""
    parts: dict[Way, dict[str, list[Followed]]] = {}
    for start in sorted({turn.start for turn in turns}):
        alike = [place for place, turn in enumerate(turns) if turn.start == start]
        items = [turns[place].item for place in alike]
        lent_by = [alike.index(donors[place]) for place in alike]
        for one in control(system, items, start + 1, donors=lent_by):
            for answer in one.answers:
                parts.setdefault(one.way, {}).setdefault(answer.kind, []).append(answer)
    return {
        way: tuple(merged(own) for _, own in sorted(kinds.items())) for way, kinds in parts.items()
    }


def _share(written: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(one == two for one, two in zip(written, wanted, strict=True)) / len(written)
