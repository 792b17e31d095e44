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

_ASKING = (
    *("", "", "please", "now", "well", "can you", "could you", "would you", "can you please"),
    *("could you please", "i would like you to", "i want you to", "it is time to"),
)
_DIGIT = ("{digit}", "number {digit}", "the number {digit}")
_SWITCHED = ("{state} the {device}", "the {device} {state}")
_TAIL = ("", "", "", "please", "for me", "now", "for me please", "today", "this time")


def _wordings(held_out: Iterable[str], *parts: Iterable[str]) -> tuple[str, ...]:
    """All that can be put together of parts, without what holds a wording that is held out."""
    texts = dict.fromkeys(" ".join(" ".join(chosen).split()) for chosen in product(*parts))
    kept = (text for text in texts if not any(f" {out} " in f" {text} " for out in held_out))
    return tuple(kept)


DIGIT_WORDINGS: dict[Split, tuple[tuple[str, ...], ...]] = {
    "train": (
        _wordings(
            _HELD_OUT_DIGITS,
            _ASKING,
            ("remember", "write", "write down", "note", "note down", "save", "keep", "put down"),
            _DIGIT,
            _TAIL,
        ),
        _wordings(
            _HELD_OUT_DIGITS,
            ("", "well", "i think", "this time", "for me", "today"),
            ("my number", "the number", "the answer", "my answer", "my choice", "it"),
            ("is", "was"),
            ("{digit}", "number {digit}"),
            ("", "", "i think", "please", "for me"),
        ),
        _wordings(
            _HELD_OUT_DIGITS,
            ("", "well", "this time", "for me", "today", "please"),
            ("i choose", "i want", "i have", "i need", "i take", "let us take", "i would like"),
            _DIGIT,
            _TAIL,
        ),
        _wordings(
            _HELD_OUT_DIGITS,
            ("", "", "well", "i think", "today", "number"),
            ("{digit}",),
            ("please", "is my number", "is my choice", "is right", "was the number", "for me"),
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
            ("", "", "well", "please", "now", "today", "this time"),
            ("i would like", "i need", "i want", "i have to have", "let us have"),
            ("the {device} {state}",),
            _TAIL,
        ),
        _wordings(
            _HELD_OUT_DEVICES,
            ("", "", "well", "i think", "now", "today", "this time"),
            ("the {device}",),
            ("should be", "must be", "should go", "has to be"),
            ("{state}",),
            _TAIL,
        ),
    ),
    "held_out": (_HELD_OUT_DEVICES,),
}
"""The same for devices."""
