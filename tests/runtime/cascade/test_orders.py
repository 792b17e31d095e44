"""Orders whose words are heard exactly: every call is early, and no correction leaves a trace."""

import json
from dataclasses import replace

import pytest

from counterpoint.data.tasks.spoken_tools import (
    MadeCall,
    ToolOutcome,
    generated_requests,
    ruled_out_requests,
    score_requests,
)
from counterpoint.data.tasks.tool_world import Faults, OrderWorld, ToolWorld
from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.thinking import Answerer, FixedChunks
from tests.runtime.cascade.scripted import Stage, unasked

REQUESTS = generated_requests(1_000_000, 12)


def hear_in(world: ToolWorld, text: str, rules: CascadeRules) -> ToolOutcome:
    """Let a conversation hear a text exactly, and change a world."""
    stage = Stage()
    tools = world.tools()
    engines = replace(stage.engines(), think=SchemaCaller(tools), answer=Answerer(unasked))
    cascade = stage.cascade(engines, rules, tools)
    cascade.hear(stage.sound(f"{text} " + "- " * 9))
    timeline = cascade.timeline()
    made = tuple(
        MadeCall(name, arguments, event.end_s)
        for event in timeline.where(kind="call")
        if event.payload["ok"]
        for name, arguments in [json.loads(event.text)]
    )
    (turn,) = timeline.where(kind="turn")
    return ToolOutcome(made, world.in_force, turn.end_s)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("early", [True, False])
def test_orders_heard_exactly_are_all_right(early: bool, failures: int) -> None:
    assert any(one.stale for one in REQUESTS)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0), early_calls=early)
    faults = Faults(failures=failures, late_failure=True)
    outcomes = [hear_in(OrderWorld(faults), f"{one.text}.", rules) for one in REQUESTS]
    scores = score_requests(REQUESTS, outcomes)
    assert scores["success"] == scores["total"] == scores["slots"] == 1
    assert scores["stale"] == 0
    assert (scores["early"] > 0.569) == early  # the paper's share of early calls
    assert early or scores["early"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("early", [True, False])
def test_what_was_ruled_out_or_withdrawn_is_not_in_force(early: bool) -> None:
    requests = ruled_out_requests(1_000_000, 12)
    assert any(not one.calls for one in requests)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0), early_calls=early)
    outcomes = [hear_in(OrderWorld(), f"{one.text}.", rules) for one in requests]
    scores = score_requests(requests, outcomes)
    assert scores["success"] == 1
    assert scores["stale"] == 0
