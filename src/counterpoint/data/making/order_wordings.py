"""The wordings of spoken orders, in families of similar ones; some wordings are held out.

A training wording is composed of parts. None contains a held-out wording, and none differs from a
held-out wording by a single word. All single words occur in training, in other wordings.

There are three splits: "train" for training, "tuning" for choosing settings, "held_out" for
reported results. Some pairs of device and state are also held out from all training wordings.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import Literal

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEVICES = ("lamp", "radio", "heater", "camera")
STATES = ("on", "off", "high", "low")
HELD_OUT_PAIRS = (("lamp", "high"), ("radio", "off"), ("heater", "on"), ("camera", "low"))
"""Pairs that are never ordered in training; each device and each state occurs in other pairs."""

Split = Literal["train", "tuning", "held_out"]

_HELD_OUT_DIGITS = (
    "{digit} is the number i would like",
    "the number i want is {digit}",
    "what i need is number {digit}",
    "if you can write {digit} for me",
    "my code will be {digit} this time",
    "number {digit} is what we have",
    "take down {digit} for me today",
    "is {digit} my number",
    "i would like the code to be {digit}",
    "you can put {digit} down for me",
    "was my answer {digit}",
    "please it is {digit} i said",
)
_HELD_OUT_DEVICES = (
    "it is the {device} i want {state}",
    "let the {device} go {state} please",
    "{state} is what the {device} should be",
    "can the {device} be {state} for me",
    "i would like to have the {device} {state}",
    "please make the {device} go {state}",
    "the {device} i think must be {state}",
    "we need the {device} to be {state} now",
)
_TUNING_DIGITS = (
    "the code i have is {digit}",
    "put {digit} down now please",
    "was the total {digit}",
    "number {digit} it is i think",
    "i need it to be {digit} this time",
)
_TUNING_DEVICES = (
    "should the {device} be {state}",
    "i think it is time for the {device} to go {state}",
    "have the {device} {state} for me please",
    "the {device} must go {state} will you",
)

# Short orders are common in speech, so the empty parts are repeated.
_ASKING = (
    *("", "", "", "please", "now", "well", "so", "just", "can you", "could you", "would you"),
    *("can you please", "could you please", "will you please", "i would like you to"),
    *("i want you to", "i need you to", "it is time to", "let us"),
)
_DIGIT = ("{digit}", "{digit}", "number {digit}", "the number {digit}", "the digit {digit}")
_SWITCHED = ("{state} the {device}", "the {device} {state}")
_TAIL = (
    *("", "", "", "", "please", "for me", "now", "for me please", "today", "this time"),
    *("thank you", "again", "if you can", "will you"),
)
_FIRST = ("", "", "", "well", "so", "maybe", "i think", "this time", "for me", "today")


def families(what: Literal["digit", "device"], split: Split) -> tuple[tuple[str, ...], ...]:
    """Return the wordings of one kind of order in families; every family is equally likely."""
    made = _digit_families() if what == "digit" else _device_families()
    return made[split]


def _wordings(not_these: Iterable[str], *parts: Iterable[str]) -> tuple[str, ...]:
    """Return all texts composed of parts, without those that contain or nearly equal others."""
    others = tuple(not_these)
    is_near = near(others)
    texts = (" ".join(" ".join(chosen).split()) for chosen in product(*parts))
    return tuple(
        text
        for text in texts
        if not is_near(text) and not any(f" {other} " in f" {text} " for other in others)
    )


def near(others: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a text equals one of others up to one word.

    One word may be inserted, left out or replaced.
    """
    words = [tuple(other.split()) for other in others]
    whole = set(words)
    shorter = {other[:i] + other[i + 1 :] for other in words for i in range(len(other))}
    replaced = {(i, other[:i] + other[i + 1 :]) for other in words for i in range(len(other))}

    def is_near(text: str) -> bool:
        said = tuple(text.split())
        if said in whole or said in shorter:
            return True
        left = [said[:i] + said[i + 1 :] for i in range(len(said))]
        return any(rest in whole or (i, rest) in replaced for i, rest in enumerate(left))

    return is_near


@cache
def _digit_families() -> dict[Split, tuple[tuple[str, ...], ...]]:
    others = (*_HELD_OUT_DIGITS, *_TUNING_DIGITS)
    train = (
        _wordings(
            others,
            _ASKING,
            (
                *("remember", "write", "write down", "note", "note down", "save", "keep"),
                *("put down", "store", "type", "enter", "record", "mark", "take"),
            ),
            _DIGIT,
            _TAIL,
        ),
        _wordings(
            others,
            _FIRST,
            (
                *("it", "my number", "the number", "your number", "the next number", "the answer"),
                *("my answer", "my choice", "the choice", "the code", "my code", "the total"),
                *("the result", "the score", "my favourite", "my wish", "mine", "this"),
            ),
            ("is", "is", "was", "will be", "should be", "must be"),
            ("{digit}", "{digit}", "number {digit}"),
            ("", "", "", "", "i think", "please", "for me", "now", "thank you"),
        ),
        _wordings(
            others,
            _FIRST,
            (
                *("i choose", "i want", "i have", "i need", "i take", "i would like", "i pick"),
                *("i mean", "i said", "i see", "i got", "we need", "we have", "let us take"),
                *("give me", "make it", "let it be"),
            ),
            _DIGIT,
            _TAIL,
        ),
        _wordings(
            others,
            ("", "", "", "", "", "well", "so", "maybe", "i think", "number"),
            ("{digit}",),
            (
                *("please", "for me", "it is", "i think", "thank you", "was it", "is right"),
                *("is my number", "is the number", "was the number", "is the code", "was my code"),
                *("is my choice", "is my answer", "was my answer", "is the result"),
                *("is what i want", "is what i need", "is my favourite", "is good", "is mine"),
            ),
        ),
        _wordings(others, _DIGIT, ("", "", "please", "now")),
    )
    return {"train": train, "tuning": (_TUNING_DIGITS,), "held_out": (_HELD_OUT_DIGITS,)}


@cache
def _device_families() -> dict[Split, tuple[tuple[str, ...], ...]]:
    others = (*_HELD_OUT_DEVICES, *_TUNING_DEVICES)
    train = (
        _wordings(others, _ASKING, ("turn", "switch"), _SWITCHED, _TAIL),
        _wordings(
            others,
            (*_FIRST, "please", "now"),
            ("i would like", "i need", "i want", "i have to have", "let us have"),
            ("the {device} {state}",),
            _TAIL,
        ),
        _wordings(
            others,
            (*_FIRST, "now"),
            ("the {device}",),
            ("should be", "must be", "should go", "has to be"),
            ("{state}",),
            _TAIL,
        ),
    )
    return {"train": train, "tuning": (_TUNING_DEVICES,), "held_out": (_HELD_OUT_DEVICES,)}
