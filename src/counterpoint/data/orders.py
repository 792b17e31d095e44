"""Spoken orders: short dialogues with an exact answer to every order.

The user says a digit or has a device switched, in one of many wordings; the agent confirms it. The
user pauses before the order is complete, interrupts answers with another order, and says "mhm"
while the agent talks. Some wordings are held out.
"""

import random
from dataclasses import dataclass
from typing import Literal

from counterpoint.data.scripts import Script, Turn

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEVICES = ("lamp", "radio", "heater", "camera")
STATES = ("on", "off")
BACKCHANNELS = ("mhm", "okay", "right", "yes")
OPENINGS = ("", "", "wait", "no", "stop", "sorry")
"""How an interruption begins."""

Split = Literal["train", "held_out"]

_PHRASE_GAP_S = 0.2  # the least that dialogues leave between two turns of one speaker

_DIGIT_WORDINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "{} please",
        "remember {}",
        "my number is {}",
        "write down {}",
        "the number is {}",
        "please remember the number {}",
        "i would like you to write down {}",
        "can you remember {}",
        "i have the number {}",
        "save the number {} please",
        "could you please note {}",
        "{} is my number",
        "{} is right",
        "note {} for me",
        "let us take the number {}",
        "i choose {}",
        "today i choose number {}",
        "put down number {}",
        "i think it was {}",
        "the answer is {}",
        "well the answer was {} i think",
        "for me it is {}",
        "write the number {} for me please",
        "this time it is number {}",
    ),
    "held_out": (
        "please write the number {}",
        "i want number {}",
        "can you note the number {} please",
        "my choice is {}",
        "{} is the answer",
        "remember the number {} for me",
        "i think the number was {}",
        "could you save {}",
    ),
}
_DEVICE_WORDINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "turn {state} the {device}",
        "turn the {device} {state}",
        "please turn {state} the {device}",
        "please turn the {device} {state} now",
        "switch the {device} {state}",
        "switch {state} the {device} now",
        "can you turn the {device} {state}",
        "can you please switch {state} the {device}",
        "i would like the {device} {state}",
        "could you switch {state} the {device} for me",
        "could you turn the {device} {state} please",
        "the {device} should be {state}",
        "i need the {device} {state}",
        "it is time to turn {state} the {device}",
    ),
    "held_out": (
        "would you turn the {device} {state} please",
        "please switch the {device} {state}",
        "i want the {device} {state}",
        "can you switch {state} the {device} for me",
        "it is time to switch the {device} {state}",
    ),
}


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
        text = rng.choice(_DIGIT_WORDINGS[split]).format(digit)
        phrases = ("you said", digit, "and i wrote that number down for you")
        return Order(text=text, phrases=phrases, complete=text.split().index(digit) + 1)
    device, state = rng.choice(DEVICES), rng.choice(STATES)
    text = rng.choice(_DEVICE_WORDINGS[split]).format(device=device, state=state)
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
            turns.append(interruption(order, rng, rng.randrange(len(turns[-1].words)), pauses))
        else:
            gap_s = round(rng.uniform(0.5, 1.5), 2)
            turns.append(Turn(speaker="user", text=order.text, pauses=pauses, gap_s=gap_s))
        interrupted = exchange + 1 < num_exchanges and rng.random() < 0.5
        num_said = rng.randrange(2, len(order.phrases) + 1) if interrupted else len(order.phrases)
        gap_s = round(rng.uniform(0.3, 0.6), 2)
        for phrase in order.phrases[:num_said]:
            turns.append(Turn(speaker="agent", text=phrase, gap_s=gap_s))
            gap_s = _PHRASE_GAP_S
    if rng.random() < 0.3:
        after_word = rng.randrange(len(turns[-1].words) - 2)
        said = rng.choice(BACKCHANNELS)
        turns.append(Turn(speaker="user", text=said, kind="backchannel", after_word=after_word))
    return Script(name=name, turns=tuple(turns))


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
        yield_s=round(rng.uniform(0.2, 0.5), 2),
    )
