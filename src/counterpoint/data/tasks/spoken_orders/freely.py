"""Orders as people say them, and as a recogniser hears them.

Voices differ in their rate. Recorded people wait before they order and after it, stop between
words, name a roast before a size, and mostly say no more after the drink; and of what they say a
recogniser misses words, or takes them for others. Nothing here has words of its own, so
a model knows all of them anyway.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from counterpoint.data.tasks.spoken_orders.menu import ADDED, BEFORE, DRINK, JOINTS, Menu
from counterpoint.data.tasks.spoken_orders.retold import Hypothesis, Recognising
from counterpoint.data.tasks.spoken_orders.words import said_words
from counterpoint.data.tasks.spoken_tools import CORRECTIONS, ENDINGS, OPENINGS, ToolRequest
from counterpoint.data.tasks.tool_world import SLOTS

SILENCE = ""
"""What is said during the time of a word in which nothing is said."""

PACES = (0.8, 1.7)
"""Least and greatest rate of speech, beside that of other orders: a voice says "and that is all
for" in the time of two of its other words."""

_MORE_OPENINGS = ("can i have a", "i want a", "make me a", "me a", "i have a", "a", "")
_NO_ORDER_SHARE = 0.05
_ENDED_SHARE = 0.4
_PAUSE_SHARE = 0.12  # of the words have a pause before them
_MOST_PAUSE = 4  # times of a word, as all that follows
_MOST_BEFORE = 6
_MOST_AFTER = 8
_MISSED_SHARE = 0.2  # of the words that decide nothing
# "bit milk" can only be "a bit of milk": the label says so, though `determined` reads "milk" there.
_DECIDE_NOTHING = {"a", "of"}
_MISHEARD_SHARE = 0.12  # of those that decide something, each time that they are told
_HALF_SHARE = 0.15  # of the last words so far
_OTHER_SHARE = 0.4  # of the misheard ones are taken for words that decide nothing
_NOTHING_STANDS_SHARE = 0.25  # of the orders that are heard again
_SLIP_SHARE = 0.2  # of the calls that stand then
_CUT_SHARE = 0.05  # chance that a thought is closed in its notes, and that it is after its call


def freely_said(request: ToolRequest, rng: Random) -> list[str]:
    """Return the words of an order with silences; each takes the time of a word.

    In a twentieth of the cases nobody orders: all is silent, or the voice breaks off.

    Args:
        request: One of `generated_requests`.
        rng: Draws what is said, and the silences.
    """
    if rng.random() < _NO_ORDER_SHARE:
        begun = rng.choice(("", "", *OPENINGS, *_MORE_OPENINGS)).split()
        before, after = (rng.randint(0, 2 * _MOST_BEFORE) for _ in range(2))
        return [SILENCE] * before + begun + [SILENCE] * (after + 1)
    (call,) = request.calls
    first = dict(request.stale[0][1]) if request.stale else dict(call.arguments)
    others = [first[slot] for slot in BEFORE if slot in first]
    rng.shuffle(others)
    texts = [rng.choice((*OPENINGS, *_MORE_OPENINGS)), *others, first[DRINK]]
    if request.stale:
        texts += [rng.choice(CORRECTIONS), call.arguments[DRINK]]
    if added := [first[slot] for slot in ADDED if slot in first]:
        rng.shuffle(added)
        for value in added:
            texts += [rng.choice((*JOINTS, "")), value]
    if rng.random() < _ENDED_SHARE:
        texts.append(rng.choice(ENDINGS))
    said = [SILENCE] * rng.randint(0, _MOST_BEFORE)
    for word in " ".join(texts).split():
        if rng.random() < _PAUSE_SHARE:
            said += [SILENCE] * rng.randint(1, _MOST_PAUSE)
        said.append(word)
    return said + [SILENCE] * rng.randint(0, _MOST_AFTER)


def words_heard(words: Sequence[str], rng: Random, menu: Menu) -> list[str]:
    """Return the words of a chunk that a recogniser does not miss.

    Words of values and of corrections are heard, since nobody can know what they were. So is the
    last word: it says whether what was said before it is determined.
    """
    return [
        word
        for place, word in enumerate(words, 1)
        if place == len(words) or word in _decisive(menu) or rng.random() >= _MISSED_SHARE
    ]


def unsettled(rng: Random, menu: Menu) -> Recognising:
    """Return how a recogniser knows an order while it is spoken.

    Whenever there are new words, it hears all of them anew, and misses others. What it has heard
    once counts as known, since who is told all of its versions can put them together.
    """
    heard: set[int] = set()  # places of words
    others = [word for word in said_words(menu) if word not in _decisive(menu)]
    last: tuple[tuple[Sequence[str], bool], Hypothesis] | None = None

    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        nonlocal last
        asked = (tuple(words), is_certain)
        if last and last[0] == asked:
            return last[1]
        told: list[str] = []
        for place, word in enumerate(words, 1):
            decides = word in _decisive(menu)
            share = _MISHEARD_SHARE if decides else _MISSED_SHARE
            if place == len(words):
                share = 0.0 if is_certain else _HALF_SHARE
            if rng.random() >= share:
                told.append(word)
                heard.add(place)
            elif decides and rng.random() < _OTHER_SHARE:
                told.append(rng.choice(others))
        known = [
            word
            for place, word in enumerate(words, 1)
            if place in heard or word not in _decisive(menu)
        ]
        kept = rng.random() if rng.random() < _CUT_SHARE else 1.0
        last = (asked, Hypothesis(known, told, kept, rng.random() >= _CUT_SHARE))
        return last[1]

    return recall


def called_by_another(right: Mapping[str, str], rng: Random, menu: Menu) -> Mapping[str, str]:
    """Return what another session has called where `right` would have been right.

    Sometimes it is nothing, and sometimes a value is another one, is missing, or is too much.
    """
    if rng.random() < _NOTHING_STANDS_SHARE:
        return {}
    if rng.random() >= _SLIP_SHARE:
        return right
    slot = rng.choice(menu.slots)
    made = {**right, slot: rng.choice((*SLOTS[slot], *[""] * (slot != DRINK)))}
    return {name: made[name] for name in menu.slots if made.get(name)}


@cache
def _decisive(menu: Menu) -> set[str]:
    """Return the words by which values and corrections are known."""
    values = (value for slot in menu.slots for value in SLOTS[slot])
    return {word for text in (*CORRECTIONS, *values) for word in text.split()} - _DECIDE_NOTHING
