"""Listening again: what was called too soon is corrected, what was right is called once."""

import json
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.data.tasks.tool_world import ORDER, Faults, OrderWorld
from counterpoint.errors import UserError
from counterpoint.evaluate.report.thinking_page import event_text
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.checked import CheckedThinker
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder, made_calls
from counterpoint.runtime.clocks import SimulatedClock
from counterpoint.streams.rounds import CANCEL, Marks
from tests.runtime.test_clocked import Program, SlowTools, response

CONFIG = ClockConfig(chunk_s=4.0, tokens_per_s=2.0, last_tokens=20)
LATTE, MOCHA = {"coffeeDrink": "latte"}, {"coffeeDrink": "mocha"}
MOST_ATTEMPTS = 3  # of a call


def calling(drink: dict[str, str]) -> list[str]:
    return ["<tool_call>", json.dumps({"name": ORDER, "arguments": drink}), "</tool_call>"]


class Conversation:
    """Two chunks: thoughts about the first, one about the last, and the one of who listens again.

    Attributes:
        world: What is ordered.
        calls: The calls.
        timeline: What happened.
        first: The session that listens.
        again: The session that listens again.
    """

    def __init__(
        self, first: list[str], again: list[str], *, config: ClockConfig = CONFIG, failures: int = 0
    ) -> None:
        self.world = OrderWorld(Faults(failures=failures))
        self.first = Program([*first, "</think>"], ["never written"])
        self.again = Program([*again, "</think>", "yes", "[STOP]"])
        thinker = CheckedThinker(self.first, self.again, Marks())
        clock = SimulatedClock(config.tokens_per_s)
        self.calls = Calls(self.world.tools(), lambda: TimedLane(clock.now))
        decoder = ClockedDecoder(thinker, config, clock, ClockedCalls(self.calls, clock))
        decoder.hear(" a latte", 0.0, 4.0)
        decoder.hear(" a latte please", 4.0, 8.0, last=True)
        self.timeline = decoder.timeline

    @property
    def in_force(self) -> list[dict[str, str]]:
        return [dict(arguments) for _, arguments in self.world.in_force]

    def of(self, kind: str) -> list[Any]:
        return list(self.timeline.where(kind=kind))


def test_the_second_session_hears_all_words_at_once_and_answers() -> None:
    heard = Conversation(["a"], ["b"])
    assert heard.first.context == [
        "heard  a latte",
        "[EOPA]",
        "a",
        "</think>",
        "heard  a latte please",
    ]
    assert heard.again.context == [
        "heard  a latte please", "[EOA]", "b", "</think>", "yes", "[STOP]",
    ]  # fmt: skip
    assert [one.text for one in heard.of("thought")] == ["a", "b"]
    assert [one.text for one in heard.of("answer")] == ["yes"]


def test_the_newest_telling_that_is_not_empty_is_heard_again() -> None:
    first, again = Program(["</think>"], ["</think>"], [""]), Program(["</think>", "[STOP]"])
    thinker = CheckedThinker(first, again, Marks())
    decoder = ClockedDecoder(thinker, CONFIG)
    for place, told in enumerate((" a lat", " a latte", "")):
        decoder.hear(told, 4.0 * place, 4.0 * place + 4, last=place == 2)
    assert again.context[0] == "heard  a latte"


def test_the_same_call_is_made_once_and_stays_early() -> None:
    body = json.dumps({"arguments": LATTE, "name": ORDER})  # the same call in other words
    again = ["note", "<tool_call>", body, "</tool_call>", "ordered"]
    heard = Conversation(calling(LATTE), again)
    assert heard.in_force == [LATTE]
    (made,) = [one for one in heard.calls.events if one.kind == "call"]
    assert made.payload["attempt"] == 1
    assert made.end_s < 8.0
    assert not heard.of("cancel")
    assert [one.payload["ok"] for one in heard.of("call")] == [True, True]
    assert [one.payload.get("repeated", False) for one in heard.of("call")] == [False, True]
    assert [one.payload["call"] for one in made_calls(heard.timeline)] == [0]
    assert "as before" in event_text(heard.of("call")[1])
    ordered = f"<tool_response>{json.dumps({'ordered': LATTE})}</tool_response>"
    assert heard.again.context == [
        "".join(calling(LATTE)), "heard  a latte please", "[EOA]", "note", "<tool_call>", body,
        "</tool_call>", ordered, "ordered", "</think>", "yes", "[STOP]",
    ]  # fmt: skip


def test_tokens_of_the_check_take_their_time() -> None:
    """A note, three tokens of a call, the call as one, "ordered" and the close: seven tokens."""
    heard = Conversation(calling(LATTE), ["note", *calling(LATTE), "ordered"])
    last = heard.of("thought")[-1]
    assert last.payload["tokens"] == 7
    assert (last.start_s, last.end_s) == (8.0, 8.0 + 7 / 2)
    assert last.text == "note" + "".join(calling(LATTE)) + "ordered"


def test_another_call_takes_back_what_stands_first() -> None:
    heard = Conversation(calling(LATTE), [*calling(MOCHA), "ordered"])
    assert heard.in_force == [MOCHA]
    (cancel,) = heard.of("cancel")
    assert "why" not in cancel.payload
    assert heard.of("thought")[-1].text.startswith(CANCEL + "<tool_call>")
    assert CANCEL not in heard.again.context


def test_only_what_stands_is_taken_back() -> None:
    first = [*calling(LATTE), CANCEL, *calling(MOCHA)]
    config = ClockConfig(chunk_s=4.0, tokens_per_s=4.0, last_tokens=20)
    heard = Conversation(first, [*calling(MOCHA), "ordered"], config=config)
    assert heard.in_force == [MOCHA]
    assert len(heard.of("cancel")) == 1  # its own


def test_the_newest_call_is_the_one_that_the_first_session_took_back() -> None:
    config = ClockConfig(chunk_s=4.0, tokens_per_s=4.0, last_tokens=20)
    first = [*calling(LATTE), *calling(MOCHA), CANCEL]
    heard = Conversation(first, [*calling(LATTE), "ordered"], config=config)
    assert heard.again.context[0] == "".join(calling(LATTE))
    assert heard.in_force == [LATTE]
    assert len(heard.of("cancel")) == 1


def test_all_that_stands_is_taken_back_for_another_call() -> None:
    config = ClockConfig(chunk_s=4.0, tokens_per_s=4.0, last_tokens=20)
    first = [*calling(LATTE), *calling(MOCHA)]
    heard = Conversation(first, [*calling(MOCHA), "ordered"], config=config)
    assert heard.in_force == [MOCHA]
    assert len(heard.of("cancel")) == 2


def test_who_understands_no_order_takes_back_what_stands() -> None:
    heard = Conversation(calling(LATTE), ["note"])
    assert heard.in_force == []
    assert heard.again.context[3:] == ["note", "</think>", "yes", "[STOP]"]
    assert [one.text for one in heard.of("answer")] == ["yes"]


def test_several_calls_of_the_second_session_all_stand() -> None:
    heard = Conversation(calling(LATTE), [*calling(LATTE), *calling(MOCHA)])
    assert heard.in_force == [LATTE, MOCHA]
    assert not heard.of("cancel")


def test_a_call_that_failed_is_tried_anew_when_it_is_written_again() -> None:
    heard = Conversation(calling(LATTE), [*calling(LATTE), "ordered"], failures=MOST_ATTEMPTS)
    assert heard.in_force == [LATTE]
    assert [one.payload["ok"] for one in heard.of("call")] == [False, True]
    assert len(made_calls(heard.timeline)) == 2


@pytest.mark.parametrize("drink", ["latte", "mocha"])
def test_a_late_response_is_read_once_by_the_call_that_waits_for_it(drink: str) -> None:
    """The tool needs five seconds: its response is awaited when the speech is over."""
    call = [*calling(LATTE), "</think>"]
    own = [*calling({"coffeeDrink": drink}), "seen", "</think>", "[STOP]"]
    first, again = Program(call, [""]), Program(own)
    tools = SlowTools(5.0, 4.0)
    config = ClockConfig(chunk_s=2.0, tokens_per_s=4.0, last_tokens=20)
    decoder = ClockedDecoder(CheckedThinker(first, again, Marks()), config, tools=tools)
    decoder.hear("one", 0.0, 2.0, deadline_s=4.0)
    decoder.hear("two", 2.0, 4.0, last=True)
    read = [one for one in again.context if one.startswith("<tool_response>")]
    assert read == [response(own[1])]
    assert again.context[-3:] == ["seen", "</think>", "[STOP]"]
    assert len(tools.cancelled) == (drink == "mocha")
    assert [one.kind for one in decoder.timeline][-1] == "answer"


def test_a_response_to_what_could_not_be_taken_back_is_not_thought_about() -> None:
    class Lasting(SlowTools):
        def cancel(self, call: int, now_s: float) -> str:
            return "it cannot be undone"

    first, again = Program([*calling(LATTE), "</think>"], [""]), Program(["</think>", "[STOP]"])
    config = ClockConfig(chunk_s=2.0, tokens_per_s=4.0)
    decoder = ClockedDecoder(CheckedThinker(first, again, Marks()), config, tools=Lasting(5.0))
    decoder.hear("one", 0.0, 2.0, deadline_s=4.0)
    decoder.hear("two", 2.0, 4.0, last=True)
    assert again.context[2:] == ["[EOA]", "</think>", "[STOP]"]
    assert [one.payload["ok"] for one in decoder.timeline.where(kind="call")] == [True]


def test_a_response_that_comes_with_its_equal_is_thought_about() -> None:
    """It comes after the patience, and before the last thought has ended; both calls get it."""
    clock = SimulatedClock(4.0)
    (tool,) = OrderWorld().tools()
    watch = [0.0]

    def slow(**arguments: Any) -> Any:
        watch[0] += 4.4
        return tool.function(**arguments)

    calls = Calls([replace(tool, function=slow, limit_s=60.0)], lambda: TimedLane(lambda: watch[0]))
    tools = ClockedCalls(calls, clock)
    first = Program([*calling(LATTE), "</think>"], [""])
    again = Program([*calling(LATTE), "</think>", "ordered", "</think>", "yes", "[STOP]"])
    config = ClockConfig(chunk_s=2.0, tokens_per_s=4.0, last_tokens=40, patience_s=3.0)
    decoder = ClockedDecoder(CheckedThinker(first, again, Marks()), config, clock, tools)
    decoder.hear("one", 0.0, 2.0, deadline_s=4.0)
    decoder.hear("two", 2.0, 4.0, last=True)
    assert [one.text for one in decoder.timeline.where(kind="answer")] == ["yes"]
    assert again.context[-4:] == ["ordered", "</think>", "yes", "[STOP]"]


def test_a_thought_that_is_closed_within_a_call_is_over_and_the_call_refused() -> None:
    heard = Conversation(calling(LATTE), ["<tool_call>", "{"])
    assert heard.of("thought")[-1].payload["closed"] == "model"
    assert [one.text for one in heard.of("answer")] == ["yes"]
    why = [one.payload["why"] for one in heard.of("call") if not one.payload["ok"]]
    assert why == ["the thought was closed before the call was complete"]
    assert heard.in_force == [LATTE]
    assert not heard.of("cancel")


def test_for_what_is_no_call_nothing_is_taken_back() -> None:
    heard = Conversation(calling(LATTE), ["<tool_call>", "{", "</tool_call>"])
    assert heard.in_force == [LATTE]
    assert not heard.of("cancel")
    assert [one.payload["ok"] for one in heard.of("call")] == [True, False]


def test_the_mark_of_the_end_counts_only_after_a_chunk() -> None:
    first = Program(["[EOA]", "</think>"], ["</think>"])
    again = Program(["</think>", "yes", "[STOP]"])
    decoder = ClockedDecoder(CheckedThinker(first, again, Marks()), CONFIG)
    decoder.hear(" a", 0.0, 4.0)
    assert again.context == []
    decoder.hear(" a latte", 4.0, 8.0, last=True)
    assert again.context[:2] == ["heard  a latte", "[EOA]"]


def test_a_mark_within_a_call_takes_nothing_back() -> None:
    config = ClockConfig(chunk_s=4.0, tokens_per_s=4.0, last_tokens=20)
    first = [*calling(LATTE), "<tool_call>", CANCEL]
    heard = Conversation(first, [*calling(MOCHA), "ordered"], config=config)
    assert heard.in_force == [MOCHA]


def test_an_interruption_is_answered_by_who_listens() -> None:
    first = Program(["no", "[INTERRUPT]", "wrong", "[STOP]"])
    again = Program()
    decoder = ClockedDecoder(CheckedThinker(first, again, Marks()), CONFIG)
    assert not decoder.hear("one", 0.0, 4.0)
    assert [one.text for one in decoder.timeline.where(kind="answer")] == ["wrong"]
    assert again.context == []


def test_a_call_without_an_end_does_not_end_the_answer() -> None:
    heard = Conversation([], ["<tool_call>", *["a"] * 40])
    assert heard.of("thought")[-1].payload == {
        "chunk": 1, "tokens": 20, "closed": "budget", "chances": [None] * 20,
    }  # fmt: skip
    assert heard.again.context[1:23] == ["[EOA]", "<tool_call>", *["a"] * 19, "</think>"]
    (answer,) = heard.of("answer")
    assert answer.text.startswith("a")


def test_a_thought_after_the_speech_has_a_budget_of_its_own() -> None:
    with pytest.raises(UserError, match="`last_tokens` must be positive"):
        ClockConfig(last_tokens=0)
    for last_tokens, number in ((None, 4), (6, 6)):
        config = ClockConfig(chunk_s=2.0, tokens_per_s=2.0, last_tokens=last_tokens)
        decoder = ClockedDecoder(Program(["a"] * 9, ["a"] * 9), config)
        decoder.hear("one", 0, 2, deadline_s=100.0)
        decoder.hear("two", 2, 4, last=True)
        thoughts = decoder.timeline.where(kind="thought")
        assert [one.payload["tokens"] for one in thoughts] == [4, number]
