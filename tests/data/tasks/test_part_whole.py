"""Tasks are pure, can be solved from their text, and have the floors that are published."""

import json
import random
from collections import Counter
from dataclasses import replace
from string import ascii_lowercase
from typing import Any

import pytest
import torch

from counterpoint.config_json import decode, encode
from counterpoint.data.source import DataSource, Preparation, PreparedSource
from counterpoint.data.tasks.items import (
    HELD_OUT_SEED,
    Item,
    ItemAnswer,
    ScoredTask,
    accuracy,
    always,
    commonest,
    floors,
)
from counterpoint.data.tasks.part_whole import FORMS, TASKS
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
def test_the_oracle_solves_every_task_and_nobody_else_does(name: str) -> None:
    task = TASKS[name]
    found = floors(task, 150, seed=11)
    assert found["oracle"][task.primary] >= 0.98
    # A register whose last claim was true needs nothing before it: 16 steps often have one. Who
    # knows that the end of a log misleads rules out the two entities that are most likely there.
    wide = {
        "audit": {"last 16 steps": 0.9},
        "logbook": {
            "last half, whose end misleads": 0.6,
            "last two thirds, whose end misleads": 0.8,
        },
    }.get(name, {})
    for policy, scores in found.items():
        if policy in wide:
            assert wide[policy] < scores[task.primary] < found["oracle"][task.primary]
        elif policy != "oracle":
            assert scores.get(task.primary, 0.0) < 0.8


@each_task
def test_no_constant_beats_the_published_one(name: str) -> None:
    """The best constant of some items, on others: the published one knew its items."""
    task = TASKS[name]
    most = commonest(task.item(21, number) for number in range(300))
    items = [task.item(22, number) for number in range(300)]
    found = task.score(items, [always(most, item) for item in items])
    published = json.loads(PUBLISHED.read_text())["tasks"][name]["floors"]["constant"]
    assert found[task.primary] <= published[task.primary] + 0.02


@each_task
def test_the_primary_score_is_a_ratio_of_sums(name: str) -> None:
    task = TASKS[name]
    items = [task.item(1, number) for number in range(60)]
    for policy in task.policies().values():
        given = [policy(item, random.Random(number)) for number, item in enumerate(items)]
        counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
        above, below = (sum(column) for column in zip(*counts, strict=True))
        assert above / max(below, 1) == pytest.approx(task.score(items, given).get(task.primary, 0))


@pytest.mark.parametrize("name", FORMS)
def test_published_floors_are_what_is_computed(name: str) -> None:
    """The table's own seed and first items give the table's own check."""
    published = json.loads(PUBLISHED.read_text())["tasks"][name]
    found = floors(FORMS[name], 100, published["seed"])
    assert {policy: _rounded(scores) for policy, scores in found.items()} == published["first 100"]


@pytest.mark.slow
@each_task
def test_floors_reproduce_with_another_seed(name: str) -> None:
    published = json.loads(PUBLISHED.read_text())["tasks"][name]["floors"]
    num_items = {"logbook": 12_000, "navon": 8000}.get(name, 4000)  # some ask others as well
    found = floors(TASKS[name], num_items, seed=77)
    primary = TASKS[name].primary
    for policy, scores in published.items():
        assert found[policy].get(primary, 0) == pytest.approx(scores.get(primary, 0), abs=0.02)
        assert found[policy] == pytest.approx(scores, rel=0.01, abs=0.04)


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
    prepared: PreparedSource = source.prepare(model, Preparation(block_ticks=8))
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


@pytest.mark.parametrize(
    ("task", "knobs"),
    [
        (RandomHierarchy, {"num_symbols": 4, "num_rules": 4}),  # no leaf is ever decided
        (RandomHierarchy, {"num_levels": 0}),
        (RandomHierarchy, {"branching": 5}),
        (Acrostic, {"num_lines": 6}),
        (Logbook, {"misleading": ()}),
        (Logbook, {"misleading": (3,)}),
        (KeyedCloze, {"num_plans": 5}),
        (KeyedCloze, {"distance": 13}),
        (Navon, {"period": 1}),
        (Navon, {"num_blocks": 30}),
        (Navon, {"num_blocks": 4}),
        (Navon, {"num_letters": 2}),
        (StreamAudit, {"num_registers": 30}),
        (KeyedCloze, {"num_blocks": 3}),
        (KeyedCloze, {"block_symbols": 4}),
        (Sections, {"num_sections": 30}),
        (Sections, {"num_keys": 30}),
        (Sections, {"num_sections": 1, "num_keys": 2}),
        (Sections, {"num_keys": 3, "num_early": 4}),
        (Sections, {"num_values": 65}),
        (Acrostic, {"lengths": (8, 9)}),
        (Navon, {"num_named": 17}),
        (Logbook, {"least_events": 51}),
        (Logbook, {"num_named": 6}),
        (StreamAudit, {"largest_change": 0}),
    ],
)
def test_knobs_that_no_item_can_have_are_refused(task: Any, knobs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must"):
        task(**knobs)


def test_knobs_for_which_no_item_is_found_are_told() -> None:
    with pytest.raises(UserError, match="of 20,000 logs none has 20, with 48 events"):
        Logbook(margin=20).item(0, 0)
    with pytest.raises(UserError, match="of 100 sentences with 12 rules none"):
        RandomHierarchy(num_symbols=13, num_rules=12, num_levels=2).item(0, 0)


def test_a_third_of_a_log_may_name_one_entity_alone() -> None:
    task = Logbook(num_events=12, num_entities=3, margin=1)
    assert [len(task.item(0, number).answers) for number in range(30)] == [2] * 30


@pytest.mark.parametrize(
    "task",
    [
        Navon(odd_share=0.5, foreign_share=0.0, period=3, num_letters=8),
        KeyedCloze(num_plans=4, distance=2, noise=0.0),
        Sections(recency=2.0, filler=0),
        Logbook(misleading=(2,), whole_share=0.5, num_events=24),
        StreamAudit(filler=5, num_registers=2),
        Acrostic(num_lines=4, any_order=True),
        Acrostic(lengths=(4, 6)),
        Navon(num_named=3, verdicts=True, majority=0.9, period=2),
        Sections(num_early=2, num_values=10),
        Logbook(num_events=18, least_events=9, num_named=4),
        Logbook(num_events=24, register=True),
        StreamAudit(false_share=0.3, question_share=0.4, first_claim=20, largest_change=1),
        RandomHierarchy(branching=3, num_levels=3, labelled_share=0.5),
    ],
    ids=lambda task: str(task.name),
)
def test_every_knob_can_be_turned(task: Any) -> None:
    items = [task.item(2, number) for number in range(60)]
    assert all(len(item.text) <= task.most_symbols for item in items)
    found = floors(task, 60, seed=2)
    assert found["oracle"][task.primary] >= 0.95
    assert min(scores.get(task.primary, 1.0) for scores in found.values()) < 0.7


def test_only_logs_to_learn_from_are_short() -> None:
    task = Logbook(num_events=18, least_events=9, num_entities=4)
    sizes = {len(task.item(0, number).facts["events"]) for number in range(40)}
    assert sizes == {9, 12, 15, 18}
    scored = [task.item(HELD_OUT_SEED, number) for number in range(40)]
    assert {len(item.facts["events"]) for item in scored} == {18}


def test_early_questions_are_about_sections_that_were_read() -> None:
    task = Sections(num_sections=4, num_keys=4, num_early=2, num_questions=4)
    for number in range(40):
        item = task.item(0, number)
        kinds = [answer.kind for answer in item.answers]
        assert kinds == ["joint, early"] * 6 + ["joint"] * 4
        asked = item.facts["asked"]
        assert len(set(asked)) == len(asked)
        for (section, _), seen in zip(asked, item.facts["seen"], strict=True):
            assert section < seen


def test_a_value_that_was_told_is_not_guessed_again() -> None:
    """Whoever knows the section alone knows its last value once all others were asked for."""
    task = Sections(num_sections=1, num_keys=4, num_questions=4, num_values=64)
    for number in range(20):
        item = task.item(9, number)
        given = task.policies()["section only"](item, random.Random(number))
        assert given[3] == item.answers[3].text


def test_half_of_the_texts_mislead_whoever_sees_a_part() -> None:
    """What is seen from near and the whole disagree in the items that count."""
    published = json.loads(PUBLISHED.read_text())["tasks"]
    navon = published["navon"]["floors"]["unordered blocks"]
    assert navon["joint, foreign letter"] > 0.9 > 0.3 > navon["joint"]
    logbook = published["logbook"]["floors"]["last third"]
    assert logbook["joint, end agrees"] > 0.8 > 0.1 > logbook["joint"]
    cloze = published["cloze"]["floors"]["block before"]
    assert cloze["joint, plan shown"] == 1 > 0.1 > cloze["joint"]
    for name, kind in (("navon", "joint"), ("logbook", "joint")):
        items = [TASKS[name].item(0, number) for number in range(400)]
        kinds = [answer.kind for item in items for answer in item.answers]
        also = [one for one in kinds if one.startswith(kind)]
        assert kinds.count(kind) / len(also) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["logbook", "logbook_small"])
@pytest.mark.parametrize(("part", "share"), [("last third, which", 3), ("last half, whose end", 2)])
def test_no_simple_guess_from_the_end_of_a_log_beats_its_floor(
    name: str, part: str, share: int
) -> None:
    """Only logs whose end misleads count, so what leads there is never the answer."""
    task = FORMS[name]
    assert isinstance(task, Logbook)
    policy = task.policies()[f"{part} misleads"]
    rng = random.Random(0)
    items = [task.item(HELD_OUT_SEED, number) for number in range(2000)]
    items = [item for item in items if item.answers[0].kind == "joint"]
    floor = sum(policy(item, rng)[0] == item.answers[0].text for item in items)
    right: Counter[str] = Counter()
    for item in items:
        seen = item.facts["events"][-(task.num_events // share) :]
        for guess, value in guesses(seen).items():
            right[guess] += value == item.answers[0].text
    assert len(right) == 5
    for guess, count in right.items():
        assert count <= floor + 0.03 * len(items), guess  # the choice between two alike is luck


def guesses(events: list[tuple[str, str]]) -> dict[str, str]:
    """Values that could be the answer, from some of the last events."""
    counts = Counter(entity for entity, _ in events).most_common()
    last = dict(events)
    mode = counts[0][0]
    others = [entity for entity, _ in reversed(events) if entity not in (mode, events[-1][0])]
    fewer = [entity for entity, _ in counts if entity in others]
    return {
        "mode": last[mode],
        "newest of the others": last[(others or [mode])[0]],
        "most frequent of the others": last[(fewer or [mode])[0]],
        "last but one": events[-2][1],
        "most frequent value": Counter(value for _, value in events).most_common(1)[0][0],
    }


@pytest.mark.parametrize("name", ["navon", "navon_small"])
def test_blocks_a_period_apart_beat_no_floor_of_the_last_half(name: str) -> None:
    task = FORMS[name]
    assert isinstance(task, Navon)
    items = [task.item(HELD_OUT_SEED, number) for number in range(300)]
    given = []
    for item in items:
        blocks = item.text.split(" ")[task.num_blocks - task.num_blocks // 2 : task.num_blocks]
        shown = [max(ascii_lowercase, key=block.count) for block in blocks]
        differ = [i for i in range(task.period, len(shown)) if shown[i] != shown[i - task.period]]
        given.append({0: "".join(filter(str.isdigit, blocks[differ[0] if differ else -1]))})
    floor = floors(task, 300, HELD_OUT_SEED)["last half, period against period"]["joint"]
    assert 0.3 < task.score(items, given)["joint"] < floor


def test_who_asks_of_late_sections_asks_for_what_is_near() -> None:
    task = Sections(recency=3.0)
    asked = [place[0] for number in range(200) for place in task.item(0, number).facts["asked"]]
    assert sum(section >= 4 for section in asked) / len(asked) > 0.85
    for section, _ in TASKS["sections"].item(0, 0).facts["asked"]:
        assert 0 <= section < 8


def test_a_short_motif_is_known_from_the_last_blocks() -> None:
    """With two letters, the last block but one shows the next letter; half the blocks show more."""
    found = floors(FORMS["navon_small"], 300, HELD_OUT_SEED)
    assert found["last two blocks"]["whole"] > 0.8
    assert found["last half"]["whole"] > 0.8
    assert found["last half"]["joint"] > found["last two blocks"]["joint"] + 0.1


def test_who_reads_a_false_claim_reads_its_verdict_too() -> None:
    """A policy that takes a false claim for true, or no notice of a true one, is no floor."""
    task = StreamAudit(num_registers=1, num_steps=40, false_share=0.5, question_share=0.3)
    policy = task.policies()["last 8 steps"]
    for number in range(40):
        item = task.item(5, number)
        given = policy(item, random.Random(0))
        told = [step for step in range(40) if item.facts["steps"][step][2]]
        for place, (step, answer) in enumerate(zip(told, item.answers, strict=True)):
            before = [item.answers[other].text for other in range(place) if told[other] >= step - 8]
            if any(text != "!" for text in before):
                assert given[place] == answer.text


def test_a_log_asks_for_the_whole_or_for_its_last_value() -> None:
    """Who is told the last value of the most frequent entity need not count any more."""
    for number in range(50):
        kinds = [answer.kind[:5] for answer in TASKS["logbook"].item(0, number).answers]
        assert kinds in (["whole", "part"], ["joint", "part"])
