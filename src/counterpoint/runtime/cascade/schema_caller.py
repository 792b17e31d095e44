"""A thinker without a language model: it finds the arguments of tools in what was said.

Every parameter of a tool whose schema lists its values (`enum`) is looked for in the words: the
newest value counts, so a speaker who says "large, no, small" means small. A value that is ruled
out ("not a mocha", "without milk") does not count, nor does what was said before "cancel that" and
the like. A tool is called as soon as its required parameters were found, and again, after the first
call was taken back, when they change. Misheard words are found by their letters.

Source: none; a baseline of ours that needs no training, to be compared with language models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from counterpoint.data.tools import Tool, canonical
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.speech.partials import ScoredWord

_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip
"""Recognisers write numbers as figures, and tools mostly have words."""

_RULES_OUT = ("not", "without", "never", "never mind", "dont", "instead of", "rather than")
"""What makes the value after it one that is not wanted; "no" does so directly before it."""
_BETWEEN = ("a", "an", "the", "any", "want", "like", "need", "have", "with")
"""Words that may stand between."""
_WITHDRAWS = (
    "cancel that", "cancel it", "cancel my order", "never mind", "nevermind", "forget it",
    "forget that", "scratch that",
)  # fmt: skip
"""What takes back all that was said before it in a turn, if no value is said after it."""

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
        heard = [word for word in map(_heard, scene.words[-_MOST_WORDS:]) if word]
        after = _after_withdrawal(heard)
        for tool in self._tools:
            is_withdrawn = after is not None and not self._found(tool.parameters, after)
            arguments = None if is_withdrawn else self.arguments(tool.parameters, heard)
            made = [call for call in scene.calls if call.tool.name == tool.name and call.is_wanted]
            wanted = None if arguments is None else canonical(tool.name, arguments)
            for call in made:
                is_other = canonical(tool.name, call.arguments) != wanted
                if is_other and (wanted is not None or is_withdrawn):
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
        found = {
            name: max(matches, key=lambda match: (match.stop, match.worth)).value
            for name, matches in self._found(parameters, list(heard)).items()
        }
        if any(name not in found for name in parameters.get("required", ())):
            return None
        return found or None

    def _found(
        self, parameters: Mapping[str, Any], heard: Sequence[str]
    ) -> dict[str, list[_Match]]:
        """Return the places of the values of each parameter that are wanted."""
        matches = [
            (name, match)
            for name, schema in parameters.get("properties", {}).items()
            for value in schema.get("enum", ())
            for match in self._matches(value, heard)
        ]
        best: list[tuple[str, _Match]] = []
        # From the best on, for what is itself rather another value stands in the way of none.
        for one in sorted(matches, key=lambda match: -match[1].worth):
            if not any(_is_better(other, one[1]) for _, other in best):
                best.append(one)
        covered = {place for _, match in best for place in range(match.start, match.stop)}
        found = {
            name: _wanted([match for of, match in best if of == name], heard, covered)
            for name in parameters.get("properties", {})
        }
        return {name: own for name, own in found.items() if own}

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


def _wanted(matches: Sequence[_Match], heard: Sequence[str], covered: Set[int]) -> list[_Match]:
    """Return the places of values that come after the last one at which the value is ruled out."""
    out: dict[Any, int] = {}
    for match in matches:
        if _is_ruled_out(match, heard, covered, matches):
            out[match.value] = max(match.stop, out.get(match.value, 0))
    return [match for match in matches if match.start >= out.get(match.value, 0)]


def _is_ruled_out(
    match: _Match, heard: Sequence[str], covered: Set[int], matches: Sequence[_Match]
) -> bool:
    """Return whether the words before a value, or before values that it follows, rule it out.

    "A latte actually no espresso" is a correction: another value of the parameter came before, and
    not this one. A recogniser often misses the pause after that "no", and the article.
    """
    start = match.start
    while start + 1 < match.stop and heard[start] in _BETWEEN:
        start += 1
    while start and start - 1 in covered and heard[start - 1] not in _BETWEEN:
        start -= 1
    before = list(heard[:start])
    if before and before[-1] == "no":
        earlier = {other.value for other in matches if other.stop <= start}
        corrects = bool(earlier) and match.value not in earlier
        return not (corrects and before[-2:-1] == ["actually"])
    while before and before[-1] in _BETWEEN:
        before.pop()
    said = " " + " ".join(before)
    return any(said.endswith(f" {words}") for words in _RULES_OUT)


def _after_withdrawal(heard: Sequence[str]) -> list[str] | None:
    """Return the words after the last ones that take back what was said; ``None`` without any."""
    for start in range(len(heard) - 1, -1, -1):
        for words in map(str.split, _WITHDRAWS):
            is_meant = not start or heard[start - 1] not in ("not", "dont", "never")
            if is_meant and list(heard[start : start + len(words)]) == words:
                return list(heard[start + len(words) :])
    return None


def _heard(word: ScoredWord) -> str:
    """Return a word as values are spelled; a "no" before a mark rules nothing out."""
    spelled = _spelled(plain(word.text))
    return "no," if spelled == "no" and not word.text[-1].isalpha() else spelled


def _spelled(word: str) -> str:
    return _NUMBERS[int(word)] if word.isdecimal() and int(word) < len(_NUMBERS) else word


def _is_better(other: _Match, match: _Match) -> bool:
    """Return whether some words are rather another value: "medium" in "medium roast"."""
    overlaps = other.start < match.stop and match.start < other.stop
    return overlaps and other.worth > match.worth


def _mark(kind: str, name: str, arguments: Mapping[str, Any]) -> str:
    written = json.dumps({"name": name, "arguments": dict(arguments)})
    return f"<tool_{kind}>{written}</tool_{kind}>"
