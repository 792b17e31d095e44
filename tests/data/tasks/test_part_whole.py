"""Tasks are pure, can be solved from their text, and have the floors that are published."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.config_json import decode, encode
from counterpoint.data.source import DataSource, PreparedSource
from counterpoint.data.tasks.items import (
    Item,
    ItemAnswer,
    ScoredTask,
    accuracy,
    floors,
    read_items,
    write_items,
)
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.part_whole.audit import StreamAudit
from counterpoint.data.tasks.part_whole.cloze import KeyedCloze
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.navon import Navon
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.data.tasks.part_whole.sections import Sections
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.systems.single_stream import SingleStream
from tests.systems.tiny_models import single
from tests.test_architecture import ROOT

PUBLISHED = ROOT / "docs" / "results" / "part_whole_floors.json"
each_task = pytest.mark.parametrize("name", TASKS)


@each_task
def test_items_are_pure_and_within_their_bound(name: str) -> None:
    task: ScoredTask = TASKS[name]
    items = [task.item(3, number) for number in range(40)]
    assert items == [task.item(3, number) for number in reversed(range(40))][::-1]
    assert items != [task.item(4, number) for number in range(40)]
    assert len({item.text for item in items}) == 40
    for item in items:
        assert len(item.text) <= task.most_symbols
        assert item.text.isascii()
        assert item.answers
        starts = [one.start for one in item.answers]
        assert starts == sorted(starts)
        assert all(item.text.startswith(one.text, one.start) for one in item.answers)


@each_task
def test_the_oracle_solves_every_task_and_no_constant_beats_its_floor(name: str) -> None:
    task = TASKS[name]
    found = floors(task, 150, seed=11)
    assert found["oracle"][task.primary] >= 0.98
    for policy, scores in found.items():
        if policy != "oracle":
            assert scores.get(task.primary, 0.0) < 0.8


@each_task
def test_the_primary_score_is_a_ratio_of_sums(name: str) -> None:
    task = TASKS[name]
    items = [task.item(1, number) for number in range(60)]
    for policy in task.policies().values():
        given = [policy(item, random.Random(number)) for number, item in enumerate(items)]
        counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
        above, below = (sum(column) for column in zip(*counts, strict=True))
        assert above / max(below, 1) == pytest.approx(task.score(items, given).get(task.primary, 0))


@each_task
def test_published_floors_are_what_is_computed(name: str) -> None:
    """The table's own seed and first items give the table's own check."""
    published = json.loads(PUBLISHED.read_text())["tasks"][name]
    found = floors(TASKS[name], 100, seed=0)
    assert {policy: _rounded(scores) for policy, scores in found.items()} == published["first 100"]


@pytest.mark.slow
@each_task
def test_floors_reproduce_with_another_seed(name: str) -> None:
    published = json.loads(PUBLISHED.read_text())["tasks"][name]["floors"]
    found = floors(TASKS[name], 4000, seed=77)
    primary = TASKS[name].primary
    for policy, scores in published.items():
        assert found[policy].get(primary, 0) == pytest.approx(scores.get(primary, 0), abs=0.02)
        assert found[policy] == pytest.approx(scores, abs=0.04)


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {kind: round(value, 3) for kind, value in scores.items()}


def test_an_answer_is_right_or_wrong() -> None:
    item = Item("a=1 b=2", (ItemAnswer("x", 2, "1"), ItemAnswer("y", 6, "2")))
    assert accuracy([item, item], [{0: "1", 1: "3"}, {0: "1"}]) == {"x": 1.0, "y": 0.0}


def test_a_poem_is_judged_by_its_plan() -> None:
    task = Acrostic()
    item = task.item(0, 5)
    poem = item.text[len(item.facts["prompt"]) :]
    right = task.judge(item, poem)
    assert (right["acrostic"], right["length"], right["violations"]) == (1.0, 1.0, 0.0)
    assert right["rhyme"] == 1.0
    shuffled = "\n".join(random.Random(1).sample(poem.split("\n")[:8], 8))
    assert task.judge(item, shuffled)["acrostic"] < 1
    assert task.judge(item, "")["rhyme"] == 0
    assert task.judge(item, "aaaa\n")["violations"] > 0


@each_task
def test_a_task_is_a_source_of_training(name: str) -> None:
    task = TASKS[name]
    data = TaskData(task=task, num_items=64, num_held_out=3)
    source: DataSource = data
    assert not source.fits(SingleStream(single(64)).layout)  # 13 ids are too few for bytes
    model = SingleStream(replace(single(64), vocab_size=258))
    assert source.fits(model.layout)
    prepared: PreparedSource = source.prepare(model, block_ticks=8)
    batch = prepared.batches(4, seed=1).batch(0)
    text = ByteTokenizer().decode(batch.ticks["part"][0].numpy())
    trained = batch.targets["part"][0] >= 0
    assert text.strip("\0").isascii()
    assert 0 < trained.sum() < trained.numel() / 2
    # A target is the id of the next tick.
    follows = trained[:-1].nonzero()[:, 0]
    ids = batch.ticks["part"][0]
    assert torch.equal(batch.targets["part"][0][follows], ids[follows + 1])
    held_out = prepared.held_out_units()
    assert held_out is not None
    assert len(held_out) == 3
    assert decode(TaskData, encode(data)) == data


def test_items_can_be_written_for_other_models(tmp_path: Path) -> None:
    task = TASKS["logbook"]
    items = [task.item(0, number) for number in range(3)]
    write_items(tmp_path / "items.jsonl", items)
    again = list(read_items(tmp_path / "items.jsonl"))
    assert [(one.text, one.answers) for one in again] == [(i.text, i.answers) for i in items]
    (tmp_path / "bad.jsonl").write_text('{"text": "a=1", "answers": [{"kind": "x", "start": 0}]}\n')
    with pytest.raises(UserError, match="line 1"):
        list(read_items(tmp_path / "bad.jsonl"))
    (tmp_path / "off.jsonl").write_text(
        '{"text": "a=1", "answers": [{"kind": "x", "start": 1, "text": "1"}]}\n'
    )
    with pytest.raises(UserError, match="stand in the text"):
        list(read_items(tmp_path / "off.jsonl"))


@pytest.mark.parametrize(
    ("task", "knobs"),
    [
        (RandomHierarchy, {"num_symbols": 4, "num_rules": 4}),  # no leaf is ever decided
        (RandomHierarchy, {"num_levels": 0}),
        (Navon, {"num_blocks": 30}),
        (Navon, {"num_blocks": 4}),
        (Navon, {"num_letters": 2}),
        (StreamAudit, {"num_registers": 30}),
        (KeyedCloze, {"num_blocks": 3}),
        (KeyedCloze, {"block_symbols": 4}),
        (Sections, {"num_sections": 30}),
        (Sections, {"num_keys": 30}),
        (Sections, {"num_sections": 1, "num_keys": 2}),
    ],
)
def test_knobs_that_no_item_can_have_are_refused(task: Any, knobs: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must"):
        task(**knobs)


def test_knobs_for_which_no_item_is_found_are_told() -> None:
    with pytest.raises(UserError, match="of 20,000 logs none has 20, with 48 events"):
        Logbook(margin=20).item(0, 0)
    with pytest.raises(UserError, match="of 100 sentences with 12 rules none"):
        RandomHierarchy(num_symbols=13, num_rules=12, num_levels=2).item(0, 0)


def test_a_third_of_a_log_may_name_one_entity_alone() -> None:
    task = Logbook(num_events=12, num_entities=3, margin=1)
    assert [len(task.item(0, number).answers) for number in range(30)] == [3] * 30
