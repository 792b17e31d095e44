"""Poems under the plan of another poem: what is counted, and which floors there are."""

import pytest
import torch

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.source import item_batch
from counterpoint.errors import UserError
from counterpoint.evaluate.poem_control import (
    control_poems,
    judged,
    paired_poems,
    poem_floors,
)
from tests.evaluate.arms import untrained_arm

TASK = Acrostic(num_lines=4, filler=6, lengths=(4,))
ITEMS = [TASK.item(0, number) for number in range(4)]


def _planned(word: str, scheme: str) -> Item:
    return Item("", (), {"word": list(word), "scheme": scheme, "length": 4, "prompt": "plan\n"})


def test_poems_are_scored_against_both_plans() -> None:
    own, other = _planned("bcdf", "AABB"), _planned("bghf", "ABAB")
    # The plans differ in the second and third letter: "c" is the own one, "h" the other one.
    poem = "bata\ncuta\nhimu\nfamu\n"
    found = judged(TASK, [own], [other], [poem])
    assert (found.own_letters, found.other_letters) == (0.5, 0.5)
    assert (found.own_rhymes, found.other_rhymes) == (1, 0)
    assert (found.own_length, found.other_length, found.violations) == (1, 1, 0)
    # A line is missing, one is too long, and one letter in 12 is a vowel where none may be.
    found = judged(TASK, [own], [other], ["bata\ncatae\nhii"])
    assert (found.own_letters, found.other_letters) == (0.5, 0.5)
    assert found.own_length == 0.25
    assert found.violations == pytest.approx(100 * 2 / 12)


def test_floors_are_those_of_faultless_poems() -> None:
    strangers = [TASK.item(1, number) for number in range(4)]
    floors = poem_floors(TASK, ITEMS, strangers)
    assert (floors["own"].own_letters, floors["own"].other_letters) == (1, 0)
    assert (floors["other"].own_letters, floors["other"].other_letters) == (0, 1)
    assert floors["own"].own_rhymes == floors["other"].other_rhymes == 1
    for one in floors.values():
        assert one.violations == 0
        assert one.own_length == one.other_length == 1
    alone = floors["without the plan"]
    assert alone.own_letters < 0.5
    assert alone.other_letters < 0.5


def test_a_system_that_has_learned_two_poems_obeys_the_plan_that_it_reads() -> None:
    system = untrained_arm("full").train()
    batch = item_batch(ITEMS[:2], system.layout, "all")
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        system.loss(batch).total.backward()
        optimizer.step()
    system.eval()
    for temperature in (0.0, 1.0):
        (found,) = control_poems(system, TASK, ITEMS[:2], temperature=temperature, seed=3)
        assert (found.way, found.temperature, found.num_poems) == ("prompt", temperature, 2)
        (again,) = control_poems(system, TASK, ITEMS[:2], temperature=temperature, seed=3)
        assert found == again
        if temperature == 0:
            floors = poem_floors(TASK, ITEMS[:2], ITEMS[2:])
            assert found.own == floors["own"]
            assert found.other == floors["other"]


def test_only_prompts_of_one_length_are_paired() -> None:
    task = Acrostic(num_lines=4, filler=6, lengths=(8, 10))  # "10" is longer than "8"
    items = [task.item(0, number) for number in range(8)]
    places, donors = paired_poems(items)
    assert places == list(range(8))
    for place, donor in zip(places, donors, strict=True):
        one, other = items[place], items[places[donor]]
        assert len(one.facts["prompt"]) == len(other.facts["prompt"])
        assert one.facts["word"] != other.facts["word"]
    with pytest.raises(UserError, match="prompts of one length"):
        control_poems(untrained_arm("full"), TASK, ITEMS[:1])
