"""Verifiers that raise, hang or end their process have a defined outcome; pass@k is unbiased."""

import itertools
import os
import time

import pytest

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.prompts import written_text
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import answer_reward
from counterpoint.data.tasks.verify import TimedVerifier, Verified, pass_at_k
from counterpoint.errors import UserError

ITEM = Item("", ())


def misbehaving(item: Item, text: str) -> float:
    """Does what the text says."""
    if text == "raise":
        raise KeyError(text)
    if text == "hang":
        while True:
            time.sleep(0.01)
    if text == "exit":
        os._exit(3)
    if text == "none":
        return None  # type: ignore[return-value]
    return float(text)


def test_every_outcome_is_defined_and_the_next_call_works() -> None:
    verifier = TimedVerifier(misbehaving, limit_s=0.5)
    try:
        assert verifier(ITEM, "0.25") == Verified(0.25)
        for text in ("raise", "none", "nan", "inf", "exit"):
            assert verifier(ITEM, text) == Verified(0.0, "raised")
        assert verifier(ITEM, "hang") == Verified(0.0, "timed out")  # it never returns by itself
        assert verifier(ITEM, "1") == Verified(1.0)
    finally:
        verifier.close()
    with pytest.raises(UserError, match="above 0"):
        TimedVerifier(misbehaving, limit_s=0)


def test_a_verifier_that_is_dropped_leaves_no_process() -> None:
    verifier = TimedVerifier(misbehaving)
    assert verifier(ITEM, "1") == Verified(1.0)
    process = verifier._process
    del verifier
    process.join(10)
    assert process.exitcode is not None


def test_solutions_are_judged_in_another_process() -> None:
    verifier = TimedVerifier(answer_reward)
    try:
        for number in range(5):
            item = Reasoning().item(0, number)
            assert verifier(item, item.solution) == Verified(1.0)
            assert verifier(item, item.solution[1:-1]) == Verified(0.0)
    finally:
        verifier.close()


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(k: int) -> None:
    right = [0, 1, 3, 7]
    shares = []
    for own in right:
        samples = [True] * own + [False] * (7 - own)
        chosen = list(itertools.combinations(samples, k))
        shares.append(sum(map(any, chosen)) / len(chosen))
    assert pass_at_k(right, 7, k) == pytest.approx(sum(shares) / 4)


def test_pass_at_k_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="1 to 4"):
        pass_at_k([1], 4, 5)
    with pytest.raises(UserError, match="num_right"):
        pass_at_k([5], 4, 1)
    with pytest.raises(UserError, match="num_right"):
        pass_at_k([], 4, 1)


def too_large(item: Item, text: str) -> float:
    """Give a whole number that no float holds."""
    return 10**400


def test_a_number_too_large_for_a_float_is_a_failure_and_stops_nothing() -> None:
    """A verifier may give any number; training goes on without it."""
    verify = TimedVerifier(too_large)
    assert verify(ITEM, "1") == Verified(0.0, "raised")
    verify.close()


def test_an_id_that_is_no_symbol_is_not_left_out_before_a_judgement() -> None:
    """An answer is not right because what stands between its symbols was dropped."""
    item = Reasoning(families=("arithmetic",)).item(0, 0)
    answer = item.solution[item.answer_start - item.thought_start :]
    ids = list(answer.encode())
    assert answer_reward(item, written_text(ids)) == 1
    for strange in (128, 255, 256):
        assert answer_reward(item, written_text([*ids[:-1], strange, ids[-1]])) == 0
