"""Turns of the function-calling leaderboard; what its package holds is judged by its own APIs."""

import sys

import pytest

from counterpoint.data.tasks.mock_apis import (
    ApiStart,
    ApiWorld,
    api_requests,
    is_state_right,
    state_after,
)
from counterpoint.data.tasks.spoken_tools import said_values, score_requests, tool_policies
from counterpoint.data.tasks.tool_world import Faults, PlainCall
from counterpoint.data.tools import Tool, argument_fault
from counterpoint.packages import MissingPackageError
from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.thinking import FixedChunks
from tests.runtime.cascade.test_orders import hear_in

FILES = ApiStart(
    apis=("GorillaFileSystem",),
    config={
        "GorillaFileSystem": {
            "root": {
                "work": {
                    "type": "directory",
                    "contents": {"a.txt": {"type": "file", "content": "one"}},
                }
            }
        }
    },
    before=(),
    excluded=frozenset({"rm"}),
)


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bfcl_eval", "bfcl_eval.constants.executable_backend_config"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingPackageError, match="`bfcl-eval`: pip install --no-deps 'bfcl-eval>=[0-9.]+'.$"
    ):
        api_requests()


def by_name(world: ApiWorld) -> dict[str, Tool]:
    return {tool.name: tool for tool in world.tools()}


def test_calls_change_the_apis_once_and_are_taken_back() -> None:
    pytest.importorskip("bfcl_eval")
    world = ApiWorld(FILES, {"mkdir": {"dir_name": ["b"]}}, Faults(failures=1, late_failure=True))
    tools = by_name(world)
    assert "rm" not in tools
    assert tools["mkdir"].parameters["properties"]["dir_name"]["enum"] == ["b"]
    assert tools["mkdir"].parameters["type"] == "object"
    move = {"source": "a.txt", "destination": "b"}
    for _ in range(2):  # the first one fails after its effect
        try:
            tools["mkdir"].function(key="1", dir_name="b")
        except ConnectionError:
            continue
    made: tuple[PlainCall, ...] = (("mkdir", {"dir_name": "b"}),)
    assert world.in_force == made
    with pytest.raises(ConnectionError):
        tools["mv"].function(key="2", **move)
    tools["mv"].function(key="2", **move)
    both = (*made, ("mv", move))
    assert world.in_force == both
    assert state_after(FILES, both) != state_after(FILES, made)
    world.take_back("2")
    assert state_after(FILES, world.in_force) == state_after(FILES, made)
    tools["mv"].function(key="2", **move)
    assert world.in_force == made


def test_refused_call_is_not_in_force() -> None:
    pytest.importorskip("bfcl_eval")
    world = ApiWorld(FILES, {})
    with pytest.raises(Exception, match="nowhere"):
        by_name(world)["cd"].function(key="1", folder="nowhere")
    assert world.in_force == ()


def test_requests_say_their_arguments_and_change_a_state() -> None:
    pytest.importorskip("bfcl_eval")
    requests = api_requests()
    assert len(requests) > 50
    values = said_values(requests)
    for request in requests:
        parameters = {
            tool.name: tool.parameters for tool in ApiWorld(request.start, values).tools()
        }
        for call in request.calls:
            assert argument_fault(parameters[call.name], dict(call.arguments)) is None
            said = " ".join(request.text.split()[: call.known_words]).lower()
            assert all(str(value).lower() in said for value in call.arguments.values())
    scores = {
        name: score_requests(requests, [policy(one) for one in requests], is_state_right)
        for name, policy in tool_policies(requests).items()
    }
    assert scores["oracle"]["success"] == scores["oracle after listening"]["success"] == 1
    assert 0 < scores["oracle"]["early"] < 1
    assert scores["oracle after listening"]["early"] == 0
    assert scores["never"]["success"] == 0
    assert scores["most common call"]["success"] < 0.1


def test_exact_words_lead_to_the_right_state() -> None:
    pytest.importorskip("bfcl_eval")
    requests = [one for one in api_requests() if [call.name for call in one.calls] == ["touch"]]
    assert requests
    values = said_values(requests)
    for early in (True, False):
        rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0), early_calls=early)
        outcomes = [hear_in(ApiWorld(one.start, values), one.text, rules) for one in requests]
        scores = score_requests(requests, outcomes, is_state_right)
        assert scores["success"] == 1
        assert (scores["early"] > 0) == early
