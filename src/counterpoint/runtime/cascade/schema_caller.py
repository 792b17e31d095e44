"""A thinker without a language model: it finds the arguments of tools in what was said.

Every parameter of a tool whose schema lists its values (`enum`) is looked for in the words: the
newest value counts, so a speaker who says "large, no, small" means small. A tool is called as soon
as its required parameters were found, and again, after the first call was taken back, when they
change. Misheard words are found by their letters.

Source: none; a baseline of ours that needs no training, to be compared with language models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from counterpoint.data.tools import Tool, canonical
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.thinking import Scene

_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip
"""Recognisers write numbers as figures, and tools mostly have words."""

_MOST_WORDS = 200  # what was said long before is no part of a request
_ALIKE = 0.82  # share of equal letters from which on misheard words count as found


class _Match(NamedTuple):
    """A value that was found in the words from `start` to `stop`.

    Its worth is the number of letters that both have, less those that only one has: letters of the
    value that were not heard count twice.
    """

    value: Any
    start: int
    stop: int
    worth: float


def can_find(tool: Tool) -> bool:
    """Return whether a `SchemaCaller` can call a tool.

    Every required parameter must be a string and list its values, and at least one must.
    """
    listed = {
        name
        for name, one in tool.parameters.get("properties", {}).items()
        if "enum" in one and one.get("type", "string") == "string"
    }
    return bool(listed) and listed.issuperset(tool.parameters.get("required", ()))


class SchemaCaller:
    """Calls tools whose arguments are among the words.

    Args:
        tools: The tools. Only parameters of type string with an `enum` are found.
        alike: Share of equal letters from which on words count as a value.
    """

    def __init__(self, tools: Sequence[Tool], alike: float = _ALIKE) -> None:
        self._tools = tools
        self._alike = alike

    def __call__(self, scene: Scene) -> Iterator[str]:
        """See `SceneWriter`."""
        heard = [_spelled(plain(word.text)) for word in scene.words[-_MOST_WORDS:]]
        for tool in self._tools:
            arguments = self.arguments(tool.parameters, [word for word in heard if word])
            made = [call for call in scene.calls if call.tool.name == tool.name and call.is_wanted]
            wanted = None if arguments is None else canonical(tool.name, arguments)
            for call in made:
                if wanted is not None and canonical(tool.name, call.arguments) != wanted:
                    yield _mark("cancel", tool.name, call.arguments)
            if arguments is not None:
                yield _mark("call", tool.name, arguments)

    def arguments(
        self, parameters: Mapping[str, Any], heard: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return the arguments that were said; ``None`` if a required one was not.

        Args:
            parameters: JSON schema of an object.
            heard: Words in lower case, without punctuation.
        """
        found = {}
        for name, schema in parameters.get("properties", {}).items():
            matches = [
                match for value in schema.get("enum", ()) for match in self._matches(value, heard)
            ]
            if matches:
                found[name] = _newest(matches).value
        if any(name not in found for name in parameters.get("required", ())):
            return None
        return found or None

    def _matches(self, value: Any, heard: Sequence[str]) -> Iterator[_Match]:
        """Yield the places at which a value was said, more or less."""
        letters = "".join(_spelled(plain(word)) for word in str(value).split())
        length = len(str(value).split())
        for size in {max(length - 1, 1), length, length + 1}:
            for start in range(len(heard) - size + 1):
                said = "".join(heard[start : start + size])
                if abs(len(said) - len(letters)) > (1 - self._alike) * 2 * len(letters):
                    continue
                likeness = SequenceMatcher(None, letters, said, autojunk=False).ratio()
                if likeness >= self._alike:
                    same = likeness * (len(letters) + len(said)) / 2
                    worth = same - 2 * (len(letters) - same) - (len(said) - same)
                    yield _Match(value, start, start + size, worth)


def _spelled(word: str) -> str:
    return _NUMBERS[int(word)] if word.isdecimal() and int(word) < len(_NUMBERS) else word


def _newest(matches: Sequence[_Match]) -> _Match:
    """Return the newest match that does not overlap with a better one."""
    kept = [
        match
        for match in matches
        if not any(
            other.start < match.stop and match.start < other.stop and other.worth > match.worth
            for other in matches
        )
    ]
    return max(kept, key=lambda match: (match.stop, match.worth))


def _mark(kind: str, name: str, arguments: Mapping[str, Any]) -> str:
    written = json.dumps({"name": name, "arguments": dict(arguments)})
    return f"<tool_{kind}>{written}</tool_{kind}>"
