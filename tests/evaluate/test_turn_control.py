"""Acts of dialogues under the whole of another dialogue: pairs, counts and floors."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.data.tasks.dialogues import Dialogues, _closed
from counterpoint.data.tasks.items import Item, WholeLabel, Writer
from counterpoint.data.tasks.source import item_batch
from counterpoint.errors import UserError
from counterpoint.evaluate import turn_control, write_on
from counterpoint.evaluate.control import control
from counterpoint.evaluate.item_whole import Followed, merged
from counterpoint.evaluate.turn_control import (
    control_turns,
    paired_turns,
    turn_floors,
    turns_of,
)
from counterpoint.systems.contract import System
from tests.evaluate.arms import untrained_arm


def _dialogue(*turns: tuple[str, str, str], intent: str = "Buy", closed: bool = False) -> Item:
    """Return a dialogue of turns: words of the user, act, words of the system."""
    writer = Writer()
    for user, act, said in turns:
        writer.write(f"U: {user}\n")
        writer.label(intent)
        writer.write("S [")
        writer.answer("act", act + "]" * closed)
        writer.write(" " if closed else "] ")
        writer.answer("said", said)
        writer.write("\n")
    writer.write("city=")
    writer.answer("slot", "Rome")
    return writer.item()


DIALOGUES = [
    _dialogue(("Hello", "OFFER", "A room?"), ("No.", "GOODBYE", "Bye.")),
    _dialogue(("Where", "REQUEST", "In Rome"), ("Yes", "OFFER", "A bus.")),
    _dialogue(("Price", "OFFER", "Ten.")),
    _dialogue(("Too long", "INFORM", "Six.")),
]


def test_turns_are_the_acts_with_their_words() -> None:
    turns = turns_of(DIALOGUES)
    assert [(one.dialogue, one.act.text) for one in turns] == [
        (0, "OFFER"),
        (0, "GOODBYE"),
        (1, "REQUEST"),
        (1, "OFFER"),
        (2, "OFFER"),
        (3, "INFORM"),
    ]
    for turn in turns:
        assert turn.item.text[: turn.start].endswith("\n")
        assert turn.item.text[turn.start :].startswith(f"S [{turn.act.text}] ")
        assert [one.kind for one in turn.item.answers] == ["act", "said"]


def test_paired_turns_begin_at_one_tick_with_other_acts() -> None:
    """The first turns of three dialogues begin at one tick; all others stand alone."""
    turns, donors = paired_turns(DIALOGUES)
    assert [
        (one.dialogue, turns[donor].dialogue) for one, donor in zip(turns, donors, strict=True)
    ] == [
        (0, 1),
        (1, 2),
        (2, 1),
    ]
    for turn, donor in zip(turns, donors, strict=True):
        assert turn.start == turns[donor].start == len("U: Hello\n")
        assert turn.act.text != turns[donor].act.text
    with pytest.raises(UserError, match="same tick"):
        control_turns(untrained_arm("full"), DIALOGUES[2:])


@pytest.mark.parametrize(
    ("arm", "ways"), [("two_stream", ["swap", "prompt"]), ("full", ["prompt"])]
)
def test_an_untrained_system_obeys_nobody(arm: str, ways: list[str]) -> None:
    found = control_turns(untrained_arm(arm), DIALOGUES)
    assert [one.way for one in found] == ways
    for one in found:
        assert one.num_pairs == one.num_dialogues == 3
        assert one.right == one.already == one.kept == one.obeyed == 0
        assert [cost.kind for cost in one.costs] == ["act", "said"]
        assert all(abs(cost.swap_delta) > 1e-4 for cost in one.costs)
        assert all(cost.num_answers == 3 for cost in one.costs)


def test_the_exchange_comes_after_all_that_stands_before_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The id that begins a document and the symbols before the turn are read, and no others."""
    seen: list[tuple[int, int]] = []
    costed: list[int] = []

    def write_both(system: System, beginnings: Any, *args: Any, **more: Any) -> Any:
        seen.extend((one.exchange_ticks, one.num_given) for one in beginnings)
        return write_on.write_both(system, beginnings, *args, **more)

    def costs(system: System, items: Any, first: int, **more: Any) -> Any:
        costed.append(first)
        return control(system, items, first, **more)

    monkeypatch.setattr(turn_control, "write_both", write_both)
    monkeypatch.setattr(turn_control, "control", costs)
    control_turns(untrained_arm("two_stream"), DIALOGUES)
    before = len("U: Hello\n")
    assert seen == [(1 + before, before + len("S ["))] * 3
    assert costed == [1 + before]


def test_a_system_that_says_what_its_whole_says_obeys_the_other_whole() -> None:
    """Only the labels tell the dialogues apart; they hold before the exchange."""
    dialogues = []
    for act, intent in (("OFFER", "Buy"), ("GOODBYE", "Sell"), ("OFFER", "Buy")):
        item = _dialogue(("Hello", act, "Bye."), closed=True)
        dialogues.append(replace(item, whole=(WholeLabel(1, intent),)))
    system = untrained_arm("two_stream_text").train()
    batch = item_batch(dialogues, system.layout)
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        system.loss(batch).total.backward()
        optimizer.step()
    found = {one.way: one for one in control_turns(system.eval(), dialogues)}
    for one in found.values():
        assert (one.num_pairs, one.right, one.already) == (3, 1, 0)
        assert (one.kept, one.obeyed) == (0, 1)
        told = next(cost for cost in one.costs if cost.kind == "act")
        assert told.right == 1
        assert told.kept == 0
        assert told.swap_delta > 10
    # An exchange between dialogues that differ in nothing but the act obeys as it keeps.
    blind = [replace(item, whole=dialogues[0].whole) for item in dialogues]
    for one in control_turns(system, blind):
        assert one.right == one.kept == pytest.approx(2 / 3)
        assert one.already == one.obeyed == pytest.approx(1 / 3)


def test_a_system_that_reads_the_other_dialogue_pays_what_that_one_pays() -> None:
    """In the way "prompt" the true act costs what it costs after the other beginning."""
    system = untrained_arm("full")
    pairs = paired_turns(DIALOGUES[:2])
    (one,) = control_turns(system, DIALOGUES[:2])
    mixed = []
    for turn, donor in zip(pairs.turns, pairs.donors, strict=True):
        other = pairs.turns[donor].item.text[: turn.start]
        mixed.append(turn.item.__class__(other + turn.item.text[turn.start :], turn.item.answers))
    expected = control(system, mixed, pairs.turns[0].start + 1)[0]
    for cost, wanted in zip(one.costs, expected.answers, strict=True):
        assert cost.other_bits == pytest.approx(wanted.own_bits, rel=1e-4)
        assert cost.own_bits == pytest.approx(wanted.other_bits, rel=1e-4)


@pytest.mark.parametrize("arm", ["hdlm", "two_stream_text"])
def test_the_whole_of_an_equal_dialogue_changes_nothing(arm: str) -> None:
    """Dialogues that differ in their acts only have the same beginnings and labels."""
    twins = [_dialogue(("Hello", act, "Bye.")) for act in ("OFFER", "GREET")]
    for one in control_turns(untrained_arm(arm), twins):
        for cost in one.costs:
            assert cost.swap_delta == pytest.approx(0, abs=1e-4)
    foreign = [
        _dialogue(("Hello", act, "Bye."), intent=intent)
        for act, intent in (("OFFER", "Buy"), ("GREET", "Sell"))
    ]
    for one in control_turns(untrained_arm(arm), foreign):
        changed = any(abs(cost.swap_delta) > 1e-5 for cost in one.costs)
        assert changed == (one.way == "text")


def test_floors_are_counted_from_other_acts() -> None:
    pairs = paired_turns(DIALOGUES)  # true OFFER REQUEST OFFER; other REQUEST OFFER REQUEST
    floors = turn_floors(pairs, ["OFFER", "OFFER", "OFFER", "REQUEST", "GOODBYE"])
    assert floors["most frequent"] == {
        "kept": pytest.approx(2 / 3),
        "obeyed": pytest.approx(1 / 3),
    }
    assert floors["chance"] == {
        "kept": pytest.approx((0.6 + 0.2 + 0.6) / 3),
        "obeyed": pytest.approx((0.2 + 0.6 + 0.2) / 3),
    }


def test_floors_need_acts() -> None:
    with pytest.raises(UserError, match="got none"):
        turn_floors(paired_turns(DIALOGUES), [])


def test_batches_are_merged_by_their_numbers_of_answers() -> None:
    first = Followed(
        kind="act", num_answers=3, own_bits=1, other_bits=2, right=1, kept=0, obeyed=1,
        num_differing=1,
    )  # fmt: skip
    second = Followed(
        kind="act", num_answers=1, own_bits=5, other_bits=2, right=0, kept=1, obeyed=0,
        num_differing=3,
    )  # fmt: skip
    both = merged([first, second])
    assert (both.num_answers, both.num_differing) == (4, 4)
    assert (both.own_bits, both.other_bits, both.right, both.kept) == (2, 2, 0.75, 0.25)
    assert both.obeyed == 0.25
    assert merged([first]) == first


def test_closed_acts_end_with_their_bracket() -> None:
    turn = {"speaker": "user", "text": "Hi", "frames": [{"intent": "Buy", "slots": {}, "acts": []}]}
    reply = {
        "speaker": "system", "text": "Yes?", "frames": [{"intent": "", "slots": {}, "acts": ["GO"]}]
    }  # fmt: skip
    plain = Dialogues(folder="")._item([turn, reply])
    closed = _closed(plain)
    assert closed.text == plain.text
    assert [one.text for one in closed.answers] == ["GO]", "Yes?"]
    (own,), (other,) = turns_of([plain]), turns_of([closed])
    assert own.name == other.name == "GO"
    assert own.start == other.start
