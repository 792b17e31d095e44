"""Turns of the Berkeley Function-Calling Leaderboard, and the APIs that its package mocks.

The package `bfcl-eval` (Apache-2.0) holds conversations about a file system, tickets, messages,
posts, shares, journeys and a car, the right calls of every turn, and the APIs as plain Python
objects with a state. A request is one turn of the user; the right calls of the turns before it were
made. The judge is the first half of the leaderboard's own: what the objects hold in the end,
compared with what they hold after the right calls; what calls return, which it compares too, is
left out. A mocked API runs all calls that are in force anew from the start, so any call can be
taken back. A call that was refused because of an earlier one is not made again when that is.

Nothing of the package is here; of its modules only the APIs and their tables are imported, which
need nothing else.
"""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from counterpoint.data.tasks.spoken_tools import ToolRequest, wanted_call
from counterpoint.data.tasks.tool_world import Faults, PlainCall, ToolWorld
from counterpoint.data.tools import Tool
from counterpoint.files import read_json_lines
from counterpoint.packages import optional_module

_CONVERSATIONS = "BFCL_v4_multi_turn_base.json"
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # as Python and as JSON name them

Api = Any
"""An object with a state, whose public methods are calls."""


class RefusedError(Exception):
    """An API answered a call with an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiStart:
    """What the APIs are like before a turn.

    Attributes:
        apis: Names of the classes.
        config: What each is loaded with.
        before: The right calls of the turns before.
        excluded: Names of calls that the conversation may not use.
    """

    apis: tuple[str, ...]
    config: Mapping[str, Any]
    before: tuple[PlainCall, ...]
    excluded: frozenset[str]


def api_requests() -> list[ToolRequest]:
    """Return the turns that say every argument of every right call, and change a state.

    Raises:
        MissingPackageError: The package is not installed.
    """
    tables = _tables()
    data = Path(import_module("bfcl_eval").__file__ or "").parent / "data"
    answers = {
        record["id"]: record["ground_truth"]
        for _, record in read_json_lines(data / "possible_answer" / _CONVERSATIONS)
    }
    found = []
    for _, record in read_json_lines(data / _CONVERSATIONS):
        apis = tuple(record["involved_classes"])
        names = {
            one["name"]: [*one["parameters"]["properties"]] for one in _documents(tables, apis)
        }
        before: tuple[PlainCall, ...] = ()
        turns = zip(record["question"], answers[record["id"]], strict=True)
        for number, (messages, written) in enumerate(turns):
            calls = [_read_call(one, names) for one in written]
            start = ApiStart(
                apis=apis,
                config=record["initial_config"],
                before=before,
                excluded=frozenset(record.get("excluded_function", ())),
            )
            before += tuple(calls)
            text = " ".join(messages[0]["content"].split()) if messages else ""
            wanted = [one for call in calls if (one := wanted_call(text, call))]
            if wanted and len(wanted) == len(calls) and not _are_equal(start, calls, ()):
                name = f"{record['id']} {number}"
                found.append(ToolRequest(name=name, text=text, calls=tuple(wanted), start=start))
    return found


def is_state_right(request: ToolRequest, in_force: Sequence[PlainCall]) -> bool:
    """Return whether calls leave the APIs as the right ones do; see `WorldJudge`."""
    right = [(call.name, call.arguments) for call in request.calls]
    return _are_equal(request.start, right, in_force)


class ApiWorld(ToolWorld):
    """The mocked APIs of a turn.

    Args:
        start: What they are like before it.
        values: Values that arguments of tools can have, as `said_values` gives them; an argument
            that is not there can be anything.
        faults: How they misbehave.
    """

    def __init__(
        self,
        start: ApiStart,
        values: Mapping[str, Mapping[str, Sequence[Any]]],
        faults: Faults | None = None,
    ) -> None:
        super().__init__(faults)
        self._start = start
        self._values = values

    def tools(self) -> tuple[Tool, ...]:
        """Return the calls of the APIs, with the package's descriptions."""
        return tuple(
            Tool(
                name=one["name"],
                description=one["description"],
                parameters=_schema(one["parameters"], self._values.get(one["name"], {})),
                function=partial(self._call, one["name"]),
                effect="undoable",
                undo=self.take_back,
            )
            for one in _documents(_tables(), self._start.apis)
            if one["name"] not in self._start.excluded
        )

    def _call(self, name: str, /, *, key: str, **arguments: Any) -> Any:
        """Make a call and return its result; a call that an API refuses is not in force."""
        self._make(key, (name, arguments))
        with self._lock:
            keys = [*self._calls]
            made = [*self._calls.values()][: keys.index(key) + 1] if key in keys else []
            if not made:
                return None  # it was taken back meanwhile
            apis = _loaded(self._start)
            for call in made[:-1]:
                _run(apis, call)
            result = _run(apis, made[-1])
            if isinstance(result, Exception):
                del self._calls[key]
                raise result
        return result


def state_after(start: ApiStart, calls: Sequence[PlainCall]) -> dict[str, dict[str, Any]]:
    """Return what every API holds after calls: its public attributes, as the leaderboard does."""
    apis = _loaded(start)
    for call in calls:
        _run(apis, call)
    return {
        type(api).__name__: {
            name: value for name, value in vars(api).items() if not name.startswith("_")
        }
        for api in apis
    }


def _are_equal(start: ApiStart, one: Sequence[PlainCall], other: Sequence[PlainCall]) -> bool:
    return state_after(start, one) == state_after(start, other)


def _tables() -> Any:
    return optional_module("bfcl_eval.constants.executable_backend_config")


def _documents(tables: Any, apis: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the descriptions of the calls of some APIs."""
    folder = Path(tables.__file__).parents[1] / "data" / "multi_turn_func_doc"
    for api in apis:
        for _, record in read_json_lines(folder / tables.MULTI_TURN_FUNC_DOC_FILE_MAPPING[api]):
            yield record


def _loaded(start: ApiStart) -> list[Api]:
    """Return fresh APIs, in which the calls before a turn were made."""
    tables = _tables()
    apis = []
    for name in start.apis:
        api = getattr(import_module(tables.CLASS_FILE_PATH_MAPPING[name]), name)()
        if name not in tables.STATELESS_CLASSES:
            api._load_scenario(deepcopy(start.config.get(name, {})), long_context=False)
        apis.append(api)
    for call in start.before:
        _run(apis, call)
    return apis


def _run(apis: Sequence[Api], call: PlainCall) -> Any:
    """Make a call; return its result, or the error that came in its place."""
    name, arguments = call
    api = next((one for one in apis if hasattr(one, name)), None)
    if api is None:
        return RefusedError(f"There is no call {name!r} here.")
    try:
        result = getattr(api, name)(**deepcopy(dict(arguments)))
    except Exception as error:  # the package's own runner goes on, too
        return error
    if isinstance(result, dict) and "error" in result:
        return RefusedError(str(result["error"]))
    return result


def _read_call(written: str, names: Mapping[str, Sequence[str]]) -> PlainCall:
    """Return a call that is written as Python."""
    tree = ast.parse(written, mode="eval").body
    assert isinstance(tree, ast.Call), written
    assert isinstance(tree.func, ast.Name), written
    placed = zip(names[tree.func.id], tree.args, strict=False)
    named = [(one.arg or "", one.value) for one in tree.keywords]
    return tree.func.id, {name: ast.literal_eval(value) for name, value in (*placed, *named)}


def _schema(described: Mapping[str, Any], values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return parameters as JSON schema, with the values that arguments can have."""
    schema: dict[str, Any] = json.loads(json.dumps(described), object_hook=_json_types)
    for name, own in values.items():
        schema["properties"][name]["enum"] = list(own)
    return schema


def _json_types(node: dict[str, Any]) -> dict[str, Any]:
    kind = node.get("type")
    return {**node, "type": _TYPES.get(kind, kind)} if isinstance(kind, str) else node
