"""Requests for tools: what is generated and read, the scores, and what policies score."""

import json
from pathlib import Path

import pytest

from counterpoint.data.tasks.spoken_tools import (
    MadeCall,
    ToolOutcome,
    dialogue_requests,
    dialogue_tools,
    generated_requests,
    recorded_requests,
    ruled_out_requests,
    score_requests,
    tool_policies,
)
from counterpoint.data.tasks.tool_world import ORDER, SLOTS, Faults, OrderWorld
from counterpoint.data.tools import argument_fault
from counterpoint.errors import UserError

REQUESTS = generated_requests(0, 200)


def test_generated_requests_are_functions_of_seed_and_number() -> None:
    assert generated_requests(0, 200) == REQUESTS
    assert generated_requests(1, 200) != REQUESTS
    corrected = sum(bool(one.stale) for one in REQUESTS)
    assert 70 < corrected < 130


def test_arguments_are_said_before_they_are_known_and_fit_the_tool() -> None:
    (tool,) = OrderWorld().tools()
    for request in REQUESTS:
        (call,) = request.calls
        assert argument_fault(tool.parameters, dict(call.arguments)) is None
        words = request.text.split()
        said = " ".join(words[: call.known_words])
        assert all(value in said for value in call.arguments.values())
        before = " ".join(words[: call.known_words - 1])
        assert not all(value in before for value in call.arguments.values())
        for _, stale in request.stale:
            assert stale["coffeeDrink"] != call.arguments["coffeeDrink"]
            assert stale["coffeeDrink"] in said


def test_floors_and_oracles() -> None:
    scores = {
        name: score_requests(REQUESTS, [policy(one) for one in REQUESTS])
        for name, policy in tool_policies(REQUESTS).items()
    }
    assert scores["oracle"]["success"] == scores["oracle"]["total"] == 1
    assert scores["oracle"]["early"] == 1
    assert scores["oracle"]["stale"] == 0
    assert scores["oracle after listening"]["early"] == 0
    assert scores["oracle after listening"]["success"] == 1
    assert scores["never"] == {"early": 0, "total": 0, "success": 0, "stale": 0, "slots": 0}
    assert scores["most common call"]["success"] < 0.1
    assert scores["what was said first"]["stale"] == 1
    assert 0.3 < scores["what was said first"]["success"] < 0.7


def test_score_counts_what_is_in_force_in_the_end() -> None:
    request = next(one for one in REQUESTS if one.stale)
    call, (_, stale) = request.calls[0], request.stale[0]
    made = (MadeCall(ORDER, stale, 1.0), MadeCall(ORDER, call.arguments, 2.0))
    both = ToolOutcome(made, ((ORDER, stale), (ORDER, call.arguments)), 3.0)
    assert score_requests([request], [both])["success"] == 0
    assert score_requests([request], [both])["stale"] == 1
    right = both._replace(in_force=((ORDER, call.arguments),))
    assert score_requests([request], [right]) == {
        "early": 1,
        "total": 1,
        "success": 1,
        "stale": 0,
        "slots": 1,
    }
    late = right._replace(stop_s=1.5)
    assert score_requests([request], [late])["early"] == 0
    twice = right._replace(in_force=((ORDER, call.arguments),) * 2)
    assert score_requests([request], [twice])["success"] == 0


def test_recorded_requests_are_read(tmp_path: Path) -> None:
    line = {"path": "a.opus", "intent": ORDER, "slots": {"coffeeDrink": " mocha"}}
    (tmp_path / "orders.jsonl").write_text(json.dumps(line) + "\n")
    (request,) = recorded_requests(tmp_path)
    assert request.calls[0].arguments == {"coffeeDrink": "mocha"}
    assert request.recording == tmp_path / "a.opus"
    (tmp_path / "orders.jsonl").write_text('{"path": "a.opus"}\n')
    with pytest.raises(UserError, match="must have `path`, `intent` and `slots`"):
        recorded_requests(tmp_path)
    with pytest.raises(UserError, match=r"must have orders.jsonl"):
        recorded_requests(tmp_path / "none")


def test_turns_with_all_arguments_of_a_call_are_requests(tmp_path: Path) -> None:
    parameters = {"city": "Oakland", "type": "Dentist"}
    call: dict[str, object] = {"method": "Find", "parameters": parameters}

    def turns(text: str) -> list[dict[str, object]]:
        answer: dict[str, object] = {"speaker": "system", "text": "", "frames": [{"call": call}]}
        user: dict[str, object] = {"speaker": "user", "text": text, "frames": [{"call": None}]}
        return [user, answer]

    texts = ("Find a dentist in Oakland for me.", "Yes please.")
    lines = [json.dumps({"id": str(n), "turns": turns(text)}) for n, text in enumerate(texts)]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    (request,) = dialogue_requests(tmp_path / "dev.jsonl")
    assert request.calls[0].known_words == 5
    (tool,) = dialogue_tools([request])
    assert tool.effect == "none"
    assert argument_fault(tool.parameters, parameters) is None
    with pytest.raises(UserError, match="must be an existing file"):
        dialogue_requests(tmp_path / "none.jsonl")


def test_counter_takes_an_order_once_and_back_for_good() -> None:
    world = OrderWorld(Faults(failures=1, late_failure=True))
    slots = {"coffeeDrink": SLOTS["coffeeDrink"][0]}
    with pytest.raises(ConnectionError):
        world.order("a", **slots)
    world.order("a", **slots)
    assert list(world.in_force) == [(ORDER, slots)]
    world.take_back("a")
    world.order("a", **slots)
    assert not list(world.in_force)
    (tool,) = world.tools()
    assert tool.say is not None
    said = {"ordered": {"coffeeDrink": "mocha", "size": "small", "milkAmount": "some cream"}}
    assert tool.say(said) == "One small mocha with some cream."


def test_orders_that_rule_something_out_or_are_withdrawn_have_their_floors() -> None:
    requests = ruled_out_requests(0, 200)
    assert requests == ruled_out_requests(0, 200)
    assert 60 < sum(not one.calls for one in requests) < 140
    for request in requests:
        for _, stale in request.stale:
            assert stale["coffeeDrink"] in request.text
            assert all(call.arguments != stale for call in request.calls)
    policies = tool_policies(requests)
    scores = {
        name: score_requests(requests, [policy(one) for one in requests])
        for name, policy in policies.items()
    }
    assert scores["oracle"]["success"] == scores["oracle"]["total"] == 1
    assert scores["oracle"]["stale"] == 0
    assert scores["what was said first"]["stale"] == 1
    assert scores["what was said first"]["success"] == 0
    assert scores["never"]["success"] < 0.7
