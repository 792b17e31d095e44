"""Corpora differ in what their names say and nowhere else, as their measured cards show."""

from dataclasses import replace
from functools import lru_cache

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.tasks.items import HELD_OUT_SEED, floors
from counterpoint.data.tasks.reasoning.corpora import corpora
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.data.tasks.reasoning.joined import JoinedReasoning
from counterpoint.data.tasks.reasoning.plain import PlainText
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from tests.data.tasks.reasoning_card import DataCard, data_card

LARGE = 50_000
FEW = 200


@lru_cache
def card(name: str, count: int = 300) -> DataCard:
    task = corpora(LARGE)[name]
    assert isinstance(task, Reasoning | JoinedReasoning)
    return data_card([task.item(0, number) for number in range(count)])


def test_the_large_corpus_is_diverse_and_noisy_and_the_small_one_is_not() -> None:
    large = card("large noisy")
    small = card("small good")
    assert large.unique_items == large.num_items == 300
    assert small.unique_items == FEW
    assert large.family_bits > 2.8
    assert small.family_bits == pytest.approx(1.13, abs=0.25)  # of 71, 21 and 8 %
    assert large.template_bits > small.template_bits + 3
    assert small.right_answers == small.valid_steps == small.written_steps == 1
    assert large.valid_steps == pytest.approx(0.8, abs=0.06)
    assert large.written_steps == pytest.approx(0.5, abs=0.08)
    assert large.right_answers < 0.9
    assert small.solution_symbols > 2 * large.solution_symbols


@pytest.mark.parametrize(
    ("control", "like_quality", "like_diversity", "unique"),
    [
        ("large noisy, few", "large noisy", "large noisy", FEW),
        ("small good, many", "small good", "small good", LARGE),
        ("large good", "small good", "large noisy", LARGE),
        ("small noisy", "large noisy", "small good", FEW),
    ],
)
def test_a_control_changes_one_thing(
    control: str, like_quality: str, like_diversity: str, unique: int
) -> None:
    own = card(control)
    assert own.unique_items == min(unique, own.num_items)
    assert own.valid_steps == pytest.approx(card(like_quality).valid_steps, abs=0.06)
    assert own.written_steps == pytest.approx(card(like_quality).written_steps, abs=0.08)
    assert own.family_bits == pytest.approx(card(like_diversity).family_bits, abs=0.25)
    assert own.template_bits == pytest.approx(card(like_diversity).template_bits, abs=0.5)


def test_the_longest_are_items_of_the_large_corpus() -> None:
    tasks = corpora(LARGE)
    large = tasks["large noisy"]
    longest = tasks["longest"]
    assert isinstance(longest, Reasoning)
    assert longest.unique == LARGE // 50
    some = [large.item(0, number) for number in range(50, 100)]
    assert longest.item(0, 1) in some
    solutions = [item.solution for item in some if isinstance(item, ReasoningItem)]
    assert len(longest.item(0, 1).solution) == max(map(len, solutions))


def test_the_union_has_every_item_of_both_once() -> None:
    parts = (Reasoning(unique=5), Reasoning(families=("dyck",), unique=3))
    task = JoinedReasoning(parts=parts)
    items = [task.item(0, number) for number in range(8)]
    assert items == [part.item(0, number) for part in parts for number in range(part.unique)]
    assert task.item(0, 8) == items[0]
    scored = [task.item(HELD_OUT_SEED, number) for number in range(6)]
    assert [item.family for item in scored[1::2]] == ["dyck"] * 3
    assert floors(task, 8, seed=0)["oracle"]["answer"] == 1
    data = TaskData(task=task, num_items=8)
    assert decode(TaskData, encode(data)) == data
    with pytest.raises(UserError, match="unique"):
        JoinedReasoning(parts=(Reasoning(),))


def test_plain_text_has_all_symbols_and_words_but_no_reasoning() -> None:
    plain = [PlainText().item(0, number) for number in range(300)]
    symbols = set("".join(item.text for item in plain))
    tasks = corpora(LARGE)
    reasoning = [
        tasks[name].item(0, n) for name in ("large noisy", "small good") for n in range(300)
    ]
    assert set("".join(item.text for item in reasoning)) <= symbols
    assert all(len(item.text) <= PlainText().most_symbols for item in plain)
    assert len({item.text for item in plain}) == 300
    found = floors(PlainText(), 200, seed=0)
    assert found["oracle"]["equation"] == 1
    assert found["last digit"]["equation"] < 0.2
    assert found["constant"]["equation"] < 0.1
    with pytest.raises(UserError, match="num_symbols"):
        PlainText(num_symbols=0)
    data = TaskData(task=PlainText(), trained="all")
    assert decode(TaskData, encode(data)) == data


def test_a_card_describes_the_items_and_not_their_labels() -> None:
    item = Reasoning(families=("arithmetic",), operations=(3, 3)).item(0, 0)
    wrong = replace(item, text=item.text[:-2] + ("1" if item.text[-2] == "2" else "2") + "\n")
    told = data_card([item, item, replace(wrong, id="other")])
    assert (told.num_items, told.unique_items) == (3, 2)
    assert told.right_answers == pytest.approx(2 / 3)  # although `is_correct` is true
    assert told.valid_steps == told.written_steps == 1
    assert told.family_bits == told.template_bits == 0
