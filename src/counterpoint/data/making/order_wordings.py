"""The wordings of spoken orders, in families of like ones; some wordings are held out.

A wording to learn from is put together of parts. None holds a wording that is held out. Those may
hold, and are near, wordings to learn from: they are other orders of the same words.
"""

from collections.abc import Iterable
from itertools import product
from typing import Literal

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEVICES = ("lamp", "radio", "heater", "camera")
STATES = ("on", "off")

Split = Literal["train", "held_out"]

_HELD_OUT_DIGITS = (
    "please write the number {digit}",
    "i want number {digit}",
    "can you note the number {digit} please",
    "my choice is {digit}",
    "{digit} is the answer",
    "remember the number {digit} for me",
    "i think the number was {digit}",
    "could you save {digit}",
)
_HELD_OUT_DEVICES = (
    "would you turn the {device} {state} please",
    "please switch the {device} {state}",
    "i want the {device} {state}",
    "can you switch {state} the {device} for me",
    "it is time to switch the {device} {state}",
)

# Short orders are common, so the empty parts are repeated.
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


def _wordings(held_out: Iterable[str], *parts: Iterable[str]) -> tuple[str, ...]:
    """All that can be put together of parts, without what holds a wording that is held out."""
    texts = (" ".join(" ".join(chosen).split()) for chosen in product(*parts))
    kept = (text for text in texts if not any(f" {out} " in f" {text} " for out in held_out))
    return tuple(kept)


DIGIT_WORDINGS: dict[Split, tuple[tuple[str, ...], ...]] = {
    "train": (
        _wordings(
            _HELD_OUT_DIGITS,
            _ASKING,
            (
                *("remember", "write", "write down", "note", "note down", "save", "keep"),
                *("put down", "store", "type", "enter", "record", "mark", "take"),
            ),
            _DIGIT,
            _TAIL,
        ),
        _wordings(
            _HELD_OUT_DIGITS,
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
            _HELD_OUT_DIGITS,
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
            _HELD_OUT_DIGITS,
            ("", "", "", "", "", "well", "so", "maybe", "i think", "number"),
            ("{digit}",),
            (
                *("please", "for me", "it is", "i think", "thank you", "was it", "is right"),
                *("is my number", "is the number", "was the number", "is the code", "was my code"),
                *("is my choice", "is my answer", "was my answer", "is the result"),
                *("is what i want", "is what i need", "is my favourite", "is good", "is mine"),
            ),
        ),
    ),
    "held_out": (_HELD_OUT_DIGITS,),
}
"""Families of wordings; every family is equally likely."""

DEVICE_WORDINGS: dict[Split, tuple[tuple[str, ...], ...]] = {
    "train": (
        _wordings(_HELD_OUT_DEVICES, _ASKING, ("turn", "switch"), _SWITCHED, _TAIL),
        _wordings(
            _HELD_OUT_DEVICES,
            (*_FIRST, "please", "now"),
            ("i would like", "i need", "i want", "i have to have", "let us have"),
            ("the {device} {state}",),
            _TAIL,
        ),
        _wordings(
            _HELD_OUT_DEVICES,
            (*_FIRST, "now"),
            ("the {device}",),
            ("should be", "must be", "should go", "has to be"),
            ("{state}",),
            _TAIL,
        ),
    ),
    "held_out": (_HELD_OUT_DEVICES,),
}
"""The same for devices."""
