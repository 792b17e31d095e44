"""Tools: functions that a model may call by name, with arguments that a JSON schema describes."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.literals import literals_checked

Effect = Literal["none", "undoable", "lasting"]
"""What a call changes: nothing; something that can be undone; or something that stays."""

_TYPES: Mapping[Any, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that a model may call.

    A call has an *idempotency key*. A tool that changes something gets it as the keyword `key`, and
    must change it once for each key, however often it is called. So a call whose outcome is unknown
    can be repeated.

    Attributes:
        name: Name by which it is called.
        description: What it does, for a language model.
        parameters: JSON schema of its arguments, an object.
        function: The function; it gets the arguments as keywords, and `key` unless `effect` is
            "none".
        effect: What a call changes. Only a tool whose effect is "none" or "undoable" may be called
            before a user has finished; a call that is "lasting" is never repeated either.
        undo: Takes the effect of the call with a key back, also before the call has ended; a must
            if the effect is "undoable".
        limit_s: Longest time that a call may take.
        say: Returns what a user is told about a result; ``None``, and a failure, leave that to the
            language model.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    effect: Effect = "lasting"
    undo: Callable[[str], Any] | None = None
    limit_s: float = 5.0
    say: Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        if (self.effect == "undoable") != (self.undo is not None):
            raise ValueError(
                f"A tool must have `undo` exactly if its effect is undoable: {self.name!r} has the "
                f"effect {self.effect!r} and {'an' if self.undo else 'no'} `undo`."
            )
        if self.effect != "none" and "key" in self.parameters.get("properties", {}):
            raise ValueError(
                f"A tool that changes something gets its idempotency key as `key`: {self.name!r} "
                "must give its own parameter another name."
            )

    @property
    def is_safe(self) -> bool:
        """Whether it may be called on a guess."""
        return self.effect != "lasting"

    def described(self) -> dict[str, Any]:
        """Return the tool as language models read it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


def spoken_values(tools: Iterable[Tool]) -> str:
    """Return the values that tools list (`enum`), as a text for a recogniser to expect.

    Of values made of the same words only the first are named, and a parameter is a sentence:
    "Small, medium, large. Mocha, iced mocha, latte." Empty if no values are listed.
    """
    known: set[str] = set()
    sentences = []
    for tool in tools:
        for parameter in tool.parameters.get("properties", {}).values():
            named = []
            for value in map(str, parameter.get("enum", ())):
                words = set(value.lower().split())
                if words - known:
                    named.append(value)
                    known |= words
            if named:
                text = ", ".join(named)
                sentences.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(sentences)


def argument_fault(parameters: Mapping[str, Any], arguments: Any) -> str | None:
    """Return what is wrong with the arguments of a call; ``None`` if they fit.

    Types, `enum`, `required` and unknown names are checked; other rules are the tool's own.
    """
    if not isinstance(arguments, dict):
        return f"arguments must be an object, got {json.dumps(arguments)[:80]}"
    known = parameters.get("properties", {})
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        return f"{', '.join(missing)} missing"
    for name, value in arguments.items():
        if name not in known:
            return f"no parameter {name!r}"
        if fault := _value_fault(known[name], value):
            return f"{name} {fault}"
    return None


def _value_fault(schema: Mapping[str, Any], value: Any) -> str | None:
    kind = schema.get("type")
    kinds: list[Any] = kind if isinstance(kind, list) else [kind]
    if all(one in _TYPES for one in kinds) and not any(_is_of(value, one) for one in kinds):
        return f"must be of type {' or '.join(kinds)}, got {json.dumps(value)[:80]}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(map(str, schema['enum']))}, got {json.dumps(value)[:80]}"
    return None


def _is_of(value: Any, kind: str) -> bool:
    """Return whether a value has a type of JSON; true is no number."""
    is_bool = isinstance(value, bool) and kind in ("integer", "number")
    return isinstance(value, _TYPES[kind]) and not is_bool


def canonical(name: str, arguments: Mapping[str, Any]) -> str:
    """Return one text for equal calls."""
    return json.dumps([name, dict(arguments)], sort_keys=True)
