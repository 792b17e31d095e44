"""Control by exchange of the whole: which ways a system allows, and what they measure."""

from dataclasses import replace

import pytest
import torch

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.evaluate.control import control
from counterpoint.recipes.part_whole import part_whole
from counterpoint.systems import build_system
from counterpoint.systems.contract import System

TASK = Logbook(num_events=12, num_entities=3, margin=1, whole_share=1.0)
FIRST = 37
WAYS = {
    "two_stream_fixed": {"swap", "prompt"},
    "hrt": {"swap", "prompt"},
    "hnet": {"swap", "prompt"},
    "window_summary": {"swap", "prompt"},
    "full": {"prompt"},
    "hdlm": {"text", "prompt"},
    "two_stream_text": {"text", "prompt"},
}


def _system(arm: str) -> System:
    config = next(one.system for one in part_whole().arms if one.name == arm)
    system = build_system(config, 0).eval()
    for name, weight in system.named_parameters():
        if name.endswith(("head.weight", "gate", "residual.weight")):
            torch.nn.init.normal_(weight, std=0.3)
    return system


def _items(number: int) -> list[Item]:
    return [TASK.item(0, one) for one in range(number)]


@pytest.mark.parametrize("arm", WAYS)
def test_a_foreign_whole_changes_answers_and_an_equal_one_does_not(arm: str) -> None:
    system = _system(arm)
    found = control(system, _items(4), FIRST, symbols=True)
    assert {one.way for one in found} == WAYS[arm]
    for one in found:
        assert {answer.kind.split(",")[0] for answer in one.answers} == {"whole", "part"}
        assert any(abs(answer.swap_delta) > 1e-5 for answer in one.answers), one.way
        assert one.num_symbols > 0
    same = control(system, [_items(1)[0]] * 2, FIRST, symbols=True)
    for one in same:
        assert one.other_symbol_bits == pytest.approx(one.own_symbol_bits, abs=1e-5)
        for answer in one.answers:
            assert answer.swap_delta == pytest.approx(0, abs=1e-5)
            assert answer.num_differing == 0


def test_a_donor_that_does_not_fit_is_told_and_the_other_ways_are_left() -> None:
    config = next(one.system for one in part_whole().arms if one.name == "two_stream_recall")
    other_ends = (Item("ab cd ef", ()), Item("abcd ef ", ()))
    with pytest.warns(UserWarning, match="'swap' is left out for all items: .*donor"):
        found = control(build_system(config, 0).eval(), other_ends, 5, symbols=True)
    assert [one.way for one in found] == ["prompt"]


def test_with_another_prompt_an_item_goes_on_as_if_it_had_begun_so() -> None:
    system = _system("full")
    first, second = _items(2)
    both = control(system, [first, second], FIRST)[0]
    # The second beginning with the continuation of the first, and the other way round.
    size = FIRST - 1
    mixed = [
        replace(first, text=second.text[:size] + first.text[size:]),
        replace(second, text=first.text[:size] + second.text[size:]),
    ]
    own = control(system, mixed, FIRST)[0]
    told = sum(one.other_bits * one.num_answers for one in both.answers)
    expected = sum(one.own_bits * one.num_answers for one in own.answers)
    assert told == pytest.approx(expected, rel=1e-5)
