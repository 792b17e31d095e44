"""Spoken orders in the tool-call layout: when a call is written, what is trained, what is read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from counterpoint.data.source import DataSource
from counterpoint.data.tasks.spoken_maths.words import Words
from counterpoint.data.tasks.spoken_orders import source
from counterpoint.data.tasks.spoken_orders.freely import freely_said, words_heard
from counterpoint.data.tasks.spoken_orders.menu import SMALL, WHOLE, Menu, determined
from counterpoint.data.tasks.spoken_orders.rounds import order_chunks, order_rounds, written_call
from counterpoint.data.tasks.spoken_orders.source import PreparedOrders, SpokenOrdersData
from counterpoint.data.tasks.spoken_orders.words import OrderWords
from counterpoint.data.tasks.spoken_tools import ToolRequest, generated_requests
from counterpoint.data.tasks.tool_world import DRINKS, ORDER, OrderWorld
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.recipes.shanks_menu_small import shanks_menu_small
from counterpoint.recipes.shanks_tools_small import shanks_tools_small
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.clocked_calls import ClockedCalls
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.clocked import ClockConfig, ClockedDecoder
from counterpoint.runtime.clocks import SimulatedClock, Tools
from counterpoint.runtime.thinker import Vocabulary
from counterpoint.streams.rounds import ANSWER, HEARD, RESPONSE, ROUND, THOUGHT, WRITTEN, Marks
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.shanks import Shanks, ShanksConfig, small
from counterpoint.train.run import Run
from tests.data.tasks.reciter import LateTools, Reciter
from tests.runtime.cascade.scripted import FakeClock
from tests.systems import tiny_models

MARKS = Marks()
WORDS = OrderWords()
REQUESTS = generated_requests(0, 60)
DATA = SpokenOrdersData(row_ticks=384, num_held_out=3)


def model() -> Shanks:
    torch.manual_seed(0)
    made = Shanks(ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=len(WORDS)))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def called_in(rounds: Sequence[dict[str, str]]) -> int:
    """Return the number of the chunk whose thought calls the tool."""
    (place,) = [place for place, one in enumerate(rounds) if MARKS.call in one.get(THOUGHT, "")]
    return sum(HEARD in one for one in rounds[: place + 1]) - 1


def arguments_of(rounds: Sequence[dict[str, str]]) -> Any:
    (thought,) = [one[THOUGHT] for one in rounds if MARKS.call in one.get(THOUGHT, "")]
    written = json.loads(thought.removesuffix(MARKS.call_end).rpartition(MARKS.call)[2])
    assert written["name"] == ORDER
    return written["arguments"]


@pytest.mark.parametrize("kind", [OrderWords, Words])
def test_words_with_other_marks_are_others(kind: type[OrderWords] | type[Words]) -> None:
    swapped = Marks(part=MARKS.last, last=MARKS.part)
    assert kind(swapped).identity != kind().identity
    assert kind(Marks()).identity == kind().identity


@pytest.mark.parametrize("retold", [False, True])
def test_system_needs_no_more_ids_than_there_are_wide_tokens(retold: bool) -> None:
    data = replace(DATA, wide_tokens=True, retold=retold)
    assert len(data.words) < len(WORDS)
    config = ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=len(data.words))
    assert data.prepare(Shanks(config)).batches(1, 0).batch(0).size
    with pytest.raises(UserError, match=f"at least {len(data.words)} ids"):
        data.prepare(Shanks(replace(config, vocab_size=len(data.words) - 1)))


@pytest.mark.parametrize("menu", [SMALL, WHOLE])
def test_wide_tokens_shorten_calls_and_change_no_text(menu: Menu) -> None:
    narrow, wide = OrderWords(MARKS, menu), OrderWords(MARKS, menu, wide=True)
    assert narrow.identity != wide.identity
    most = 0
    for number in range(200):
        request = menu.request(0, number)
        (call,) = request.calls
        text = written_call(call.arguments, MARKS)
        written = wide.encode(text)
        assert wide.decode(written) == narrow.decode(narrow.encode(text)) == text
        said = " ".join(call.arguments.values()).split()
        assert len(written) == 4 + len(call.arguments) + len(said)
        most = max(most, len(written))
        thought = "".join(f" {slot} {value}" for slot, value in call.arguments.items())
        for other in (thought, json.dumps({"ordered": call.arguments})):
            assert wide.decode(wide.encode(other)) == other
        assert len(wide.encode(thought)) == len(narrow.encode(thought))
    assert most < (31 if menu is WHOLE else 20)


@pytest.mark.parametrize(
    ("said", "is_over", "values"),
    [
        ("a medium", False, {}),  # it may become a medium roast
        ("a medium", True, {"size": "medium"}),
        ("a medium roast", False, {}),
        ("a medium roast latte", False, {"roast": "medium roast"}),
        ("a medium dark", False, {"size": "medium"}),
        ("a latte", False, {}),
        ("a latte please", False, {"coffeeDrink": "latte"}),
        ("a latte no", False, {}),
        ("a latte no wait make that a mocha", False, {}),
        ("a latte no wait make that a mocha", True, {"coffeeDrink": "mocha"}),
        ("a latte actually no a drip coffee and", False, {"coffeeDrink": "drip coffee"}),
        ("a drip", True, {}),
        ("", True, {}),
    ],
)
def test_value_is_determined_by_the_word_after_it(
    said: str, is_over: bool, values: dict[str, str]
) -> None:
    assert determined(said.split(), SMALL, is_over=is_over) == (values, "coffeeDrink" in values)


def test_word_that_ends_with_a_chunk_is_heard_in_it() -> None:
    chunks = order_chunks(["one", "two", "three", "four", "five", "six", "seven"], 2.0, 1.5)
    assert [chunk.words for chunk in chunks] == [
        ("one", "two", "three"), ("four", "five", "six"), ("seven",),
    ]  # fmt: skip
    assert [(chunk.start_s, chunk.end_s) for chunk in chunks] == [(0, 1.5), (1.5, 3.0), (3.0, 3.5)]


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize(("words_per_s", "chunk_s"), [(2.0, 0.5), (2.0, 2.0), (2.8, 1.3), (3.0, 9)])
def test_call_is_written_in_the_first_chunk_that_determines_all_arguments(
    words_per_s: float, chunk_s: float, late: int
) -> None:
    for request in REQUESTS:
        (call,) = request.calls
        rounds = order_rounds(request.text.split(), words_per_s, chunk_s, MARKS, late)
        assert arguments_of(rounds) == call.arguments
        heard = [len(one[HEARD].split()) for one in rounds if HEARD in one]
        assert sum(heard) == len(request.text.split())
        place = called_in(rounds)
        assert sum(heard[: place + 1]) > call.known_words
        assert sum(heard[:place]) <= call.known_words
        assert sum(RESPONSE in one for one in rounds) == sum(ANSWER in one for one in rounds) == 1
        assert ANSWER in rounds[-1]


def test_texts_of_orders_are_known_and_join_exactly() -> None:
    assert isinstance(WORDS, Vocabulary)
    for number in range(300):
        for text in (text for one in DATA.rounds(number) for text in one.values()):
            ids = WORDS.encode(text)
            assert WORDS.decode(ids) == text
            assert 1 not in ids
    told = WORDS.encode("<tool_response>OSError: busy</tool_response>")
    assert told[0] == WORDS.encode(MARKS.response)
    assert (told[1:-1] == 1).all()
    assert len(WORDS.encode(MARKS.interrupt)) == 1


def test_id_beyond_the_pieces_is_an_unknown_one() -> None:
    assert WORDS.decode(np.array([len(WORDS), len(WORDS) + 9])) == "<unknown>" * 2


def test_orders_are_functions_of_their_numbers() -> None:
    assert isinstance(DATA, DataSource)
    assert DATA.rounds(3) == SpokenOrdersData(row_ticks=99).rounds(3)
    assert DATA.rounds(3) != DATA.rounds(4)
    assert DATA.request(3) != DATA.request(3, held_out=True)
    prepared = DATA.prepare(model())
    first = prepared.batches(2, 0).batch(5)
    assert torch.equal(
        first.ticks[THOUGHT], DATA.prepare(model()).batches(2, 0).batch(5).ticks[THOUGHT]
    )
    assert prepared.fingerprint != SpokenOrdersData(seed=1).prepare(model()).fingerprint


def test_loss_is_on_thoughts_calls_and_answers_alone() -> None:
    """The targets are what the model writes, each one place after what it has read."""
    system = model()
    prepared = PreparedOrders(DATA, system.layout)
    for number in range(20):
        rounds = DATA.rounds(number)
        (batch,) = prepared.laid_out([prepared.told(number)])
        targets = batch.targets[THOUGHT].flatten()
        written = "".join(
            one[name] for one in rounds for name in ROUND if name in WRITTEN and name in one
        )
        assert WORDS.decode(targets[targets != UNSET_ID].numpy()) == written
        assert MARKS.response not in written
        assert MARKS.call in written
        everything = "".join(one[name] for one in rounds for name in ROUND if name in one)
        ids = torch.from_numpy(WORDS.encode(everything))
        assert batch.size == len(WORDS.encode(written))
        places = (targets != UNSET_ID).nonzero().flatten()
        assert torch.equal(ids[1:][places], targets[places])
    assert system.losses(batch)[THOUGHT].nats.isfinite()


def test_response_moves_what_follows_it_and_no_target() -> None:
    system = model()
    prepared = PreparedOrders(DATA, system.layout)
    told = prepared.told(0)
    other = [dict(one) for one in told.rounds]
    place = next(place for place, one in enumerate(other) if RESPONSE in one)
    other[place][RESPONSE] = other[place][RESPONSE].flip(0)
    one, changed = (prepared.laid_out([told._replace(rounds=r)])[0] for r in (told.rounds, other))
    assert torch.equal(one.targets[THOUGHT], changed.targets[THOUGHT])
    assert system.losses(one)[THOUGHT].nats != system.losses(changed)[THOUGHT].nats


def decoded(request: ToolRequest, late: int) -> tuple[str, str, ClockedDecoder, OrderWorld]:
    """Let a decoder hear an order; return what it read and wrote, and the row of the order."""
    rounds = order_rounds(request.text.split(), 2.8, 2.0, MARKS, late)
    row = "".join(one[name] for one in rounds for name in ROUND if name in one)
    config = ClockConfig(chunk_s=2.0, tokens_per_s=DATA.tokens_per_s)
    clock = SimulatedClock(config.tokens_per_s)
    world = OrderWorld()
    reciter = Reciter(rounds, WORDS)
    calls = ClockedCalls(Calls(world.tools(), lambda: TimedLane(FakeClock())), clock)
    tools: Tools = LateTools(reciter, late) if late else calls
    decoder = ClockedDecoder(reciter, config, clock, tools)
    chunks = order_chunks(request.text.split(), 2.8, 2.0)
    for place, chunk in enumerate(chunks):
        content = "".join(f" {word}" for word in chunk.words)
        decoder.hear(content, chunk.start_s, chunk.end_s, last=place == len(chunks) - 1)
    return reciter.context, row, decoder, world


@pytest.mark.parametrize("late", [0, 1, 2])
def test_row_is_what_a_decoder_reads_and_writes(late: int) -> None:
    num_early = 0
    for request in REQUESTS[:20]:
        context, row, decoder, world = decoded(request, late)
        assert context == row
        (call,) = decoder.timeline.where(kind="call")
        assert call.payload["ok"]
        num_early += call.payload["early"]
        if not late:  # the call was parsed, and made in a world
            assert [*world.in_force] == [(one.name, one.arguments) for one in request.calls]
        closers = [one.payload["closed"] for one in decoder.timeline.where(kind="thought")]
        assert "budget" not in closers
        assert ("clock" in closers) == bool(late and call.payload["early"])
    assert 0 < num_early < 20


def test_recipe_learns_from_orders() -> None:
    run = shanks_tools_small()
    assert isinstance(run, Run)
    assert isinstance(run.data, SpokenOrdersData)
    prepared = run.data.prepare(Shanks(small()))
    batch = prepared.batches(2, 0).batch(0)
    assert batch.ticks[THOUGHT].shape == (2, 384)
    held_out = prepared.held_out_units()
    assert held_out is not None
    assert len([*held_out.batches(0)]) == 1
    assert "orders" in prepared.describe()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("words_per_s", "chunk_s"), (0.0, -1.0, float("nan"), float("inf"))),
        *product(("row_ticks", "num_rows"), (0, -1)),
    ],
)
def test_what_must_be_above_zero_is(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"`{name}` must be above 0: got {value}"):
        SpokenOrdersData(**{name: value})  # type: ignore[arg-type]


def test_no_text_that_is_held_out_is_learned() -> None:
    held_out = {DATA.request(number, held_out=True).text for number in range(100)}
    assert not held_out & {DATA.request(number).text for number in range(3000)}


def test_no_order_that_is_said_freely_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [DATA.request(number) for number in range(300)]
    ways = [freely_said(request, Random(n)) for n, request in enumerate(requests)]
    assert any(source._is_held_out(" ".join(filter(None, said))) for said in ways)
    held_out = {DATA.request(number, held_out=True).text for number in range(2000)}
    data = SpokenOrdersData(freely=1.0)
    for listened in (words_heard, lambda words, *_: words):
        monkeypatch.setattr(source, "words_heard", listened)
        heard = {
            "".join(one.get(HEARD, "") for one in data.rounds(number)).strip()
            for number in range(300)
        }
        assert not held_out & heard
    assert not any(map(source._is_held_out, heard))  # of what was said


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="`late` must be from 0 to 1"):
        SpokenOrdersData(late=1.5)
    with pytest.raises(UserError, match="`freely` must be from 0 to 1: got -1"):
        SpokenOrdersData(freely=-1.0)
    with pytest.raises(UserError, match="`pace_spread` must be"):
        SpokenOrdersData(pace_spread=1.0)
    with pytest.raises(UserError, match="at least 114 ids"):
        DATA.prepare(Shanks(ShanksConfig(tower=tiny_models.tower(8, 1, 1, 512), vocab_size=100)))
    with pytest.raises(UserError, match="`row_ticks` must hold an item"):
        SpokenOrdersData(row_ticks=20).prepare(model()).batches(1, 0).batch(0)


def test_silence_takes_the_time_of_words_and_is_not_heard() -> None:
    said = ["", "a", "", "", "latte", "please", ""]
    chunks = order_chunks(said, 1.0, 2.0)
    assert [chunk.words for chunk in chunks] == [("a",), (), ("latte", "please"), ()]
    assert [chunk.end_s for chunk in chunks] == [2.0, 4.0, 6.0, 7.0]
    rounds = order_rounds(said, 1.0, 2.0, MARKS)
    assert [one[HEARD] for one in rounds if HEARD in one] == [" a", "", " latte please", ""]
    assert called_in(rounds) == 2


def test_orders_that_are_said_freely_are_the_same_orders_heard_worse() -> None:
    plain, freely = SpokenOrdersData(), SpokenOrdersData(freely=1.0)
    known = set(plain.words.pieces)
    num_heard = num_said = num_silent = 0
    for number in range(300):
        (call,) = plain.request(number).calls
        said = freely_said(plain.request(number), Random(number))
        words = list(filter(None, said))
        assert {f" {word}" for word in words} <= known
        assert determined(words, plain.menu, is_over=True).values in (call.arguments, {})
        rounds = freely.rounds(number)
        heard = "".join(one.get(HEARD, "") for one in rounds).split()
        if now := determined(heard, plain.menu, is_over=True).values:
            assert arguments_of(rounds) == now == call.arguments
        else:  # nobody ordered
            num_silent += 1
            assert not any(MARKS.call in one.get(THOUGHT, "") for one in rounds)
            assert rounds[-1][ANSWER] == f" sorry{MARKS.stop}"
        num_heard += len(heard)
        num_said += len(words)
        assert freely.rounds(number, held_out=True) == plain.rounds(number, held_out=True)
        assert rounds == freely.rounds(number)
    assert 0.8 < num_heard / num_said < 0.95
    assert 5 < num_silent < 30
    assert SpokenOrdersData(freely=0.5).rounds(0) in (plain.rounds(0), freely.rounds(0))


@pytest.mark.parametrize(
    ("said", "values", "is_complete"),
    [
        ("a house", {}, False),
        ("a house coffee with", {"coffeeDrink": "house coffee"}, False),
        ("a latte and", {"coffeeDrink": "latte"}, False),
        ("a latte and that", {"coffeeDrink": "latte"}, True),
        ("a latte and a bit of", {"coffeeDrink": "latte"}, False),
        ("a latte and a bit of a", {"coffeeDrink": "latte"}, True),
        ("a latte with milk", {"coffeeDrink": "latte"}, False),
        ("a latte with milk and", {"coffeeDrink": "latte", "milkAmount": "milk"}, False),
        ("a latte with milk please", {"coffeeDrink": "latte", "milkAmount": "milk"}, True),
        ("a latte please with milk please", {"coffeeDrink": "latte", "milkAmount": "milk"}, True),
        ("a latte no wait", {}, False),
        (
            "a latte actually no a mocha with lots of sugar and skim milk thank",
            {"coffeeDrink": "mocha", "milkAmount": "skim milk", "sugarAmount": "lots of sugar"},
            True,
        ),
        ("with milk please", {"milkAmount": "milk"}, False),
    ],
)
def test_order_of_the_whole_menu_is_complete_when_nothing_can_be_added(
    said: str, values: dict[str, str], is_complete: bool
) -> None:
    assert determined(said.split(), WHOLE, is_over=False) == (values, is_complete)


def test_orders_of_the_whole_menu_are_called_when_they_are_complete() -> None:
    data = SpokenOrdersData(whole_menu=True, freely=1.0)
    slots: set[str] = set()
    drinks: set[str] = set()
    for number in range(200):
        request = data.request(number, held_out=True)
        (call,) = request.calls
        words = request.text.split()
        rounds = data.rounds(number, held_out=True)
        assert arguments_of(rounds) == call.arguments
        assert determined(words, WHOLE, is_over=True).values == call.arguments
        heard = [len(one[HEARD].split()) for one in rounds if HEARD in one]
        place = called_in(rounds)
        assert sum(heard[: place + 1]) > call.known_words
        assert sum(heard[:place]) <= call.known_words + 1  # "and that": the second word decides
        assert request.stale == () or request.stale[0][1] != call.arguments
        slots |= call.arguments.keys()
        drinks.add(call.arguments["coffeeDrink"])
        freely = data.rounds(number)
        for text in (text for one in freely for text in one.values()):
            assert 1 not in data.words.encode(text)
        (wanted,) = data.request(number).calls
        said = list(filter(None, freely_said(data.request(number), Random(number))))
        assert determined(said, WHOLE, is_over=True).values in (wanted.arguments, {})
        if any(MARKS.call in one.get(THOUGHT, "") for one in freely):
            assert arguments_of(freely) == wanted.arguments
        else:
            assert freely[-1][ANSWER] == f" sorry{MARKS.stop}"
        assert len(data.words.encode(rounds[-1][ANSWER])) <= 23 < data.answer_tokens
    assert slots == {*WHOLE.slots}
    assert drinks == {*DRINKS}


def test_runs_from_before_the_whole_menu_can_be_continued() -> None:
    """Their rows and the digest of their data are what they were then."""
    digests = {
        freely: json_digest([SpokenOrdersData(freely=freely).rounds(n) for n in range(100)])
        for freely in (0.0, 0.75)
    }
    assert digests == {
        0.0: "48dc358418fdb859d3c77446ef81e47260365af2234bc06e229999e313791e89",
        0.75: "72725798985af2243c28ec2914dfbc4141f5ff5eb2886aa9c5983c7891659657",
    }
    fingerprint = SpokenOrdersData(freely=0.75).prepare(model()).fingerprint
    assert fingerprint == {
        "orders": {"train": "83150af1bfabb926ad2d0494209e6df3087ac8ca2b46c88a57afa5433cf6bced"}
    }
    data = SpokenOrdersData(freely=0.75, whole_menu=True)
    whole = data.prepare(Shanks(replace(small(), vocab_size=len(data.words))))
    assert whole.fingerprint != fingerprint


def test_whole_menu_needs_a_model_with_its_words() -> None:
    run = shanks_menu_small()
    assert isinstance(run.data, SpokenOrdersData)
    assert isinstance(run.system, ShanksConfig)
    assert run.data.prepare(Shanks(run.system)).batches(2, 0).batch(0).ticks[THOUGHT].shape[1] > 300
    with pytest.raises(UserError, match="at least 144 ids"):
        run.data.prepare(Shanks(small()))
    assert run.data.words.identity != WORDS.identity
