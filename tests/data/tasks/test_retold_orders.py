"""Orders that are told again and called anew: what is known, what is called, what decoders read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch

from counterpoint.data.tasks.spoken_orders.freely import (
    called_by_another,
    freely_said,
    unsettled,
)
from counterpoint.data.tasks.spoken_orders.menu import DRINK, WHOLE
from counterpoint.data.tasks.spoken_orders.retold import (
    Hypothesis,
    Recognising,
    exactly,
    heard_again,
    retold_rounds,
)
from counterpoint.data.tasks.spoken_orders.rounds import order_chunks, spaced, written_call
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.tool_world import OrderWorld
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_orders import (
    OrderCounter,
    order_scores,
    serve,
    serve_by_maker,
    serve_parts,
    timed_request,
)
from counterpoint.recipes.shanks_checked_small import shanks_checked_small
from counterpoint.recipes.shanks_retold_small import shanks_retold_small
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.checked import CheckedThinker
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder, Part
from counterpoint.runtime.clocks import SimulatedClock
from counterpoint.runtime.listening import clock_of, thinker_of
from counterpoint.streams.rounds import (
    ANSWER,
    CANCEL,
    HEARD,
    MARK,
    RESPONSE,
    ROUND,
    THOUGHT,
    Marks,
)
from counterpoint.systems.shanks import Shanks, ShanksConfig, small
from tests.data.tasks.reciter import LateTools, Reciter
from tests.runtime.cascade.scripted import FakeClock
from tests.runtime.test_clocked import Program
from tests.systems import tiny_models

MARKS = Marks()
DATA = SpokenOrdersData(chunk_s=1.0, whole_menu=True, retold=True, tokens_per_s=80.0)


def rounds_of(
    said: str, chunk_s: float, late: int = 0, recall: Recognising = exactly
) -> list[dict[str, str]]:
    """Return the rounds of words of which each takes a second."""
    chunks = order_chunks(said.split(), 1.0, chunk_s)
    return retold_rounds(chunks, MARKS, WHOLE, late, recall)


def calls_in(rounds: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the arguments of all calls, in their order."""
    thoughts = [one.get(THOUGHT, "") for one in rounds]
    written = [text.partition(MARKS.call)[2].partition(MARKS.call_end)[0] for text in thoughts]
    return [json.loads(text)["arguments"] for text in written if text]


def test_chunk_tells_all_words_and_what_changes_is_called_anew() -> None:
    rounds = rounds_of("a latte with milk thank you", 2.0)
    assert [one[HEARD] for one in rounds if HEARD in one] == [
        " a latte", " a latte with milk", " a latte with milk thank you",
    ]  # fmt: skip
    latte, milk = {DRINK: "latte"}, {DRINK: "latte", "milkAmount": "milk"}
    assert calls_in(rounds) == [latte, milk]
    assert rounds[2][THOUGHT].startswith(f" milkAmount milk{CANCEL}{MARKS.call}")
    assert rounds[0][THOUGHT].startswith(f" coffeeDrink latte{MARKS.call}")
    assert rounds[-1][ANSWER] == f" one latte milk coming{MARKS.stop}"
    assert [RESPONSE in one for one in rounds] == [False, True, False, True, False]


def test_chunk_in_which_nothing_changes_tells_nothing() -> None:
    asked = []

    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        asked.append(is_certain)
        return exactly(words, is_certain)

    chunks = order_chunks(["a", "latte", "", "", "", ""], 1.0, 2.0)
    rounds = retold_rounds(chunks, MARKS, WHOLE, recall=recall)
    assert asked == [False, True, True]  # nobody is in doubt of a word that a pause follows
    assert [one[HEARD] for one in rounds if HEARD in one] == [" a latte", "", ""]
    assert calls_in(rounds) == [{DRINK: "latte"}]


def test_response_of_a_call_that_is_taken_back_never_comes() -> None:
    rounds = rounds_of("a latte no a mocha please and that is all for today", 2.0, late=2)
    assert calls_in(rounds) == [{DRINK: "latte"}, {DRINK: "mocha"}]
    (response,) = [one[RESPONSE] for one in rounds if RESPONSE in one]
    assert json.loads(response.removeprefix(MARKS.response).removesuffix(MARKS.response_end)) == {
        "ordered": {DRINK: "mocha"}
    }


def test_thought_that_is_cut_is_made_good_in_the_next() -> None:
    hypotheses = iter([0.5, 1.0, 1.0])

    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        return Hypothesis(words, words, next(hypotheses))

    rounds = rounds_of("a latte please", 1.0 + 1.0, recall=recall)
    first, mark, last = rounds[:3]
    assert (first[THOUGHT], mark) == (" coffeeDrink", {MARK: MARKS.close})
    assert last[THOUGHT].startswith(f" coffeeDrink latte{MARKS.call}")


def test_response_that_there_is_no_time_for_is_thought_about_in_the_next_thought() -> None:
    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        return Hypothesis(words, words, has_time=False)

    rounds = rounds_of("a latte please with milk", 2.0, recall=recall)
    first, unread, second, last = rounds[:4]
    assert first[THOUGHT].endswith(MARKS.call_end)
    assert unread.keys() == {RESPONSE, MARK}
    assert unread[MARK] == MARKS.close
    assert second[THOUGHT] == f" ordered{MARKS.close}"
    assert last[THOUGHT].startswith(f" milkAmount milk{CANCEL}")
    assert rounds[4][THOUGHT] == f" ordered{MARKS.close}"  # the last thought has time for all
    assert len(rounds) == 5


def test_decoder_reads_a_response_without_time_as_the_row_has_it() -> None:
    def recall(words: Sequence[str], is_certain: bool) -> Hypothesis:
        return Hypothesis(words, words, has_time=False)

    said = ["a", "latte", "please", "with", "milk"]
    chunks = order_chunks(said, 1.0, 2.0)
    rounds = retold_rounds(chunks, MARKS, WHOLE, recall=recall)
    words = SpokenOrdersData(whole_menu=True, retold=True, wide_tokens=True).words
    reciter = Reciter(rounds, words)
    clock = SimulatedClock(40.0)
    world = OrderWorld()
    tools = ClockedCalls(Calls(world.tools(), lambda: TimedLane(FakeClock())), clock)
    decoder = ClockedDecoder(reciter, ClockConfig(chunk_s=2.0, tokens_per_s=40.0), clock, tools)
    called_s = chunks[0].end_s + len(words.encode(rounds[0][THOUGHT])) / 40.0
    deadlines = (called_s, None, None)
    for stop, chunk, deadline_s in zip((2, 4, 5), chunks, deadlines, strict=True):
        is_last = stop == len(said)
        content = spaced(said[:stop])
        decoder.hear(content, chunk.start_s, chunk.end_s, last=is_last, deadline_s=deadline_s)
    closed = [one.payload["closed"] for one in decoder.timeline.where(kind="thought")]
    assert closed == ["clock", "model", "model"]
    assert reciter.context == "".join(one.get(name, "") for one in rounds for name in ROUND)
    assert [arguments for _, arguments in world.in_force] == calls_in(rounds)[-1:]


@pytest.mark.parametrize("seed", range(30))
def test_what_was_heard_once_is_known_although_it_is_missed_later(seed: int) -> None:
    recall = unsettled(Random(seed), WHOLE)
    said = [
        "can",
        "you",
        "make",
        "me",
        "a",
        "medium",
        "roast",
        "latte",
        "with",
        "a",
        "bit",
        "of",
        "milk",
    ]
    heard: set[str] = set()
    for stop in range(1, len(said) + 1):
        found = recall(said[:stop], stop == len(said))
        heard |= set(found.told)
        for word in ("medium", "roast", "latte", "milk"):
            assert (word in found.known) == (word in heard and word in said[:stop])
        assert [word for word in found.known if word in ("a", "of", "can")] == [
            word for word in said[:stop] if word in ("a", "of", "can")
        ]
        assert recall(said[:stop], stop == len(said)) == found
    assert "milk" in found.known  # the last word of all is certain


def test_orders_that_are_said_freely_are_called_in_the_end_as_they_were_meant() -> None:
    data = SpokenOrdersData(
        chunk_s=1.0, whole_menu=True, retold=True, tokens_per_s=80.0, freely=1.0
    )
    num_right = num_orders = num_calls = num_unread = 0
    for number in range(150):
        request = data.request(number)
        rounds = data.rounds(number)
        assert rounds == data.rounds(number)
        for text in (text for one in rounds for text in one.values()):
            assert 1 not in data.words.encode(text)
        num_unread += sum(one.keys() == {RESPONSE, MARK} for one in rounds)
        calls = calls_in(rounds)
        thoughts = "".join(one.get(THOUGHT, "") for one in rounds)
        assert thoughts.count(CANCEL) == max(len(calls) - 1, 0)
        assert all(one != other for one, other in zip(calls, calls[1:], strict=False))
        if not calls:
            assert rounds[-1][ANSWER] == f" sorry{MARKS.stop}"
            continue
        num_orders += 1
        num_calls += len(calls)
        num_right += calls[-1] == request.calls[0].arguments
    assert num_right > 0.97 * num_orders
    assert 1.3 < num_calls / num_orders < 2.5
    assert 0.01 < num_unread / num_calls < 0.08


@pytest.mark.parametrize("late", [0, 1, 2])
def test_row_is_what_a_decoder_reads_and_writes(late: int) -> None:
    num_cancels = 0
    for number in range(12):
        said = list(filter(None, freely_said(DATA.request(number), Random(number))))
        said += [""] * (-len(said) % 4)  # every thought has the time of a whole chunk
        chunks = order_chunks(said, 2.0, 2.0)
        rounds = retold_rounds(chunks, MARKS, WHOLE, late)
        reciter = Reciter(rounds, DATA.words)
        config = ClockConfig(chunk_s=2.0, tokens_per_s=80.0)
        clock = SimulatedClock(config.tokens_per_s)
        world = OrderWorld()
        calls = ClockedCalls(Calls(world.tools(), lambda: TimedLane(FakeClock())), clock)
        tools = LateTools(reciter, late) if late else calls
        decoder = ClockedDecoder(reciter, config, clock, tools)
        told = ""
        heard: list[str] = []
        for place, chunk in enumerate(chunks):
            heard += chunk.words
            content = spaced(heard)
            is_last = place == len(chunks) - 1
            decoder.hear(
                "" if content == told else content, chunk.start_s, chunk.end_s, last=is_last
            )
            told = content
        assert reciter.context == "".join(one.get(name, "") for one in rounds for name in ROUND)
        wanted = calls_in(rounds)[-1:]
        if not late:
            assert [arguments for _, arguments in world.in_force] == wanted
        cancels = decoder.timeline.where(kind="cancel")
        assert len(cancels) == max(len(calls_in(rounds)) - 1, 0)
        assert all("why" not in one.payload for one in cancels)
        num_cancels += len(cancels)
    assert num_cancels > 5


@pytest.mark.parametrize(
    "counter", [OrderCounter(), OrderCounter(call_s=2.0), OrderCounter(failures=2)]
)
def test_right_order_is_in_force_and_named_however_slow_the_counter(counter: OrderCounter) -> None:
    served = [serve_by_maker(DATA, number, counter) for number in range(20)]
    scores = order_scores(served)
    assert scores["right"].value == scores["said"].value == 1.0
    assert scores["stale"].value == 0.0
    waiting = [serve_by_maker(replace(DATA, retold=False), n, counter) for n in range(20)]
    assert scores["early"].value >= order_scores(waiting)["early"].value


def test_success_that_was_taken_back_is_not_early() -> None:
    """The right call is made early, taken back, and made again when the speech is over."""
    request = timed_request(DATA, 0)
    right = request.calls[0].arguments
    other = {**right, DRINK: "espresso" if right[DRINK] != "espresso" else "latte"}
    calls = [[written_call(one, MARKS), MARKS.close] for one in (right, other, right)]
    stop_s = request.stop_s or 0.0
    parts = [Part("", 0.0, 0.5), Part("", 0.5, 1.5), Part("", 1.5, stop_s)]
    anew = [calls[0], [CANCEL, *calls[1]], [CANCEL, *calls[2]]]
    once = [calls[0], [MARKS.close], [MARKS.close]]
    for thoughts, early in ((once, 1.0), (anew, 0.0)):
        served = serve_parts(Program(*thoughts), DATA, request, parts)
        scores = order_scores([served])
        assert scores["right"].value == 1.0
        assert scores["early"].value == early


def test_order_that_fits_no_row_is_left_out() -> None:
    data = replace(DATA, row_ticks=250, freely=1.0)
    system = Shanks(replace(small(), vocab_size=len(data.words)))
    assert max(data.prepare(system).told(number).length for number in range(40)) > 250
    assert data.prepare(system).batches(8, 0).batch(0).ticks[THOUGHT].shape == (8, 250)
    with pytest.raises(UserError, match="`row_ticks` must hold an item"):
        replace(data, row_ticks=30).prepare(system).batches(1, 0).batch(0)


def test_recipe_learns_from_orders_that_are_told_again() -> None:
    run = shanks_retold_small()
    assert isinstance(run.data, SpokenOrdersData)
    assert isinstance(run.system, ShanksConfig)
    prepared = run.data.prepare(Shanks(run.system))
    assert prepared.batches(1, 0).batch(0).ticks[THOUGHT].shape == (1, 1024)
    other = replace(run.data, retold=False)
    assert prepared.fingerprint != other.prepare(Shanks(run.system)).fingerprint
    faster = replace(run.data, tokens_per_s=100.0)
    assert prepared.fingerprint == faster.prepare(Shanks(run.system)).fingerprint
    narrow = replace(run.data, wide_tokens=False)
    wider = replace(run.system, vocab_size=len(narrow.words))
    assert prepared.fingerprint != narrow.prepare(Shanks(wider)).fingerprint
    assert len(run.data.words.encode(CANCEL)) == 1
    assert run.data.heard_words().is_retold
    with pytest.raises(UserError, match="`tokens_per_s` must be above 0"):
        replace(run.data, tokens_per_s=0.0)


def test_untrained_model_is_served_like_any_other() -> None:
    torch.manual_seed(0)
    config = ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=len(DATA.words))
    served = serve(Shanks(config).eval(), DATA, 0)
    assert served.timeline.where(kind="answer")


def test_who_hears_again_knows_what_was_called_and_all_words() -> None:
    chunks = order_chunks(["a", "latte", "with", "milk"], 1.0, 2.0)
    rounds = heard_again(chunks, MARKS, WHOLE)
    latte, milk = {DRINK: "latte"}, {DRINK: "latte", "milkAmount": "milk"}
    assert rounds[0][RESPONSE] == written_call(latte, MARKS)
    assert (rounds[0][HEARD], rounds[0][MARK]) == (" a latte with milk", MARKS.last)
    assert rounds[0][THOUGHT] == " coffeeDrink latte milkAmount milk" + written_call(milk, MARKS)
    assert rounds[1][ANSWER] == f" one latte milk coming{MARKS.stop}"
    assert len(rounds) == 2


def given(hypotheses: Sequence[Hypothesis]) -> Recognising:
    """Return what is recognised, one hypothesis after the other."""
    coming = iter(hypotheses)
    return lambda words, is_certain: next(coming)


def test_what_was_heard_once_counts_only_if_it_was_called() -> None:
    """ "Milk" is missing in the last telling: only a call can tell of it."""
    hypotheses = [
        Hypothesis(["a", "latte", "with", "milk"], ["a", "latte", "with", "milk"]),
        Hypothesis(["a", "latte", "with", "milk"], ["a", "latte", "with"]),
    ]
    chunks = order_chunks(["a", "latte", "with", "milk"], 1.0, 2.0)
    milk, latte = {DRINK: "latte", "milkAmount": "milk"}, {DRINK: "latte"}
    for stands, wanted in ((dict, milk), (lambda right: {}, latte)):
        recall = given(hypotheses)
        rounds = heard_again(chunks, MARKS, WHOLE, recall, stands)
        assert calls_in(rounds) == [wanted]
        assert (RESPONSE in rounds[0]) == (wanted == milk)


def test_another_call_stands_now_and_then() -> None:
    right = {"size": "small", DRINK: "latte", "milkAmount": "milk"}
    rng = Random(0)
    made = [called_by_another(right, rng, WHOLE) for _ in range(2000)]
    assert 0.2 < sum(not one for one in made) / 2000 < 0.3
    called = [one for one in made if one]
    others = [one for one in called if one != right]
    assert 0.1 < len(others) / len(called) < 0.25
    assert all(DRINK in one for one in called)
    differing = [sum(one.get(slot) != right.get(slot) for slot in WHOLE.slots) for one in others]
    assert set(differing) == {1}
    assert all([*one] == [slot for slot in WHOLE.slots if slot in one] for one in called)


def test_decoder_reads_what_is_heard_again_as_the_row_has_it() -> None:
    """Two sessions recite what the program writes, and the world has the last call."""
    num_changed = 0
    for number in range(12):
        said = list(filter(None, freely_said(DATA.request(number), Random(number))))
        said += [""] * (-len(said) % 4)
        chunks = order_chunks(said, 2.0, 2.0)
        first = Reciter(retold_rounds(chunks, MARKS, WHOLE), DATA.words)
        rounds = heard_again(chunks, MARKS, WHOLE)
        again = Reciter(rounds, DATA.words)
        clock = SimulatedClock(80.0)
        world = OrderWorld()
        calls = ClockedCalls(Calls(world.tools(), lambda: TimedLane(FakeClock())), clock)
        config = ClockConfig(chunk_s=2.0, tokens_per_s=80.0, last_tokens=800)
        decoder = ClockedDecoder(CheckedThinker(first, again, MARKS), config, clock, calls)
        heard: list[str] = []
        for place, chunk in enumerate(chunks):
            content = spaced(heard + list(chunk.words)) if chunk.words else ""
            heard += chunk.words
            is_last = place == len(chunks) - 1
            decoder.hear(content, chunk.start_s, chunk.end_s, last=is_last)
        assert again.context == "".join(one.get(name, "") for one in rounds for name in ROUND)
        assert [arguments for _, arguments in world.in_force] == calls_in(rounds)
        num_changed += len(decoder.timeline.where(kind="cancel")) > 0
    assert num_changed > 2


def test_rows_of_who_hears_again() -> None:
    data = replace(DATA, freely=0.5, again=0.5, wide_tokens=True)
    system = Shanks(replace(small(), vocab_size=len(data.words)))
    rows = [data.rounds(number) for number in range(300)]
    at_once = [one for one in rows if sum(HEARD in part for part in one) == 1]
    assert 110 < len(at_once) < 190
    assert 0.4 < sum(RESPONSE in one[0] for one in at_once) / len(at_once) < 0.9
    held_out = [data.rounds(number, held_out=True) for number in range(40)]
    assert min(sum(HEARD in part for part in one) for one in held_out) > 1
    usual = replace(data, again=0.0)
    assert usual.prepare(system).fingerprint != data.prepare(system).fingerprint
    same = [one == usual.rounds(number) for number, one in enumerate(rows)]
    assert same.count(False) <= len(at_once)
    with pytest.raises(UserError, match="`again` needs `retold`"):
        replace(data, retold=False)
    with pytest.raises(UserError, match="`again` must be from 0 to 1"):
        replace(data, again=2.0)


def test_recipe_goes_on_from_words_that_are_told_again() -> None:
    run = shanks_checked_small()
    assert isinstance(run.data, SpokenOrdersData)
    assert run.data.again == 0.5
    assert replace(run.data, again=0.0) == shanks_retold_small().data
    assert run.system == shanks_retold_small().system
    torch.manual_seed(0)
    config = ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=len(run.data.words))
    thinker = thinker_of(Shanks(config).eval(), run.data)
    assert isinstance(thinker, CheckedThinker)
    assert serve(Shanks(config).eval(), run.data, 0).timeline.where(kind="answer")
    assert not isinstance(
        thinker_of(Shanks(config).eval(), replace(run.data, again=0.0)), CheckedThinker
    )
    assert clock_of(run.data).last_tokens == 400
    assert clock_of(replace(run.data, again=0.0)).last_tokens is None
