"""Needles in a haystack: what is asked can be told from the text, and only with the whole key."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.tasks.items import HELD_OUT_SEED, REPORTED_SEED, ScoredTask, floors
from counterpoint.data.tasks.named import named_task
from counterpoint.data.tasks.needles import Needles
from counterpoint.data.tasks.shelf import running_text
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from tests.data.tasks.real_data import write_data

NEEDLE = re.compile(r"The ([a-z ]+) is (\d+)\. ")
SIDES = {"learned": 3, "tuned": REPORTED_SEED - 1, "reported": REPORTED_SEED}


@pytest.mark.parametrize(
    ("num_needles", "key_words", "num_sharing"),
    [(6, 1, 0), (6, 2, 0), (6, 2, 1), (9, 2, 2), (4, 2, 1), (6, 3, 1), (12, 3, 2)],
)
def test_the_key_is_in_one_needle_and_each_word_of_every_key_in_as_many_others(
    num_needles: int, key_words: int, num_sharing: int
) -> None:
    task = Needles(
        num_needles=num_needles,
        haystack_symbols=300,
        key_words=key_words,
        num_sharing=num_sharing,
    )
    assert isinstance(task, ScoredTask)
    for number in range(30):
        item = task.item(REPORTED_SEED, number)
        text, _, asking = item.text.partition("#The ")
        key, _, answer = asking.partition(" is ")
        needles = NEEDLE.findall(text)
        assert len({own for own, _ in needles}) == len(needles) == num_needles
        assert [value for own, value in needles if own == key] == [answer]
        assert answer == item.answers[0].text
        for words in zip(*(own.split() for own, _ in needles), strict=True):  # of one place
            assert set(Counter(words).values()) == {num_sharing + 1}
        assert task.most_symbols - 30 < len(item.text) <= task.most_symbols


@pytest.mark.parametrize("side", SIDES)
def test_without_its_needles_an_item_is_a_piece_of_the_books_of_its_side(side: str) -> None:
    texts = {name: running_text("", seed) for name, seed in SIDES.items()}
    for number in range(20):
        item = Needles(haystack_symbols=500).item(SIDES[side], number)
        haystack = NEEDLE.sub("", item.text.partition("#")[0]).strip()
        assert not re.search(r"\d", haystack)
        assert [name for name, text in texts.items() if f" {haystack} " in text] == [side]


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_the_needle_that_is_asked_for_lies_at_its_depth(depth: float) -> None:
    for number in range(20):
        item = Needles(haystack_symbols=400, depth=depth).item(0, number)
        text, _, asking = item.text.partition("#")
        before, _, after = text.partition(asking.partition(" is ")[0] + " is ")
        sizes = [len(NEEDLE.sub("", part).split()) for part in (before, after.partition(". ")[2])]
        assert sizes[0] == round(depth * sum(sizes))


def test_any_needle_may_be_asked_for_wherever_its_words_stand() -> None:
    """The first word that comes back tells nothing: its two needles are asked for as often."""
    task = Needles(haystack_symbols=120)
    asked: Counter[bool] = Counter()
    for number in range(300):
        item = task.item(REPORTED_SEED, number)
        words = [own.split()[0] for own, _ in NEEDLE.findall(item.text)]
        back = next(word for place, word in enumerate(words) if word in words[:place])
        asked[back == item.facts["key"].split()[0]] += 1
    assert asked[True] / 300 == pytest.approx(1 / 3, abs=0.08)


def test_random_depths_are_everywhere() -> None:
    task = Needles(haystack_symbols=400)
    items = [task.item(0, number) for number in range(200)]
    places = [one.text.index(one.facts["key"]) / len(one.text) for one in items]
    assert min(places) < 0.05
    assert max(places) > 0.85
    assert 0.4 < sum(places) / len(places) < 0.55


@pytest.mark.parametrize(
    ("name", "half", "one", "constant"),
    [("needles", 1 / 2, 1 / 6, 0.01), ("needles_small", 1 / 2, 1 / 4, 0.04)],
)
def test_floors_are_what_a_guess_among_the_needles_gives(
    name: str, half: float, one: float, constant: float
) -> None:
    found = {policy: own["needle"] for policy, own in floors(named_task(name), 400, 5).items()}
    assert found["oracle"] == 1
    assert found["half of the key"] == pytest.approx(half, abs=0.07)
    for policy in ("most repeated words", "any needle", "first needle", "last needle"):
        assert found[policy] == pytest.approx(one, abs=0.06)
    assert found["constant"] < constant


def test_items_are_pure_and_a_run_can_learn_them() -> None:
    task = named_task("needles_small")
    assert task.item(7, 3) == named_task("needles_small").item(7, 3)
    assert task.item(7, 3) != task.item(7, 4)
    data = TaskData(task=Needles(depth=0.5), seed=HELD_OUT_SEED // 2 - 1)
    assert decode(TaskData, encode(data)) == data


def test_a_folder_of_books_is_read_instead_of_the_bible(tmp_path: Path) -> None:
    task = named_task("needles_small", str(write_data(tmp_path)))
    assert isinstance(task, Needles)
    assert task.folder == str(tmp_path / "books")
    haystack = NEEDLE.sub("", task.item(REPORTED_SEED, 0).text.partition("#")[0]).strip()
    assert haystack in running_text(task.folder, REPORTED_SEED)
    assert haystack not in running_text("", REPORTED_SEED)
    with pytest.raises(UserError, match="must have more text than a haystack of 9000000 symbols"):
        Needles(folder=task.folder, haystack_symbols=9_000_000).item(REPORTED_SEED, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_needles": 5}, "2 words, each in 1 other needles, `num_needles` must be a multiple"),
        ({"num_needles": 1282}, "must be a multiple of 2 from 4 to 1280: got 1282"),
        ({"num_needles": 6, "num_sharing": 2}, "a multiple of 3 from 9 to 1920: got 6"),
        ({"num_needles": 4, "key_words": 3}, "a multiple of 2 from 6 to"),
        ({"key_words": 1}, "`num_sharing` must be 0, got 1"),
        ({"key_words": 0}, "`key_words` must be >= 1: got 0"),
        ({"value_digits": 0}, "`value_digits` must be >= 1: got 0"),
        ({"num_sharing": -1}, "`num_sharing` must be >= 0: got -1"),
        ({"depth": 1.5}, "`depth` must be a share from 0 to 1, or None: got 1.5"),
        ({"depth": float("nan")}, "`depth` must be a share from 0 to 1, or None: got nan"),
        ({"haystack_symbols": 10}, "`haystack_symbols` must be >= 40"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Needles(**changes)
    assert "\n" not in str(raised.value)
