"""Orders against the clock: who calls when, what stays in force, and what is counted."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from counterpoint.data.tasks.spoken_orders.rounds import written_call
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.spoken_tools import MadeCall, ToolOutcome
from counterpoint.data.tasks.tool_world import ORDER
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.item_scores import item_scores
from counterpoint.evaluate.duplex.spoken_orders import (
    SCORES,
    OrderCounter,
    OrderMaker,
    Served,
    order_floors,
    order_scores,
    serve,
    serve_by,
    serve_by_maker,
    timed_request,
)
from counterpoint.runtime.clocked import Proposal
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.shanks import Shanks, ShanksConfig
from tests.systems import tiny_models

DATA = SpokenOrdersData(num_held_out=6)
NUMBERS = range(40)


class Deaf(OrderMaker):
    """The maker, but everything that it would call or say is about another drink."""

    def propose(self) -> Proposal:
        given = super().propose().text
        other = " smoothie" if given == " latte" else given
        self._proposed = given
        return Proposal(other)


def test_times_of_an_order_are_those_of_its_words() -> None:
    for number in NUMBERS:
        request = timed_request(DATA, number)
        pace = DATA.pace(number, held_out=True)
        (call,) = request.calls
        num_words = len(request.text.split())
        assert request.stop_s == pytest.approx(num_words / pace.words_per_s)
        assert call.known_s == pytest.approx(call.known_words / pace.words_per_s)
        assert 0 < call.known_words < num_words
        chunk_ends = [
            event.end_s for event in serve_by_maker(DATA, number).timeline.where(kind="chunk")
        ]
        assert chunk_ends[-1] == pytest.approx(request.stop_s)


def test_maker_calls_in_the_first_chunk_that_determines_the_order() -> None:
    """Its call is made after that chunk has ended, and never before the word that decides it."""
    early = 0
    for number in NUMBERS:
        served = serve_by_maker(DATA, number)
        (made,) = served.outcome.made
        (call,) = served.request.calls
        assert (made.name, made.arguments) == (ORDER, call.arguments)
        ends = [event.end_s for event in served.timeline.where(kind="chunk")]
        word_s = 1 / DATA.pace(number, held_out=True).words_per_s
        decided_s = (call.known_s or 0) + word_s  # the word after it decides
        chunk = next(place for place, end in enumerate(ends) if end >= decided_s - 1e-9)
        assert ends[chunk] < made.at_s <= ends[chunk] + DATA.chunk_s
        early += made.at_s < served.outcome.stop_s
    assert 0 < early < len(NUMBERS)


@pytest.mark.parametrize(
    "counter",
    [OrderCounter(), OrderCounter(call_s=1.0), OrderCounter(call_s=5.0), OrderCounter(failures=2)],
)
def test_right_order_is_in_force_and_named_however_slow_the_counter(counter: OrderCounter) -> None:
    scores = order_scores([serve_by_maker(DATA, number, counter) for number in NUMBERS])
    assert scores["right"].value == scores["said"].value == 1.0
    assert scores["stale"].value == 0.0


def test_slow_counter_delays_the_call_by_its_seconds() -> None:
    leads = [
        order_scores(
            [serve_by_maker(DATA, number, OrderCounter(call_s=seconds)) for number in NUMBERS]
        )
        for seconds in (0.0, 1.0, 2.0)
    ]
    for sooner, later in pairwise(leads):
        assert later["lead_s"].value == pytest.approx(sooner["lead_s"].value - 1.0, abs=0.1)
        assert later["early"].value < sooner["early"].value


def test_call_that_always_fails_is_never_in_force() -> None:
    scores = order_scores(
        [serve_by_maker(DATA, number, OrderCounter(failures=3)) for number in range(5)]
    )
    assert scores["right"].value == scores["early"].value == 0.0
    assert math.isnan(scores["lead_s"].value)


def test_another_drink_is_not_right() -> None:
    lattes = [
        number
        for number in NUMBERS
        if DATA.request(number, held_out=True).calls[0].arguments["coffeeDrink"] == "latte"
    ]
    assert lattes
    for number in lattes:
        request = DATA.request(number, held_out=True)
        deaf = Deaf(request, DATA, DATA.pace(number, held_out=True).words_per_s)
        scores = order_scores([serve_by(deaf, DATA, number)])
        assert scores["right"].value == scores["said"].value == scores["early"].value == 0.0


class Shotgun(OrderMaker):
    """Calls every drink in its first thought, before any of it was said."""

    def __init__(self, data: SpokenOrdersData) -> None:
        super().__init__(data.request(0), data, 2.8)
        drinks = ("mocha", "latte", "cappuccino", "espresso")
        calls = [written_call({"coffeeDrink": drink}, data.marks) for drink in drinks]
        self._thoughts = ["".join(calls) + data.marks.close] + [data.marks.close] * 9

    def read(self, text: str) -> None:
        if text == self._proposed:
            self._ahead.pop(0)
        self._proposed = None


def test_guesses_in_advance_are_not_early() -> None:
    """One of four drinks in force is the right one, and the order is wrong."""
    served = [serve_by(Shotgun(DATA), DATA, number) for number in NUMBERS]
    assert any(
        call.arguments == one.request.calls[0].arguments
        for one in served
        for call in one.outcome.made
    )
    scores = order_scores(served)
    assert scores["right"].value == scores["early"].value == 0.0


def test_call_whose_result_never_came_is_not_in_force() -> None:
    """It takes longer than the patience of the clock."""
    scores = order_scores([serve_by_maker(DATA, 0, OrderCounter(call_s=30.0))])
    assert scores["right"].value == 0.0


@pytest.mark.parametrize("wrong", [{"call_s": -1.0}, {"call_s": math.inf}, {"failures": -1}])
def test_counters_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="`call_s` must be 0 or more seconds"):
        OrderCounter(**wrong)
    with pytest.raises(UserError, match="At least one order"):
        order_scores([])


def test_old_order_in_force_is_stale() -> None:
    number = next(one for one in NUMBERS if DATA.request(one, held_out=True).stale)
    request = timed_request(DATA, number)
    ((name, arguments),) = request.stale
    stop_s = request.stop_s or 0.0
    outcome = ToolOutcome((MadeCall(name, arguments, 1.0),), ((name, arguments),), stop_s)
    scores = order_scores([Served(request, outcome, Timeline(events=()))])
    assert scores["stale"].value == 1.0
    assert scores["right"].value == scores["early"].value == 0.0
    undone = Served(request, outcome._replace(in_force=()), Timeline(events=()))
    assert order_scores([undone])["stale"].value == 0.0


def test_floors_know_the_times() -> None:
    floors = order_floors(DATA, NUMBERS)
    assert floors["oracle"]["early"] == floors["oracle"]["success"] == 1.0
    assert floors["oracle after listening"]["early"] == 0.0
    assert floors["most common call"]["success"] < 0.5
    assert floors["what was said first"]["stale"] == 1.0


def tiny() -> Shanks:
    torch.manual_seed(0)
    return Shanks(
        ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=len(DATA.words))
    ).eval()


def test_verb_scores_orders_beside_the_constant_and_the_maker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = item_scores(tiny(), DATA)
    assert found[SCORES["right"]].value == found[SCORES["said"]].value == 0.0
    assert found["ceiling: called early by the maker"].value > 0.0

    def by_maker(_: Any, data: SpokenOrdersData, number: int) -> Served:
        return serve_by_maker(data, number)

    monkeypatch.setattr("counterpoint.evaluate.duplex.item_scores.serve", by_maker)
    told = item_scores(tiny(), DATA, most_items=3)
    assert told[SCORES["right"]].value == 1.0
    assert told[SCORES["early"]] == told["ceiling: called early by the maker"]
    assert item_scores(tiny(), replace(DATA, num_held_out=0)) == {}


def test_untrained_model_is_served_like_any_other() -> None:
    served = serve(tiny(), DATA, 0)
    assert served.timeline.where(kind="answer").events
