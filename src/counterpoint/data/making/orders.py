"""Spoken orders: short dialogues with an exact answer to every order.

The user says a digit or has a device switched, in one of many wordings; the agent confirms it. The
user pauses before the order is complete, interrupts answers with another order, and says "mhm"
while the agent talks. Some wordings are held out. Before that a model may learn to hear the words:
in scripts to listen to, only the user talks.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from counterpoint.data.making.order_wordings import (
    DEVICE_WORDINGS,
    DEVICES,
    DIGIT_WORDINGS,
    DIGITS,
    STATES,
    Split,
)
from counterpoint.data.making.scripts import Script, Turn

BACKCHANNELS = ("mhm", "okay", "right", "yes")
OPENINGS = ("", "", "wait", "no", "stop", "sorry")
"""How an interruption begins."""

# Both are narrow, so that there is one moment at which to begin, or to stop. When it may happen at
# any of many frames it is unlikely at each of them, even for a model that knows what it heard.
_ANSWER_GAP_S = (0.45, 0.55)
# "mhm" takes 0.55 s. An agent that stopped much earlier would stop before it can know at what;
# where it is wrong to stop half of the time, a model learns to go on, and then does not stop.
_YIELD_S = (0.4, 0.5)
_NUM_WORDS = (3, 8)  # of what is said to a listener
_CONTENT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One order and what belongs to it.

    Attributes:
        text: What the user says.
        phrases: What the agent must answer, in pieces that are spoken one by one. Speech engines
            give a word another sound in every sentence: spoken as one, the first sounds of an
            answer would tell how it goes on, and a model would listen to itself, not to the user.
        complete: Number of words after which nothing is missing; a pause comes before.
    """

    text: str
    phrases: tuple[str, ...]
    complete: int

    @property
    def reply(self) -> str:
        """All of the answer."""
        return " ".join(self.phrases)


def draw_order(split: Split, rng: random.Random) -> Order:
    """An order in one of the wordings of a split; half are digits."""
    if rng.random() < 0.5:
        digit = rng.choice(DIGITS)
        text = rng.choice(rng.choice(DIGIT_WORDINGS[split])).format(digit=digit)
        phrases = ("you said", digit, "and i wrote that number down for you")
        return Order(text=text, phrases=phrases, complete=text.split().index(digit) + 1)
    device, state = rng.choice(DEVICES), rng.choice(STATES)
    text = rng.choice(rng.choice(DEVICE_WORDINGS[split])).format(device=device, state=state)
    words = text.split()
    return Order(
        text=text,
        phrases=("all right", device, state, "and it will stay that way for you"),
        complete=max(words.index(device), words.index(state)) + 1,
    )


def draw_pause(order: Order, rng: random.Random) -> tuple[int, float] | None:
    """Word before which the user hesitates, and for how many seconds; some orders have no place."""
    if order.complete < 2:
        return None
    return rng.randrange(1, order.complete), round(rng.uniform(0.4, 1.6), 2)


def order_scripts(split: Split, num_scripts: int, seed: int = 0) -> list[Script]:
    """Dialogues of orders and answers, a pure function of split, number and seed."""
    return [_script(split, number, seed) for number in range(num_scripts)]


def _script(split: Split, number: int, seed: int) -> Script:
    name = f"orders_{split}_{seed}_{number:05d}"
    rng = random.Random(name)
    turns: list[Turn] = []
    num_exchanges = rng.choice((2, 3))
    interrupted = False
    for exchange in range(num_exchanges):
        order = draw_order(split, rng)
        pause = draw_pause(order, rng) if rng.random() < 0.5 else None
        pauses = () if pause is None else (pause,)
        if interrupted:
            # Behind one of the first seven words; later, little would be left to cut.
            after_word = rng.randrange(len(turns[-1].words) - 2) * 3 // 4
            turns.append(interruption(order, rng, after_word, pauses))
        else:
            gap_s = round(rng.uniform(0.5, 1.5), 2)
            turns.append(Turn(speaker="user", text=order.text, pauses=pauses, gap_s=gap_s))
        turns.append(answer(order, gap_s=round(rng.uniform(*_ANSWER_GAP_S), 2)))
        interrupted = exchange + 1 < num_exchanges and rng.random() < 0.5
    if rng.random() < 0.3:
        after_word = rng.randrange(len(turns[-1].words) - 2)
        said = rng.choice(BACKCHANNELS)
        turns.append(Turn(speaker="user", text=said, kind="backchannel", after_word=after_word))
    return Script(name=name, turns=tuple(turns))


def answer(order: Order, gap_s: float) -> Turn:
    """All of the answer, phrase by phrase."""
    breaths = accumulate(len(phrase.split()) for phrase in order.phrases[:-1])
    return Turn(speaker="agent", text=order.reply, breaths=tuple(breaths), gap_s=gap_s)


def interruption(
    order: Order,
    rng: random.Random,
    after_word: int | None,
    pauses: tuple[tuple[int, float], ...] = (),
) -> Turn:
    """An order that cuts the answer before; some begin with "wait" and the like."""
    if opening := rng.choice(OPENINGS):
        pauses = tuple((word + 1, seconds) for word, seconds in pauses)
    return Turn(
        speaker="user",
        text=f"{opening} {order.text}".strip(),
        kind="interruption",
        pauses=pauses,
        after_word=after_word,
        yield_s=round(rng.uniform(*_YIELD_S), 2),
    )


def listening_scripts(num_scripts: int, seed: int = 0) -> list[Script]:
    """The user alone, saying orders to learn from and words of them in any order."""
    words = list(dict.fromkeys(word for text in _texts() for word in text.split()))
    return [_monologue(number, seed, words) for number in range(num_scripts)]


def _texts() -> Iterator[str]:
    for families in (DIGIT_WORDINGS["train"], DEVICE_WORDINGS["train"]):
        for family in families:
            yield from (text.format(digit="", device="", state="") for text in family)
    yield from (*BACKCHANNELS, *OPENINGS)


def _monologue(number: int, seed: int, words: Sequence[str]) -> Script:
    name = f"listening_{seed}_{number:05d}"
    rng = random.Random(name)
    turns = []
    for _ in range(4):
        if rng.random() < 0.5:
            text = f"{rng.choice(OPENINGS)} {draw_order('train', rng).text}".strip()
        else:
            text = " ".join(
                rng.choice(
                    rng.choice((DIGITS, DIGITS, DEVICES, STATES))
                    if rng.random() < _CONTENT_SHARE
                    else words
                )
                for _ in range(rng.randint(*_NUM_WORDS))
            )
        gap_s = round(rng.uniform(0.3, 0.8), 2)
        turns.append(Turn(speaker="user", text=text, gap_s=gap_s))
    return Script(name=name, turns=tuple(turns))
