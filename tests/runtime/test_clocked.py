"""The clock of thinking: budget, forced close, pre-emption, interruptions, tools, events."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from counterpoint.errors import UserError
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder, Part, Proposal
from counterpoint.runtime.clocks import Response, SimulatedClock
from counterpoint.streams.rounds import CANCEL
from counterpoint.streams.timeline import Timeline


class Program:
    """Thinks what it was told to, chunk by chunk, and keeps what it read."""

    def __init__(self, *thoughts: list[str], chance: float | None = None) -> None:
        self.thoughts = list(thoughts)
        self.chance = chance
        self.context: list[str] = []
        self.ahead: list[str] = []

    def hear(self, content: Any) -> None:
        self.context.append(f"heard {content}")
        self.ahead = list(self.thoughts.pop(0))

    def read(self, text: str) -> None:
        self.context.append(text)
        if self.ahead and text == self.ahead[0]:
            self.ahead.pop(0)

    def propose(self) -> Proposal:
        return Proposal(self.ahead[0] if self.ahead else "[STOP]", self.chance, "</think>")


class SlowTools:
    """Answers each call so many seconds later."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.due: list[tuple[float, Response]] = []
        self.cancelled: list[tuple[int, float]] = []

    def start(self, call: int, text: str, now_s: float) -> None:
        self.due.append((now_s + self.seconds.pop(0), Response(call, f"done {text}")))

    def cancel(self, call: int, now_s: float) -> str:
        self.cancelled.append((call, now_s))
        self.due = [one for one in self.due if one[1].call != call]
        return ""

    def end_speech(self, now_s: float) -> None:
        pass

    def wait(self, until_s: float) -> float:
        return min([until_s, *(due for due, _ in self.due)])

    def arrived(self, now_s: float) -> Sequence[Response]:
        here = [response for due, response in self.due if due <= now_s]
        self.due = [one for one in self.due if one[0] > now_s]
        return here


NAN = float("nan")
INFINITE = float("inf")
CONFIG = ClockConfig(chunk_s=2.0, tokens_per_s=2.0)  # four tokens a chunk
LONGER = ClockConfig(chunk_s=4.0, tokens_per_s=2.0)  # eight tokens a chunk
TOO_LATE = "no response came before the answer"


def calling(text: str) -> list[str]:
    return ["<tool_call>", text, "</tool_call>"]


def response(text: str) -> str:
    """Return what is read when `SlowTools` answer a call."""
    return f"<tool_response>done {text}</tool_response>"


def kinds(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(event.kind, event.start_s, event.end_s) for event in timeline]


def closed(timeline: Timeline) -> list[str]:
    return [event.payload["closed"] for event in timeline.where(kind="thought")]


def test_thoughts_lag_one_chunk_and_the_answer_follows_the_last() -> None:
    program = Program(["a", "</think>"], ["b", "</think>", "yes", "[STOP]"])
    decoder = ClockedDecoder(program, CONFIG)
    assert decoder.hear("one", 0, 2, text="one")
    assert not decoder.hear("two", 2, 3, last=True)
    assert program.context == [
        "heard one", "[EOPA]", "a", "</think>", "heard two", "[EOA]", "b", "</think>", "yes",
        "[STOP]",
    ]  # fmt: skip
    assert kinds(decoder.timeline) == [
        ("chunk", 0, 2),
        ("thought", 2, 3),
        ("chunk", 2, 3),
        ("thought", 3, 4),
        ("answer", 4, 5),
    ]
    assert [event.text for event in decoder.timeline] == ["one", "a", "", "b", "yes"]
    with pytest.raises(UserError, match="no more chunks"):
        decoder.hear("three", 3, 4)


def test_a_thought_is_closed_by_force_when_the_budget_is_used_up() -> None:
    program = Program(["a"] * 9, ["</think>"])
    decoder = ClockedDecoder(program, CONFIG)
    decoder.hear("one", 0, 2)
    decoder.hear("two", 2, 4, last=True)
    assert program.context[:7] == ["heard one", "[EOPA]", *["a"] * 4, "</think>"]
    assert closed(decoder.timeline) == ["budget", "model"]


def test_the_next_chunk_pre_empts_a_thought() -> None:
    """A shorter chunk follows: the thought about the first has time for two tokens only."""
    program = Program(["a"] * 9, ["</think>"])
    decoder = ClockedDecoder(program, CONFIG)
    decoder.hear("one", 0, 2, deadline_s=3.0)
    assert closed(decoder.timeline) == ["clock"]
    assert kinds(decoder.timeline)[-1] == ("thought", 2, 3)


def test_an_interruption_is_answered_at_once() -> None:
    program = Program(["a", "[INTERRUPT]", "no", "[STOP]"])
    decoder = ClockedDecoder(program, CONFIG)
    assert not decoder.hear("one", 0, 2)
    assert program.context[2:] == ["a", "[INTERRUPT]", "</think>", "no", "[STOP]"]
    assert kinds(decoder.timeline) == [
        ("chunk", 0, 2),
        ("thought", 2, 3),
        ("interruption", 3, 3),
        ("answer", 3, 4),
    ]


@pytest.mark.parametrize(("threshold", "goes_on"), [(0.3, False), (0.5, True), (2.0, True)])
@pytest.mark.parametrize("mark", ["</think>", "[INTERRUPT]"])
def test_a_threshold_decides_about_interruptions(
    threshold: float, goes_on: bool, mark: str
) -> None:
    config = ClockConfig(chunk_s=2.0, tokens_per_s=2.0, threshold=threshold)
    decoder = ClockedDecoder(Program([mark], chance=0.4), config)
    assert decoder.hear("one", 0, 2) is goes_on
    assert decoder.timeline.where(kind="thought").events[0].payload["chances"] == [0.4]


def test_responses_take_time_but_no_tokens() -> None:
    call = ["<tool_call>", "look", "</tool_call>", "seen", "</think>"]
    program = Program(call, ["</think>"])
    config = ClockConfig(chunk_s=4.0, tokens_per_s=2.0)
    decoder = ClockedDecoder(program, config, tools=SlowTools(1.5))
    decoder.hear("one", 0, 4)
    assert program.context[4:] == [
        "</tool_call>", "<tool_response>done look</tool_response>", "seen", "</think>",
    ]  # fmt: skip
    (made,) = decoder.timeline.where(kind="call")
    assert (made.start_s, made.end_s, made.text) == (5.5, 7.0, "look")
    assert made.payload["early"]
    assert made.payload["ok"]
    (thought,) = decoder.timeline.where(kind="thought")
    assert (thought.payload["tokens"], thought.end_s) == (5, 8.0)


def test_a_response_that_comes_late_is_read_in_the_next_round() -> None:
    call = ["<tool_call>", "look", "</tool_call>", "seen", "</think>"]
    program = Program(call, ["</think>"])
    decoder = ClockedDecoder(program, CONFIG, tools=SlowTools(3.0))
    decoder.hear("one", 0, 2)
    assert closed(decoder.timeline) == ["clock"]
    (made,) = decoder.timeline.where(kind="call")
    assert made.payload["ok"] is None
    decoder.hear("two", 4, 7, last=True)
    at = program.context.index("heard two")
    assert program.context[at - 1] == "<tool_response>done look</tool_response>"
    (made,) = decoder.timeline.where(kind="call")
    assert (made.start_s, made.end_s) == (3.5, 7.0)


def test_a_tool_that_never_answers_does_not_hold_up_the_answer() -> None:
    program = Program(["<tool_call>", "x", "</tool_call>", "</think>", "sorry", "[STOP]"])
    decoder = ClockedDecoder(program, CONFIG, tools=SlowTools(1e6))
    decoder.hear("one", 0, 2, last=True)
    (answer,) = decoder.timeline.where(kind="answer")
    assert (answer.text, answer.start_s) == ("sorry", 2 + CONFIG.patience_s + 0.5)
    (call,) = decoder.timeline.where(kind="call")
    assert call.end_s == answer.start_s
    assert (call.payload["ok"], call.payload["why"]) == (None, TOO_LATE)


def test_patience_bounds_all_waiting_after_the_speech() -> None:
    calls = [*calling("x"), *calling("y"), "</think>", "sorry", "[STOP]"]
    decoder = ClockedDecoder(Program(calls), LONGER, tools=SlowTools(1e6, 1e6))
    decoder.hear("one", 0, 4, last=True)
    (answer,) = decoder.timeline.where(kind="answer")
    # The first call waits until then; the second one and the mark of the end take four tokens.
    assert answer.start_s == 4 + LONGER.patience_s + 4 / 2
    assert [one.payload["why"] for one in decoder.timeline.where(kind="call")] == [TOO_LATE] * 2


@pytest.mark.parametrize("last", [False, True])
def test_a_call_waits_for_its_own_response(last: bool) -> None:
    """The call before it is answered at 10.0 s, it itself is made at 9.5 and answered at 11.0 s."""
    program = Program([*calling("slow"), "</think>"], [*calling("quick"), "seen", "</think>"])
    decoder = ClockedDecoder(program, LONGER, tools=SlowTools(4.5, 1.5))
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=last)
    at = program.context.index("heard two")
    assert program.context[at + 4 : at + 9] == [
        "</tool_call>", response("slow"), response("quick"), "seen", "</think>",
    ]  # fmt: skip
    slow, quick = decoder.timeline.where(kind="call")
    assert (slow.start_s, slow.end_s, quick.start_s, quick.end_s) == (5.5, 10.0, 9.5, 11.0)


def test_the_model_thinks_about_a_response_that_comes_after_its_last_thought() -> None:
    last = ["b", "</think>", "so", "</think>", "yes", "[STOP]"]
    program = Program([*calling("look"), "</think>"], last)
    decoder = ClockedDecoder(program, LONGER, tools=SlowTools(8.0))
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=True)
    at = program.context.index("heard two")
    assert program.context[at + 2 :] == [*last[:2], response("look"), *last[2:]]
    (call,) = decoder.timeline.where(kind="call")
    assert (call.start_s, call.end_s) == (5.5, 13.5)
    assert (call.payload["early"], call.payload["ok"]) == (True, True)
    thoughts = [
        (one.start_s, one.end_s, one.text) for one in decoder.timeline.where(kind="thought")
    ]
    assert thoughts[1:] == [(8.0, 9.0, "b"), (13.5, 14.5, "so")]
    (answer,) = decoder.timeline.where(kind="answer")
    assert (answer.start_s, answer.text) == (14.5, "yes")


def test_a_response_that_is_there_when_the_last_thought_ends_is_read_without_patience() -> None:
    config = ClockConfig(chunk_s=4.0, tokens_per_s=2.0, patience_s=0.0)
    program = Program([*calling("look"), "</think>"], ["b", "</think>", "so", "</think>", "yes"])
    decoder = ClockedDecoder(program, config, tools=SlowTools(3.0))
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=True)
    assert response("look") in program.context
    assert [one.text for one in decoder.timeline.where(kind="thought")][1:] == ["b", "so"]


@pytest.mark.parametrize("patience_s", [0.0, 3.0])
def test_a_model_that_calls_in_every_thought_answers_all_the_same(patience_s: float) -> None:
    config = ClockConfig(chunk_s=4.0, tokens_per_s=2.0, patience_s=patience_s)
    thought = [*calling("more"), "so", "</think>"]  # 2.5 s, in which the response comes
    program = Program(thought * 50)
    decoder = ClockedDecoder(program, config, tools=SlowTools(*[0.25] * 50))
    decoder.hear("one", 0, 4, last=True)
    (answer,) = decoder.timeline.where(kind="answer")
    assert answer.start_s <= 4 + patience_s + 2 * 2.5


@pytest.mark.parametrize(
    ("seconds", "mark", "last", "end_s"),
    [
        (100.0, "</think>", True, 8 + 10.0),  # the patience is over
        (8.0, "[INTERRUPT]", False, 8.5),  # who interrupts waits for nothing
        (8.0, "[INTERRUPT]", True, 8.5),
    ],
)
def test_an_early_call_without_a_response_is_told_before_the_answer(
    seconds: float, mark: str, last: bool, end_s: float
) -> None:
    program = Program([*calling("look"), "</think>"], [mark, "sorry", "[STOP]"])
    decoder = ClockedDecoder(program, LONGER, tools=SlowTools(seconds))
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=last)
    (call,) = decoder.timeline.where(kind="call")
    assert (call.start_s, call.end_s) == (5.5, end_s)
    told = {"chunk": 0, "call": 0, "early": True, "ok": None, "why": TOO_LATE}
    assert call.payload == told
    (answer,) = decoder.timeline.where(kind="answer")
    assert (answer.text, answer.start_s) == ("sorry", end_s)


class BrokenTools(SlowTools):
    """Fails at every call."""

    def start(self, call: int, text: str, now_s: float) -> None:
        self.due.append((now_s, Response(call, f"no call: {text}", ok=False)))


@pytest.mark.parametrize(
    ("tools", "why"), [(None, "there are no tools"), (BrokenTools(), "no call: {bad json")]
)
def test_a_call_that_cannot_be_made_is_told(tools: SlowTools | None, why: str) -> None:
    program = Program(["<tool_call>", "{bad json", "</tool_call>", "</think>"])
    decoder = ClockedDecoder(program, CONFIG, tools=tools)
    decoder.hear("one", 0, 2)
    (call,) = decoder.timeline.where(kind="call")
    assert (call.start_s, call.end_s, call.text) == (3.5, 3.5, "{bad json")
    assert call.payload == {"chunk": 0, "call": 0, "early": True, "ok": False, "why": why}
    told = [f"<tool_response>{why}</tool_response>"] if tools else []
    assert program.context[4:] == ["</tool_call>", *told, "</think>"]


@pytest.mark.parametrize(
    ("thought", "how"),
    [
        (["<tool_call>", '{"name":', "x", "x", "x"], "budget"),
        (["<tool_call>", '{"name":', "xx", "</think>"], "model"),
        (["<tool_call>", '{"name":', "xx", "[INTERRUPT]"], "interruption"),
    ],
)
def test_a_call_without_an_end_is_told(thought: list[str], how: str) -> None:
    decoder = ClockedDecoder(Program(thought), CONFIG)
    decoder.hear("one", 0, 2)
    assert closed(decoder.timeline) == [how]
    (call,) = decoder.timeline.where(kind="call")
    assert (call.text, call.payload["ok"]) == ('{"name":xx', False)
    assert "closed before the call was complete" in call.payload["why"]


def test_the_timeline_can_be_written_and_read() -> None:
    decoder = ClockedDecoder(Program(["a", "</think>"]), CONFIG, SimulatedClock(2.0))
    decoder.hear("one", 0, 2)
    assert Timeline.from_jsonl(decoder.timeline.to_jsonl()) == decoder.timeline


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"tokens_per_s": 0}, "must be positive"),
        ({"chunk_s": NAN}, "must be positive"),
        ({"tokens_per_s": INFINITE}, "must be positive and finite"),
        ({"chunk_s": 0.01, "tokens_per_s": 10}, "must be at least 1"),
        ({"patience_s": NAN}, "must be 0 or more"),
        ({"patience_s": -1}, "must be 0 or more"),
        ({"threshold": NAN}, "must be a chance from 0 to 1"),
        ({"threshold": -0.1}, "must be a chance from 0 to 1"),
    ],
)
def test_a_clock_that_makes_no_sense_is_refused(setting: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as told:
        ClockConfig(**setting)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.0, 1.1, INFINITE])
def test_a_threshold_may_be_above_every_chance(threshold: float | None) -> None:
    assert ClockConfig(threshold=threshold).threshold == threshold


def test_chunks_that_come_one_by_one_end_the_thoughts_before_them() -> None:
    """The second chunk is shorter, so the first thought ends early; the last one is the last."""
    program = Program(["a"] * 9, ["b", "</think>"], ["c", "</think>"])
    parts = [Part("one", 0, 2, "one"), Part("two", 2, 3), Part("three", 3, 4.5)]
    timeline = ClockedDecoder(program, CONFIG).hear_all(iter(parts))
    assert closed(timeline) == ["clock", "model", "model"]
    chunks = timeline.where(kind="chunk").events
    assert [one.payload["last"] for one in chunks] == [False, False, True]
    assert chunks[0].text == "one"
    assert [one.start_s for one in timeline.where(kind="thought")] == [2, 3, 4.5]
    assert len(timeline.where(kind="answer")) == 1


def test_no_chunk_is_asked_for_after_an_interruption() -> None:
    asked = []

    def coming() -> Iterator[Part]:
        for number in range(4):
            asked.append(number)
            yield Part(number, number, number + 1)

    program = Program(["a", "</think>"], ["[INTERRUPT]", "no", "[STOP]"])
    timeline = ClockedDecoder(program, CONFIG).hear_all(coming())
    assert asked == [0, 1, 2]  # the third is needed to know when the thought must end
    (made,) = timeline.where(kind="interruption")
    assert (made.start_s, made.payload) == (2.5, {"chunk": 1, "by": "agent"})
    assert len(timeline.where(kind="chunk")) == 2
    assert not ClockedDecoder(program, CONFIG).hear_all(()).events


def test_a_call_that_has_begun_is_written_before_the_clock_closes_the_thought() -> None:
    program = Program(["sure", *calling("latte"), "more", "</think>"], ["</think>"])
    decoder = ClockedDecoder(program, LONGER, tools=SlowTools(0.0))
    decoder.hear("one", 0, 2, deadline_s=3.0)  # after two of its tokens
    (call,) = decoder.timeline.where(kind="call")
    assert (call.start_s, call.payload["ok"]) == (4.0, True)
    assert closed(decoder.timeline) == ["clock"]
    (thought,) = decoder.timeline.where(kind="thought")
    assert thought.text == "sure<tool_call>latte</tool_call>"
    decoder.hear("two", 2, 3)  # whose thought begins late
    assert [one.start_s for one in decoder.timeline.where(kind="thought")] == [2.0, 4.0]


def test_a_call_without_an_end_has_the_budget_of_a_thought() -> None:
    program = Program(["<tool_call>", *["x"] * 20], ["</think>"])
    decoder = ClockedDecoder(program, LONGER, tools=SlowTools())
    decoder.hear("one", 0, 2, deadline_s=3.0)
    assert closed(decoder.timeline) == ["budget"]
    (call,) = decoder.timeline.where(kind="call")
    assert not call.payload["ok"]
    assert decoder.clock.now() == 2.0 + LONGER.budget / LONGER.tokens_per_s


def test_a_model_takes_its_newest_call_back() -> None:
    tools = SlowTools(0.0, 0.0, 0.0)
    thoughts = [[*calling("a"), "</think>"], [*calling("b"), CANCEL, CANCEL, "</think>"]]
    program = Program(*thoughts, [CANCEL, *calling("c"), "</think>"])
    decoder = ClockedDecoder(program, LONGER, tools=tools)
    for number in range(3):
        decoder.hear(number, 4 * number, 4 * number + 4, last=number == 2)
    assert tools.cancelled == [(1, 10.0), (0, 10.5)]
    cancels = decoder.timeline.where(kind="cancel")
    assert [(one.start_s, one.text, one.payload) for one in cancels] == [
        (10.0, "b", {"chunk": 1, "call": 1}),
        (10.5, "a", {"chunk": 1, "call": 0}),
        (12.5, "", {"chunk": 2, "why": "no call stands"}),
    ]
    assert [one.payload["ok"] for one in decoder.timeline.where(kind="call")] == [True] * 3


@pytest.mark.parametrize("last", [False, True])
def test_a_call_that_was_taken_back_has_no_response(last: bool) -> None:
    """It is not waited for either."""
    tools = SlowTools(5.0)
    program = Program([*calling("a"), "</think>"], [CANCEL, "</think>", "yes", "[STOP]"])
    decoder = ClockedDecoder(program, LONGER, tools=tools)
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, last=last)
    (call,) = decoder.timeline.where(kind="call")
    assert (call.start_s, call.end_s) == (5.5, 8.5)
    assert (call.payload["ok"], call.payload["why"]) == (None, "it was taken back first")
    assert response("a") not in program.context
    if last:
        (answer,) = decoder.timeline.where(kind="answer")
        assert answer.start_s == 9.0


def test_without_tools_nothing_is_taken_back() -> None:
    decoder = ClockedDecoder(Program([*calling("a"), CANCEL, "</think>"]), LONGER)
    decoder.hear("one", 0, 4, last=True)
    (cancel,) = decoder.timeline.where(kind="cancel")
    assert cancel.payload == {"chunk": 0, "why": "no call stands"}


def test_a_call_that_replaces_another_is_written_before_the_clock_closes_the_thought() -> None:
    other = ["more", CANCEL, *calling("b"), "</think>"]
    decoder = ClockedDecoder(
        Program([*calling("a"), "</think>"], other), LONGER, tools=SlowTools(0, 0)
    )
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8, deadline_s=9.0)  # after two of its tokens
    assert [one.text for one in decoder.timeline.where(kind="call")] == ["a", "b"]
    assert closed(decoder.timeline) == ["model", "clock"]


def test_a_mark_within_a_call_takes_nothing_back() -> None:
    tools = SlowTools(0, 0)
    inside = ["<tool_call>", CANCEL, "</tool_call>", "</think>"]
    decoder = ClockedDecoder(Program([*calling("a"), "</think>"], inside), LONGER, tools=tools)
    decoder.hear("one", 0, 4)
    decoder.hear("two", 4, 8)
    assert tools.cancelled == []


def test_a_call_that_cannot_be_undone_stands() -> None:
    class Lasting(SlowTools):
        def cancel(self, call: int, now_s: float) -> str:
            return "too late"

    back = [CANCEL, CANCEL, "</think>"]
    program = Program([*calling("a"), "</think>"], back, ["</think>"])
    decoder = ClockedDecoder(program, LONGER, tools=Lasting(5.0))
    for number in range(3):
        decoder.hear(number, 4 * number, 4 * number + 4, last=number == 2)
    cancels = decoder.timeline.where(kind="cancel")
    assert [one.payload for one in cancels] == [{"chunk": 1, "call": 0, "why": "too late"}] * 2
    assert response("a") in program.context
    (call,) = decoder.timeline.where(kind="call")
    assert call.payload["ok"]
