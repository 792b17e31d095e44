"""What tyro prints about a mistake, said in one line: what must hold, what came, what to do."""

import re
from collections.abc import Sequence

from counterpoint.recipes.options import REQUIRED, Field, Option, options_of

_KINDS = {"N": "a whole number", "X": "a number", "N ...": "whole numbers", "X ...": "numbers"}
"""What the placeholder of a value means."""


def one_line(
    complaint: str, fields: Sequence[Field], arguments: Sequence[str], command: str
) -> str:
    """Return the complaint of tyro as one line.

    Args:
        complaint: What tyro has printed: a box of lines, or plain lines where the terminal has no
            letters for a box.
        fields: Fields that were parsed; see `counterpoint.recipes.overrides.parse`.
        arguments: Words of the command line.
        command: Words before them.
    """
    text = _first_part(complaint)
    options = {option.name: option for option in options_of(fields)}
    told = (
        _missing(text, options, command)
        or _without_value(text)
        or _wrong_choice(text, options)
        or _wrong_kind(text, options, arguments)
        or _too_many(text, command)
        or re.sub(r"^Error parsing \S+: ", "", text)
    )
    return f"{told.rstrip('.')}. `counterpoint {command} --help` lists what there is."


def _first_part(complaint: str) -> str:
    """Return the text between the title and the next horizontal rule."""
    lines = [line.strip("│╭╮╰╯ ") for line in complaint.splitlines()][1:]
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r"[─-]{3,}", line):
            parts.append([])
        else:
            parts[-1].append(line)
    joined = [" ".join(" ".join(part).split()) for part in parts]
    return next((text for text in joined if text), "the options cannot be read")


def _missing(text: str, options: dict[str, Option], command: str) -> str | None:
    """Name the words that must be given and are not."""
    if not text.startswith("Missing from"):
        return None
    needed = [option for option in options.values() if option.default is REQUIRED]
    # A word without a name is known by its description, which tyro repeats.
    absent = [
        f"{option.name} {option.values}" if option.values else f"{option.name} ({option.about})"
        for option in needed
        if (option.name if option.values else option.about[:20]) in text
    ]
    named = " and ".join(absent).replace(".)", ")") or text
    return f"`counterpoint {command}` must be given {named}: nothing came"


def _without_value(text: str) -> str | None:
    # Tyro 1.0.0 prints a tuple of names, later ones a name.
    found = re.match(r"Missing value for argument '(?:\(')?([^',]+)", text)
    return f"`{found[1]}` must be followed by a value: nothing came" if found else None


def _wrong_choice(text: str, options: dict[str, Option]) -> str | None:
    """List the choices in the order of the help."""
    found = re.match(
        r"invalid choice '(.*?)' for argument '([^']+)'\. Expected one of \((.*)\)", text
    )
    if found is None:
        return None
    given, name, listed = found.groups()
    option = options.get(name)
    if option is not None and "|" in option.values:
        choices = option.values.removesuffix(" ...").replace("|", ", ")
    else:
        choices = listed.replace("'", "")
    return f"`{name}` must be one of {choices}: got '{given}'"


def _too_many(text: str, command: str) -> str | None:
    found = re.match(r"Unrecognized options: (.*)", text)
    return f"`counterpoint {command}` must have no other words: got {found[1]}" if found else None


def _wrong_kind(text: str, options: dict[str, Option], arguments: Sequence[str]) -> str | None:
    """Say that an option needs a number; tyro lists what every type of its field complained of."""
    refused = re.match(r"Error parsing (--[^ :]+):", text)
    option = options.get(refused[1]) if refused else None
    kind = _KINDS.get(option.values) if option else None
    if option is None or kind is None:
        return None
    given: list[str] = []
    is_it = False
    for word in arguments:
        name, _, value = word.partition("=")
        if name.startswith("--"):
            is_it = name.replace("_", "-") == option.name
            given += [value] if is_it and value else []
        elif is_it:
            given.append(word)
    return f"`{option.name}` must be {kind}: got '{' '.join(given)}'"
