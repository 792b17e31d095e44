"""Lanes, the ledger, marks, triggers, sentences, and the thinker that reads schemas."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from counterpoint.data.tasks.tool_world import OrderWorld
from counterpoint.data.tools import Tool, spoken_values
from counterpoint.runtime.cascade.calls import Call
from counterpoint.runtime.cascade.lanes import ThreadLane, TimedLane
from counterpoint.runtime.cascade.ledger import SoundLedger
from counterpoint.runtime.cascade.models import Message
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.thinking import (
    FORGOTTEN,
    Answerer,
    ClauseTrigger,
    MarkReader,
    Scene,
    old_messages,
)
from counterpoint.speech.partials import ScoredWord
from counterpoint.speech.spoken_words import SpokenWord
from tests.runtime.cascade.scripted import FakeClock

# ------------------------------------------------------------------------------------- lanes


def test_timed_lane_gives_steps_when_they_would_be_finished() -> None:
    clock = FakeClock()

    def job() -> Iterator[int]:
        for number in range(3):
            clock.now_s += 0.5
            yield number

    lane = TimedLane(clock)
    lane.start(job(), 10.0)
    assert lane.poll(10.4) == []
    assert [(step.value, step.at_s) for step in lane.poll(11.1)] == [(0, 10.5), (1, 11.0)]
    assert lane.busy
    assert [step.is_last for step in lane.poll(11.6)] == [False, True]
    assert not lane.busy


def test_lanes_tell_an_error_and_drop_a_job() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("bad")

    for lane in (TimedLane(FakeClock()), ThreadLane()):
        lane.start(failing(), 0.0)
        steps = []
        ends = time.monotonic() + 5
        while lane.busy and time.monotonic() < ends:
            steps += lane.poll(1.0)
        assert [(step.value, str(step.error)) for step in steps] == [(1, "None"), (None, "bad")]
        lane.start(iter([1, 2]), 1.0)
        lane.stop()
        assert not lane.busy
        assert lane.poll(9.0) == []


def test_dropped_thread_never_speaks_for_the_next_job() -> None:
    release = threading.Event()

    def slow() -> Iterator[str]:
        release.wait(5)
        yield "old"

    lane = ThreadLane()
    lane.start(slow(), 0.0)
    lane.start(iter(["new"]), 0.0)
    release.set()
    found = []
    ends = time.monotonic() + 5
    while lane.busy and time.monotonic() < ends:
        found += [step.value for step in lane.poll(0.0) if not step.is_last]
    assert found == ["new"]


def test_threads_are_used_again_and_a_dropped_job_is_closed() -> None:
    closed = threading.Event()
    release = threading.Event()
    threads: list[threading.Thread] = []

    def quick() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 1

    def long() -> Iterator[int]:
        try:
            while True:
                release.wait(5)
                yield 2
        finally:
            closed.set()

    lane = ThreadLane()
    for _ in range(5):
        lane.start(quick(), 0.0)
        ends = time.monotonic() + 5
        while lane.busy and time.monotonic() < ends:
            lane.poll(0.0)
    assert len(set(threads)) == 1
    lane.start(long(), 0.0)
    lane.start(quick(), 0.0)  # it does not wait for the other
    ends = time.monotonic() + 5
    while lane.busy and time.monotonic() < ends:
        lane.poll(0.0)
    assert len(set(threads)) == 2
    release.set()
    assert closed.wait(5)
    lane.close(5.0)
    assert not any(thread.is_alive() for thread in threads)


def test_lane_that_is_left_ends_its_threads() -> None:
    threads: list[threading.Thread] = []

    def job() -> Iterator[None]:
        threads.append(threading.current_thread())
        yield

    lane = ThreadLane()
    lane.start(job(), 0.0)
    while lane.busy:
        lane.poll(0.0)
    del lane
    threads[0].join(5)
    assert not threads[0].is_alive()


# ------------------------------------------------------------------------------------- ledger


def test_ledger_counts_generated_sent_and_played() -> None:
    ledger = SoundLedger(rate=10, device_delay_s=0.5)
    words = (SpokenWord("a", 0.0, 1.0), SpokenWord("b", 1.0, 2.0))
    ledger.add(torch.ones(20), words)
    assert ledger.amounts(0.0) == (2.0, 0.0, 0.0)
    assert ledger.send(15, 100.0).sum() == 15
    assert ledger.amounts(101.0) == (2.0, 1.5, 0.5)
    assert [word.text for word in ledger.heard(101.0)] == ["a"]
    assert ledger.flush() == 0.5
    assert not ledger.send(10, 101.5).any()
    assert ledger.is_playing(101.9)
    assert not ledger.is_playing(102.1)
    assert ledger.amounts(200.0) == (2.0, 1.5, 1.5)
    heard = ledger.heard(200.0)
    assert [word.text for word in heard] == ["a", "b"]
    assert heard[1].end_s == 102.0  # it was cut after half of it


def test_ledger_sends_sentences_one_after_another() -> None:
    ledger = SoundLedger(rate=10)
    ledger.add(torch.ones(5), (SpokenWord("a", 0.0, 0.5),))
    ledger.add(torch.full((5,), 2.0), (SpokenWord("b", 0.0, 0.5),))
    assert ledger.send(12, 0.0).tolist() == [1.0] * 5 + [2.0] * 5 + [0.0] * 2
    assert [word.start_s for word in ledger.heard(2.0)] == [0.0, 0.5]
    ledger.begin()
    assert ledger.heard(2.0) == []


# ------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 500])
def test_marks_are_found_however_the_text_is_cut(size: int) -> None:
    text = (
        'They want tea. <tool_call>{"a": "<b>"}</tool_call> [x] 1 < 2 '
        "<tool_cancel> {} </tool_cancel>wrong [INTERRUPT]<tool_call>{"
    )
    marks = MarkReader()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    found = [one for piece in pieces for one in marks.read(piece)] + list(marks.end())
    said = "".join(one.text for one in found if one.kind == "text")
    assert said == "They want tea.  [x] 1 < 2 wrong "
    rest = [(one.kind, one.text) for one in found if one.kind != "text"]
    assert rest == [
        ("call", '{"a": "<b>"}'),
        ("cancel", "{}"),
        ("interrupt", ""),
        ("broken", "<tool_call>{"),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 500])
def test_reasoning_is_found_and_calls_in_it_are_none(size: int) -> None:
    text = "<think>a <tool_call>{}</tool_call> b</think>Yes. <think>so</think> No. <think>and"
    marks = MarkReader()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    found = [one for piece in pieces for one in marks.read(piece)] + list(marks.end())
    assert "".join(one.text for one in found if one.kind == "text") == "Yes.  No. "
    rest = [(one.kind, one.text) for one in found if one.kind != "text"]
    assert rest == [("inner", "a <tool_call>{}</tool_call> b"), ("inner", "so"), ("inner", "and")]


def words(text: str) -> tuple[ScoredWord, ...]:
    return tuple(ScoredWord(word, 0.0, 0.0, 1.0) for word in text.split())


def test_clause_trigger_waits_for_a_clause() -> None:
    trigger = ClauseTrigger()
    assert not trigger(words("I would like a large"), 1.0)
    assert not trigger(words("a large tea,"), 1.0)  # its last word may change
    assert trigger(words("a large tea, and"), 1.0)
    assert trigger(words("a large tea and some more"), 4.0)
    assert not trigger(words("a"), 9.0)


# -------------------------------------------------------------------------------- schemas


DRINKS = {
    "type": "object",
    "properties": {
        "drink": {"type": "string", "enum": ["mocha", "iced mocha", "drip coffee", "latte"]},
        "roast": {"type": "string", "enum": ["light roast", "dark roast"]},
        "sweet": {"enum": ["a bit of sweetener", "a little bit of sweetener", "sweetener"]},
        "note": {"type": "string"},
    },
    "required": ["drink"],
}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("make me a mocha", {"drink": "mocha"}),
        ("make me an ice mocha", {"drink": "iced mocha"}),
        ("a dark rose drip coffee please", {"drink": "drip coffee", "roast": "dark roast"}),
        ("a mocha no wait a drip coffee", {"drink": "drip coffee"}),
        ("a drip coffee no wait a mocha light roast", {"drink": "mocha", "roast": "light roast"}),
        ("a mocha with a bit of sweetener", {"drink": "mocha", "sweet": "a bit of sweetener"}),
        ("a latte not a mocha please", {"drink": "latte"}),
        ("i do not want a mocha i want a latte", {"drink": "latte"}),
        ("a latte instead of a mocha", {"drink": "latte"}),
        ("a latte actually no a mocha", {"drink": "mocha"}),
        ("a latte no mocha", {"drink": "latte"}),
        ("a latte actually no mocha please", {"drink": "mocha"}),
        ("a latte actually no sweetener", {"drink": "latte"}),
        ("a latte with sweetener actually no sweetener", {"drink": "latte"}),
        ("a latte with sweetener no sweetener", {"drink": "latte"}),
        ("i do not want a dark roast mocha i want a latte", {"drink": "latte"}),
        ("not a mocha", None),
        ("a light roast", None),
        ("", None),
    ],
)
def test_arguments_are_found_in_misheard_and_corrected_words(
    said: str, expected: dict[str, str] | None
) -> None:
    tool = Tool(name="order", description="", parameters=DRINKS, function=print, effect="none")
    assert SchemaCaller([tool]).arguments(DRINKS, said.split()) == expected


def test_a_recogniser_is_told_what_tools_list() -> None:
    """Each value as far as it has a new word, a sentence for each parameter that lists some."""
    order = Tool(name="order", description="", parameters=DRINKS, function=print, effect="none")
    plain = Tool(name="sing", description="", parameters={}, function=print, effect="none")
    assert spoken_values([plain]) == spoken_values([]) == ""
    assert spoken_values([plain, order, order]) == (
        "Mocha, iced mocha, drip coffee, latte. Light roast, dark roast. "
        "A bit of sweetener, a little bit of sweetener."
    )


def test_a_value_that_another_one_beats_hides_none() -> None:
    """ "double shot ice" is alike to "double shot", and better than "ice mocha", but is beaten."""
    (tool,) = OrderWorld().tools()
    said = "a light rose double shot ice mocha with soy milk"
    assert SchemaCaller([tool]).arguments(tool.parameters, said.split()) == {
        "roast": "light roast",
        "numberOfShots": "double shot",
        "coffeeDrink": "iced mocha",
        "milkAmount": "soy milk",
    }


def test_a_withdrawal_takes_back_what_was_asked_for() -> None:
    tool = Tool(name="order", description="", parameters=DRINKS, function=print, effect="none")
    latte = {"drink": "latte"}
    caller = SchemaCaller([tool])
    made = Call(number=0, tool=tool, arguments=latte, turn=0)
    said = "a latte please no actually cancel that"
    (mark,) = caller(Scene(words=words(said), calls=(made,)))
    assert mark.startswith("<tool_cancel>")
    assert "latte" in mark
    assert list(caller(Scene(words=words("a latte please"), calls=(made,)))) == [
        mark.replace("cancel", "call")
    ]
    assert list(caller(Scene(words=words(f"{said} a mocha"), calls=(made,)))) == [
        mark,
        mark.replace("cancel", "call").replace("latte", "mocha"),
    ]
    for kept in (
        "a latte never mind the sweetener",
        "a latte dont cancel it",
        "a latte scratch that",
    ):
        (mark_then,) = caller(Scene(words=words(kept), calls=(made,)))
        assert mark_then.startswith("<tool_cancel>") == kept.endswith("scratch that")
    (dark,) = caller(Scene(words=words("a latte scratch that make it a dark roast")))
    assert "latte" in dark
    assert "dark roast" in dark
    assert list(caller(Scene(words=words("a latte no, a mocha")))) == [
        mark.replace("cancel", "call").replace("latte", "mocha")
    ]


# ------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(("least", "at_a_time"), [(2, 4), (6, FORGOTTEN), (20, FORGOTTEN)])
def test_prompt_of_an_answer_begins_as_the_one_before(least: int, at_a_time: int) -> None:
    """Only so can a language model use again what it has computed."""
    prompts: list[list[Message]] = []

    def complete(messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        prompts.append(list(messages))
        yield "yes"

    answer = Answerer(complete, least_messages=least)
    history: list[Message] = []
    for number in range(40):
        words = (ScoredWord(f"question {number}", 0.0, 1.0, 1.0),)
        list(answer(Scene(words=words, history=tuple(history), thoughts=(f"note {number}",))))
        history.append({"role": "user", "content": f"question {number}"})
        history.append({"role": "assistant", "content": "yes"})
        del history[: old_messages(len(history), 40)]
    new = sum(
        after[: len(before) - 1] != before[:-1] for before, after in itertools.pairwise(prompts)
    )
    assert new <= 80 // at_a_time
    lengths = {len(prompt) for prompt in prompts[20:]}
    assert max(lengths) - min(lengths) < at_a_time  # the old is forgotten
    assert prompts[-1][-1]["content"] == "question 39\n(Your notes: note 39)"
