"""Orders as people say them, and as a recogniser hears them.

Voices differ in their rate. Recorded people wait before they order and after it, stop between
words, name a roast before a size, and mostly say no more after the drink; and of what they say a
recogniser misses words, or takes half a word for another one. Nothing here has words of its own, so
a model knows all of them anyway.
"""

from collections.abc import Sequence
from functools import cache
from random import Random

from counterpoint.data.tasks.spoken_orders.menu import ADDED, BEFORE, DRINK, JOINTS, Menu
from counterpoint.data.tasks.spoken_orders.retold import Hypothesis, Recall
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
_HALF_SHARE = 0.25  # of the last words so far are not recognised yet
_OTHER_SHARE = 0.15  # are taken for others


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


def unsettled(rng: Random, menu: Menu) -> Recall:
    """Return how a recogniser knows an order while it is spoken: its last word is not certain.

    Whenever there are new words, other ones are missed that decide nothing; see `words_heard`.
    """
    last: tuple[tuple[Sequence[str], bool], Hypothesis] | None = None

    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        nonlocal last
        taken = list(words)
        asked = (tuple(words), is_certain)
        if last and last[0] == asked:
            return last[1]
        if taken and not is_certain:
            draw = rng.random()
            if draw < _HALF_SHARE:
                taken.pop()
            elif draw < _HALF_SHARE + _OTHER_SHARE:
                taken[-1] = rng.choice(said_words(menu))
        last = (asked, Hypothesis(taken, words_heard(taken, rng, menu)))
        return last[1]

    return recall


@cache
def _decisive(menu: Menu) -> set[str]:
    """Return the words by which values and corrections are known."""
    values = (value for slot in menu.slots for value in SLOTS[slot])
    return {word for text in (*CORRECTIONS, *values) for word in text.split()} - _DECIDE_NOTHING
