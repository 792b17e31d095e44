"""Orders: exact answers, pauses before the order is complete, wordings that are held out."""

import random
from itertools import pairwise
from typing import Literal

import pytest

from counterpoint.data.making.order_wordings import (
    DEVICES,
    DIGITS,
    HELD_OUT_PAIRS,
    STATES,
    Split,
    families,
    near,
)
from counterpoint.data.making.orders import (
    LONG_PAUSE_S,
    Order,
    Pairs,
    answers,
    bare_digit,
    draw_order,
    draw_pause,
    interruption,
    listening_scripts,
    order_scripts,
)


def orders(split: Split, count: int, pairs: Pairs = "trained") -> list[Order]:
    rng = random.Random(1)
    return [draw_order(split, rng, pairs) for _ in range(count)]


def content(order: Order) -> set[str]:
    """The words of an order that decide the answer."""
    return set(order.text.split()) & {*DIGITS, *DEVICES, *STATES}


@pytest.mark.parametrize("split", ["train", "tuning", "held_out"])
def test_answer_repeats_what_was_ordered_and_nothing_else(split: Split) -> None:
    for order in orders(split, 500):
        assert len(content(order)) in (1, 2)
        said = set(order.reply.split()) & {*DIGITS, *DEVICES, *STATES}
        assert said == content(order)


def test_every_answer_is_asked_for_in_all_splits() -> None:
    trained = len(DIGITS) + len(DEVICES) * len(STATES) - len(HELD_OUT_PAIRS)
    for split in SPLITS:
        assert len({order.reply for order in orders(split, 2000)}) == trained
        new = {order.reply for order in orders(split, 200, "held_out")}
        assert len(new) == len(HELD_OUT_PAIRS)
    assert len(set(answers())) == trained + len(HELD_OUT_PAIRS)
    assert {order.phrases for order in orders("train", 2000)} <= set(answers())


def test_pairs_that_are_held_out_are_never_said_in_training() -> None:
    """Every device and every state of them is, and nothing tells them from each other."""
    assert {device for device, _ in HELD_OUT_PAIRS} == set(DEVICES)
    assert {state for _, state in HELD_OUT_PAIRS} == set(STATES)
    said = [turn.text for script in order_scripts("train", 500) for turn in script.turns]
    said += [turn.text for script in listening_scripts(500) for turn in script.turns]
    for text in said:
        assert not any(set(pair) <= set(text.split()) for pair in HELD_OUT_PAIRS), text


@pytest.mark.parametrize(
    ("text", "is_near"),
    [
        ("a b c", True),
        ("a x c", True),
        ("a b c d", True),
        ("b c", True),
        ("a c", True),
        ("x b c", True),
        ("a c b", False),
        ("a b c d e", False),
        ("x b y", False),
        ("b c d", False),
        ("a", False),
    ],
)
def test_texts_that_differ_by_a_word(text: str, is_near: bool) -> None:
    assert near(["a b c"])(text) is is_near
    assert near([text, "k l m n"])("a b c") is is_near


@pytest.mark.parametrize("kind", ["digit", "device"])
def test_held_out_wordings_differ_by_two_words_at_least(kind: Literal["digit", "device"]) -> None:
    train = {text for family in families(kind, "train") for text in family}
    tuning, held_out = (set(families(kind, split)[0]) for split in ("tuning", "held_out"))
    assert not any(map(near(tuning | held_out), train))
    assert not any(map(near(held_out), tuning))


def test_held_out_wordings_are_not_trained_on() -> None:
    """Also not with words around them."""
    held_out = {order.text for split in SPLITS[1:] for order in orders(split, 5000)}
    held_out -= {bare_digit(digit).text for digit in DIGITS}
    said = {order.text for order in orders("train", 5000)}
    said |= {turn.text for script in listening_scripts(1000) for turn in script.turns}
    for text in said:
        assert not any(f" {other} " in f" {text} " for other in held_out), text


def test_words_of_held_out_wordings_are_trained_on() -> None:
    known = {word for order in orders("train", 5000) for word in order.text.split()}
    assert {word for order in orders("held_out", 5000) for word in order.text.split()} <= known


SPLITS: tuple[Split, Split, Split] = ("train", "tuning", "held_out")


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


def test_late_pauses_come_behind_the_last_content_word() -> None:
    rng = random.Random(2)
    for order in orders("held_out", 300):
        words = order.text.split()
        pause = draw_pause(order, rng, LONG_PAUSE_S, late=True)
        if pause is None:
            assert order.complete == len(words)
            continue
        assert order.complete <= pause[0] < len(words)
        assert 1.6 <= pause[1] <= 3.5


def test_scripts_have_pauses_of_every_kind() -> None:
    kinds = set()
    for script in order_scripts("train", 400):
        for turn in script.turns:
            content_words = [w for w in turn.words if w in {*DIGITS, *DEVICES, *STATES}]
            for word, seconds in turn.pauses:
                late = not set(content_words) & set(turn.words[word:])
                kinds.add((late, seconds > 1.6))
    assert kinds == {(late, long) for late in (False, True) for long in (False, True)}


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
