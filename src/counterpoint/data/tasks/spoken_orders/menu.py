"""What can be ordered, how it is said, and what is determined by the words so far.

The small menu has six drinks, none a part of another one's name, and nothing is said of an order
after its drink. The whole menu is that of the recorded people: ten drinks, with milk and sugar,
which are said after the drink. So its orders are complete later: "a latte with" and "a latte and a
bit of" go on, "a latte and that" does not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

from counterpoint.data.tasks.spoken_tools import (
    CORRECTED_SHARE,
    CORRECTIONS,
    ENDINGS,
    OPENINGS,
    SPOKEN,
    ToolRequest,
    WantedCall,
    generated_request,
)
from counterpoint.data.tasks.tool_world import DRINKS, ORDER, SLOTS, PlainCall

DRINK = SPOKEN[-1]
"""The slot that every order has."""
BEFORE = SPOKEN[:-1]
"""Slots that are said before the drink."""
ADDED = ("milkAmount", "sugarAmount")
"""Slots of the whole menu that are said after the drink."""
JOINTS = ("with", "and")
"""Words between a drink and what is added to it."""
TAKES_BACK = frozenset(words.split()[0] for words in CORRECTIONS)
"""First words of corrections."""


@dataclass(frozen=True, slots=True)
class Menu:
    """What can be ordered.

    Attributes:
        slots: Names of the slots, in the order of the arguments of a call.
        request: Returns the order of a seed and a number.
    """

    slots: tuple[str, ...]
    request: Callable[[int, int], ToolRequest]

    @property
    def added(self) -> tuple[str, ...]:
        """The slots that are said after the drink."""
        return tuple(slot for slot in self.slots if slot in ADDED)


class Determined(NamedTuple):
    """What the words so far determine.

    Attributes:
        values: The values by slot, in the order of the menu.
        is_complete: Whether a drink is among them and nothing can be added any more.
    """

    values: dict[str, str]
    is_complete: bool


def determined(words: Sequence[str], menu: Menu, *, is_over: bool) -> Determined:
    """Return what is determined of an order.

    A value is determined by the word after it, and the order is complete when a word after the
    drink neither adds anything nor can be the beginning of what does. That is so in orders of the
    kinds that are generated; somebody who says "a latte please, and milk" has ordered without it.

    Args:
        words: The words that were heard.
        menu: The menu.
        is_over: Whether no more will come.
    """
    found: dict[str, str] = {}
    place = 0
    is_complete = False
    while place < len(words):
        slot, value = _value_at(words[place:], menu)
        if not (slot or is_over) and _is_begun(words[place:], menu):
            break
        is_complete |= DRINK in found and not slot and words[place] not in JOINTS
        place += max(len(value.split()), 1)
        following = words[place] if place < len(words) else ""
        if slot and (following or is_over) and following not in TAKES_BACK:
            found[slot] = value
    ordered = {slot: found[slot] for slot in menu.slots if slot in found}
    return Determined(ordered, DRINK in found and (is_complete or is_over or not menu.added))


def _value_at(words: Sequence[str], menu: Menu) -> tuple[str, str]:
    """Return the slot of the longest value with which words begin, and the value."""
    matches = [
        (slot, value)
        for slot, value, own in _values(menu)
        if own[0] == words[0] and [*words[: len(own)]] == own
    ]
    return max(matches, key=lambda match: len(match[1]), default=("", ""))


def _is_begun(words: Sequence[str], menu: Menu) -> bool:
    """Return whether words are the beginning of what can be added, and no more."""
    return any(slot in ADDED and own[: len(words)] == [*words] for slot, _, own in _values(menu))


@cache
def _values(menu: Menu) -> list[tuple[str, str, list[str]]]:
    """Return all values with their slots and their words."""
    return [(slot, value, value.split()) for slot in menu.slots for value in SLOTS[slot]]


def whole_menu_request(seed: int, number: int) -> ToolRequest:
    """Return the order of a seed and a number of the whole menu, perhaps with a self-correction."""
    rng = Random(f"whole menu {seed} {number}")
    names = [*rng.sample(BEFORE, rng.randint(0, len(BEFORE)))]
    added = rng.sample(ADDED, rng.randint(0, len(ADDED)))
    drawn = {name: rng.choice(SLOTS[name]) for name in (*names, DRINK, *added)}
    said = [rng.choice(OPENINGS), *(drawn[name] for name in SPOKEN if name in drawn)]
    stale: tuple[PlainCall, ...] = ()
    if rng.random() < CORRECTED_SHARE:
        stale = ((ORDER, in_order(drawn)),)
        drawn[DRINK] = rng.choice([one for one in DRINKS if one != drawn[DRINK]])
        said += [rng.choice(CORRECTIONS), drawn[DRINK]]
    for joint, name in zip(JOINTS, added, strict=False):
        said += [joint, drawn[name]]
    known = len(" ".join(said).split())
    return ToolRequest(
        name=f"whole menu {seed} {number}",
        text=" ".join([*said, rng.choice(ENDINGS)]),
        calls=(WantedCall(ORDER, in_order(drawn), known),),
        stale=stale,
    )


def in_order(slots: Mapping[str, str]) -> dict[str, str]:
    """Return the values in the order of the menu."""
    return {slot: slots[slot] for slot in WHOLE.slots if slot in slots}


SMALL = Menu(SPOKEN, generated_request)
"""Six drinks, and nothing after the drink."""
WHOLE = Menu((*SPOKEN, *ADDED), whole_menu_request)
"""All that recorded people order."""
