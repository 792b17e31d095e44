"""What the arms of part_whole_real promise: equal FLOPs, and a view of the whole text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.config_json import decode
from counterpoint.data.tasks.items import REPORTED_SEED, all_policies, draw, scored_items
from counterpoint.data.tasks.named import data_digest
from counterpoint.recipes.grid import Grid, GridArm, costs
from counterpoint.recipes.part_whole_real import WORD_TICKS, part_whole_real
from counterpoint.systems import sketch
from counterpoint.systems.two_stream import WORDS, TwoStreamConfig
from counterpoint.train.config import TrainConfig
from tests.data.tasks.real_data import write_data
from tests.test_architecture import ROOT

REACHING = ("two_stream", "shared_levels", "hrt_words", "window_summary", "full")
DECLARED = ROOT / "docs" / "results" / "part_whole_real_declared.json"


def check_budget(grid: Grid, task: str) -> None:
    """`costs` refuses arms that must meet the budget and do not."""
    found = costs(grid, task)
    assert set(found) == {arm.name for arm in grid.arms}
    window = next(arm for arm in grid.arms if arm.name == "window")
    assert window.unmatched
    assert 1.0 <= found["window"].flops / found["two_stream"].flops < 1.15


def test_the_arms_cost_the_same_on_short_and_long_rows(tmp_path: Path) -> None:
    grid = replace(part_whole_real(), data=str(write_data(tmp_path)))
    for task in ("dialogues_small", "paragraphs_small"):
        check_budget(grid, task)


@pytest.mark.parametrize("name", REACHING)
def test_an_arm_reaches_the_beginning_of_the_longest_row(name: str) -> None:
    grid = part_whole_real()
    system = next(arm.system for arm in grid.arms if arm.name == name)
    assert sketch(system).window_ticks >= grid.task("paragraphs_small").most_symbols


def test_the_control_of_two_stream_differs_in_its_whole_only() -> None:
    arms = {arm.name: arm.system for arm in part_whole_real().arms}
    ours = arms["two_stream"]
    assert isinstance(ours, TwoStreamConfig)
    assert arms["shuffled_whole"] == replace(ours, whole_control="shuffled")


def test_what_was_declared_is_what_the_recipe_has() -> None:
    declared = json.loads(DECLARED.read_text())
    grid = part_whole_real()
    # Fields that are newer than the declaration have their defaults.
    assert decode(tuple[GridArm, ...], declared["arms"]) == grid.arms
    assert decode(TrainConfig, declared["train"]) == grid.train
    assert list(declared["tasks"]) == list(grid.tasks)
    assert declared["learning_rates"] == list(grid.learning_rates)
    assert declared["seeds"] == list(grid.seeds)
    assert declared["num_items"] == grid.num_items


@pytest.mark.data
def test_the_declared_tasks_are_those_of_the_data_folder(data_folder: Path) -> None:
    declared = json.loads(DECLARED.read_text())["tasks"]
    grid = replace(part_whole_real(), data=str(data_folder))
    for name, told in declared.items():
        check_budget(grid, name)
        task = grid.task(name)
        items = scored_items(task, REPORTED_SEED, grid.num_items)
        assert told["primary"] == task.primary
        assert told["data"] == data_digest(task)
        assert told["items"] == len(items)
        for policy, score in told["floors"].items():
            reply = all_policies(task, items)[policy]
            given = [reply(item, draw(0, -1 - number)) for number, item in enumerate(items)]
            assert task.score(items, given)[task.primary] == pytest.approx(score, abs=5e-4)


@pytest.mark.data
def test_words_of_the_tasks_are_as_long_as_flops_are_counted_for(data_folder: Path) -> None:
    grid = replace(part_whole_real(), data=str(data_folder))
    for name in ("questions", "dialogues_small"):
        texts = [item.text for item in scored_items(grid.task(name), REPORTED_SEED, 200)]
        num_blocks = sum(map(blocks, texts))
        assert sum(map(len, texts)) / num_blocks == pytest.approx(WORD_TICKS, rel=0.06)


def blocks(text: str) -> int:
    """Return the number of words of a text, each cut after eight symbols."""
    count = 0
    size = 0
    for symbol in text:
        size += 1
        if ord(symbol) in WORDS or size == 8:
            count += 1
            size = 0
    return count
