"""Spoken orders: short dialogues with an exact answer to every order.

The user says a digit or asks to switch a device, in one of many wordings; the agent confirms it.
The user pauses, mostly before the order is complete and sometimes after its last content word. The
user also interrupts answers with another order, and says "mhm" while the agent talks. Some wordings
and some pairs of device and state are held out. A model may first learn to recognise the words: in
scripts for listening only the user talks.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from counterpoint.data.making.order_wordings import (
    DEVICES,
    DIGITS,
    HELD_OUT_PAIRS,
    STATES,
    Split,
    families,
)
from counterpoint.data.making.scripts import Script, Turn

BACKCHANNELS = ("mhm", "okay", "right", "yes")
OPENINGS = ("", "", "wait", "no", "stop", "sorry")
"""Words with which an interruption begins."""

PAUSE_S = (0.4, 1.6)
LONG_PAUSE_S = (1.6, 3.5)
"""Some pauses are longer than an answer may take."""

# Both ranges are narrow, so that there is one moment at which to begin or to stop. If many frames
# were possible, each would be unlikely, even for a model that knows what it has heard.
_ANSWER_GAP_S = (0.45, 0.55)
# "mhm" takes 0.55 s. An agent that stopped much earlier would have to stop before it can recognise
# an interruption. If stopping is wrong half of the time, a model learns not to stop at all.
_YIELD_S = (0.4, 0.5)
_NUM_WORDS = (3, 8)  # number of words in an utterance of a listening script
_CONTENT_SHARE = 0.5
_PAUSE_SHARE = 0.5
_LONG_SHARE = 0.2
_LATE_SHARE = 0.25

Pairs = Literal["trained", "held_out"]
"""A device and its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One order and its answer.

    Attributes:
        text: What the user says.
        phrases: What the agent must answer, in phrases that are synthesised separately. Speech
            engines pronounce a word differently in every sentence. If the answer were synthesised
            as one, its first sounds would reveal the rest, and a model would listen to itself
            instead of the user.
        complete: Number of words after which the order is complete.
    """

    text: str
    phrases: tuple[str, ...]
    complete: int

    @property
    def reply(self) -> str:
        """The whole answer as one text."""
        return " ".join(self.phrases)


def draw_order(split: Split, rng: random.Random, pairs: Pairs = "trained") -> Order:
    """Draw an order in one of the wordings of a split.

    Args:
        split: Split of the wordings.
        rng: Source of randomness.
        pairs: "trained" draws a digit half of the time, and otherwise a pair of device and state
            that occurs in training; "held_out" draws one of `HELD_OUT_PAIRS`.
    """
    if pairs == "trained" and rng.random() < 0.5:
        return digit_order(rng.choice(DIGITS), split, rng)
    device, state = rng.choice(order_pairs(pairs))
    text = rng.choice(rng.choice(families("device", split))).format(device=device, state=state)
    words = text.split()
    return Order(
        text=text,
        phrases=_device_phrases(device, state),
        complete=max(words.index(device), words.index(state)) + 1,
    )


def digit_order(digit: str, split: Split, rng: random.Random) -> Order:
    """Draw an order of the given digit in one of the wordings of a split."""
    text = rng.choice(rng.choice(families("digit", split))).format(digit=digit)
    return Order(text=text, phrases=_digit_phrases(digit), complete=text.split().index(digit) + 1)


def bare_digit(digit: str) -> Order:
    """Return an order that consists of the digit alone."""
    return Order(text=digit, phrases=_digit_phrases(digit), complete=1)


def order_pairs(pairs: Pairs) -> tuple[tuple[str, str], ...]:
    """Return the pairs of device and state that are trained, or those held out."""
    if pairs == "held_out":
        return HELD_OUT_PAIRS
    every = ((device, state) for device in DEVICES for state in STATES)
    return tuple(pair for pair in every if pair not in HELD_OUT_PAIRS)


def answers() -> tuple[tuple[str, ...], ...]:
    """Return the phrases of every answer that an order can ask for."""
    pairs = (*order_pairs("trained"), *order_pairs("held_out"))
    return (*map(_digit_phrases, DIGITS), *(_device_phrases(*pair) for pair in pairs))


def _digit_phrases(digit: str) -> tuple[str, ...]:
    return ("you said", digit, "and i wrote that number down for you")


def _device_phrases(device: str, state: str) -> tuple[str, ...]:
    return ("all right", device, state, "and it will stay that way for you")


def draw_pause(
    order: Order,
    rng: random.Random,
    seconds: tuple[float, float] = PAUSE_S,
    *,
    late: bool = False,
) -> tuple[int, float] | None:
    """Draw the word before which the user hesitates and the seconds; ``None`` if none is possible.

    Args:
        order: The order.
        rng: Source of randomness.
        seconds: Shortest and longest pause.
        late: Whether the pause comes after the last content word instead of before it.
    """
    first, stop = (order.complete, len(order.text.split())) if late else (1, order.complete)
    if first >= stop:
        return None
    return rng.randrange(first, stop), round(rng.uniform(*seconds), 2)


def order_scripts(split: Split, num_scripts: int, seed: int = 0) -> list[Script]:
    """Return dialogues of orders and answers, a function of split, number and seed alone."""
    return [_script(split, number, seed) for number in range(num_scripts)]


def _script(split: Split, number: int, seed: int) -> Script:
    name = f"orders_{split}_{seed}_{number:05d}"
    rng = random.Random(name)
    turns: list[Turn] = []
    num_exchanges = rng.choice((2, 3))
    interrupted = False
    for exchange in range(num_exchanges):
        order = draw_order(split, rng)
        pauses = _drawn_pauses(order, rng)
        if interrupted:
            # The interruption follows one of the first words; later, little would be left to cut.
            after_word = rng.randrange(len(turns[-1].words) - 2) * 3 // 4
            turns.append(interruption(order, rng, after_word, pauses))
        else:
            gap_s = round(rng.uniform(0.5, 1.5), 2)
            turns.append(Turn(speaker="user", text=order.text, pauses=pauses, gap_s=gap_s))
        turns.append(answer(order, gap_s=round(rng.uniform(*_ANSWER_GAP_S), 2)))
        interrupted = exchange + 1 < num_exchanges and rng.random() < 0.5
    turns += _backchannel(turns[-1], rng)
    return Script(name=name, turns=tuple(turns))


def _drawn_pauses(order: Order, rng: random.Random) -> tuple[tuple[int, float], ...]:
    if rng.random() >= _PAUSE_SHARE:
        return ()
    seconds = LONG_PAUSE_S if rng.random() < _LONG_SHARE else PAUSE_S
    pause = draw_pause(order, rng, seconds, late=rng.random() < _LATE_SHARE)
    return () if pause is None else (pause,)


def _backchannel(reply: Turn, rng: random.Random) -> list[Turn]:
    """Return a backchannel for three in ten answers."""
    if rng.random() >= 0.3:
        return []
    after_word = rng.randrange(len(reply.words) - 2)
    said = rng.choice(BACKCHANNELS)
    return [Turn(speaker="user", text=said, kind="backchannel", after_word=after_word)]


def answer(order: Order, gap_s: float) -> Turn:
    """Return the turn of the whole answer, phrase by phrase."""
    breaths = accumulate(len(phrase.split()) for phrase in order.phrases[:-1])
    return Turn(speaker="agent", text=order.reply, breaths=tuple(breaths), gap_s=gap_s)


def interruption(
    order: Order,
    rng: random.Random,
    after_word: int | None,
    pauses: tuple[tuple[int, float], ...] = (),
) -> Turn:
    """Return an order that interrupts the answer before it; some begin with "wait" and the like.

    Args:
        order: The order.
        rng: Draws the opening, and the time until the agent yields.
        after_word: Number of words of the answer after which it begins; see `Turn.after_word`.
        pauses: Pauses of the turn: the number of the word before each, without the opening, and
            seconds.
    """
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
    """Return scripts in which only the user talks: training orders, and their words shuffled."""
    words = list(dict.fromkeys(word for text in _texts() for word in text.split()))
    return [_monologue(number, seed, words) for number in range(num_scripts)]


def _texts() -> Iterator[str]:
    for family in (*families("digit", "train"), *families("device", "train")):
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
            text = _any_words(rng, words)
        gap_s = round(rng.uniform(0.3, 0.8), 2)
        turns.append(Turn(speaker="user", text=text, gap_s=gap_s))
    return Script(name=name, turns=tuple(turns))


def _any_words(rng: random.Random, words: Sequence[str]) -> str:
    """Return words in any order, never both words of a held-out pair."""
    while True:
        said = [
            rng.choice(
                rng.choice((DIGITS, DIGITS, DEVICES, STATES))
                if rng.random() < _CONTENT_SHARE
                else words
            )
            for _ in range(rng.randint(*_NUM_WORDS))
        ]
        if not any(set(pair) <= set(said) for pair in HELD_OUT_PAIRS):
            return " ".join(said)
