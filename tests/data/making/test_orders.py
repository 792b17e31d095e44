"""Orders: exact answers, pauses before the order is complete, wordings that are held out."""

import random
from itertools import pairwise

import pytest

from counterpoint.data.making.order_wordings import DEVICES, DIGITS, STATES, Split
from counterpoint.data.making.orders import (
    Order,
    draw_order,
    draw_pause,
    interruption,
    listening_scripts,
    order_scripts,
)


def orders(split: Split, count: int) -> list[Order]:
    rng = random.Random(1)
    return [draw_order(split, rng) for _ in range(count)]


def content(order: Order) -> set[str]:
    """The words of an order that decide the answer."""
    return set(order.text.split()) & {*DIGITS, *DEVICES, *STATES}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_answer_repeats_what_was_ordered_and_nothing_else(split: Split) -> None:
    for order in orders(split, 500):
        assert len(content(order)) in (1, 2)
        said = set(order.reply.split()) & {*DIGITS, *DEVICES, *STATES}
        assert said == content(order)


def test_every_answer_is_asked_for_in_both_splits() -> None:
    expected = len(DIGITS) + len(DEVICES) * len(STATES)
    for split in ("train", "held_out"):
        assert len({order.reply for order in orders(split, 2000)}) == expected


def test_held_out_wordings_are_not_trained_on() -> None:
    """Also not with words around them."""
    held_out = {order.text for order in orders("held_out", 5000)}
    said = {order.text for order in orders("train", 5000)}
    said |= {turn.text for script in listening_scripts(1000) for turn in script.turns}
    for text in said:
        assert not any(f" {other} " in f" {text} " for other in held_out), text


def test_words_of_held_out_wordings_are_trained_on() -> None:
    known = {word for order in orders("train", 5000) for word in order.text.split()}
    assert {word for order in orders("held_out", 5000) for word in order.text.split()} <= known


SPLITS: tuple[Split, Split] = ("train", "held_out")


def test_an_order_is_complete_with_its_last_content_word() -> None:
    for order in orders("train", 500):
        words = order.text.split()
        assert content(order) <= set(words[: order.complete])
        assert not content(order) <= set(words[: order.complete - 1])


def test_pauses_come_before_the_order_is_complete() -> None:
    rng = random.Random(2)
    places = set()
    for order in orders("train", 500):
        if (pause := draw_pause(order, rng)) is None:
            assert order.complete == 1
            continue
        word, seconds = pause
        assert 1 <= word < order.complete
        assert 0.4 <= seconds <= 1.6
        places.add(order.complete - word)
    assert {1, 2, 3} <= places


def test_interruption_keeps_its_pause_at_the_same_word() -> None:
    order = Order(text="my number is two", phrases=("two",), complete=4)
    for seed in range(20):
        turn = interruption(order, random.Random(seed), 2, ((3, 0.5),))
        (word, seconds), = turn.pauses  # fmt: skip
        assert turn.words[word] == "two"
        assert seconds == 0.5


def test_scripts_are_a_pure_function_and_use_everything() -> None:
    scripts = order_scripts("train", 60, seed=3)
    assert scripts == order_scripts("train", 60, seed=3)
    assert scripts[:20] == order_scripts("train", 20, seed=3)
    assert scripts != order_scripts("train", 60, seed=4)
    kinds = {turn.kind for script in scripts for turn in script.turns}
    assert kinds == {"turn", "interruption", "backchannel"}
    for script in scripts:
        assert script.turns[0].speaker == "user"
        for turn, answer in zip(script.turns, script.turns[1:], strict=False):
            if turn.speaker == "user" and turn.kind != "backchannel":
                assert answer.speaker == "agent"
                assert answer.gap_s is not None
                assert 0.45 <= answer.gap_s <= 0.55
            if turn.speaker == "agent":
                assert tuple(turn.phrases) in REPLIES


def test_interruptions_come_early_enough_to_be_cut() -> None:
    places = set()
    for script in order_scripts("train", 300):
        for answer, turn in pairwise(script.turns):
            if turn.kind == "interruption":
                assert turn.after_word is not None
                assert turn.after_word < len(answer.words) - 3
                assert turn.yield_s is not None
                assert 0.4 <= turn.yield_s <= 0.5
                places.add(turn.after_word)
    assert places == set(range(7))


REPLIES = {order.phrases for order in orders("train", 2000)}


def test_listening_scripts_are_the_user_alone() -> None:
    scripts = listening_scripts(40, seed=2)
    assert scripts[:10] == listening_scripts(10, seed=2)
    assert {turn.speaker for script in scripts for turn in script.turns} == {"user"}
    said = {word for script in scripts for turn in script.turns for word in turn.words}
    assert {*DIGITS, *DEVICES, *STATES} <= said


def test_phrases_before_the_content_are_the_same_for_all() -> None:
    first = {order.phrases[0] for order in orders("train", 500)}
    assert first == {"you said", "all right"}
    assert len({order.phrases[-1] for order in orders("train", 500)}) == 2
