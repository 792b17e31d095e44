"""Questions and dialogues: parsed as they are, split as published, scored as pairs."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.tasks.dialogues import Dialogues
from counterpoint.data.tasks.items import HELD_OUT_SEED, floors
from counterpoint.data.tasks.questions import Questions
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError

SCORED = HELD_OUT_SEED - 1


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    (tmp_path / "train.txt").write_text(
        "NUM:date When was he born ?\nNUM:date When did it end ?\nHUM:ind Who was it ?\n"
    )
    (tmp_path / "test.txt").write_text("NUM:date When ?\nHUM:ind Who ?\nLOC:city Where ?\n")
    return Questions(folder=str(tmp_path))


def turn(speaker: str, text: str, **frame: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"service": "s", "intent": None, "slots": {}, "acts": [], "call": None}
    return {"speaker": speaker, "text": text, "frames": [empty | frame]}


@pytest.fixture
def dialogues(tmp_path: Path) -> Dialogues:
    one = [
        turn("user", "A bus?", intent="FindBus", slots={"to": "Rome"}, acts=["INFORM"]),
        turn("system", "When?", acts=["REQUEST"]),
        turn("user", "Now.", intent="BuyBus", slots={"to": "Rome", "at": "now"}, acts=["INFORM"]),
        turn("system", "Done.", acts=["NOTIFY", "OFFER"]),
    ]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "turns": one}) + "\n")
    return Dialogues(folder=str(tmp_path))


def test_a_question_has_a_coarse_and_a_fine_class(questions: Questions) -> None:
    item = questions.item(SCORED, 0)
    assert item.text == "When ?\nNUM:date"
    assert [(one.kind, one.text) for one in item.answers] == [("coarse", "NUM"), ("fine", "date")]
    assert [label.text for label in item.whole] == ["NUM"]
    assert {questions.item(0, number).text.count("\n") for number in range(9)} == {1}
    assert "born" in "".join(questions.item(0, number).text for number in range(20))
    assert decode(TaskData, encode(TaskData(task=questions))) == TaskData(task=questions)


def test_a_question_that_is_scored_is_not_learned_in_other_capitals(tmp_path: Path) -> None:
    """The published files have "the Twin Cities" to learn from, and "the twin cities" to score."""
    lines = [f"NUM:date When was thing {number} ?" for number in range(50)]
    twin = "LOC:city What are the Twin Cities?"
    (tmp_path / "train.txt").write_text("\n".join([*lines, twin, twin.upper()]) + "\n")
    (tmp_path / "test.txt").write_text("LOC:city What are the twin cities ?\n")
    task = Questions(folder=str(tmp_path))
    learned = {task.item(0, number).text.lower() for number in range(2000)}
    tuned = {task.item(SCORED - 1, number).text for number in range(task.num_scored(SCORED - 1))}
    assert len(learned) + len(tuned) == len(lines)
    assert not any("cities" in text for text in learned | tuned)


def test_seeds_for_scoring_give_no_items_to_learn_from(questions: Questions) -> None:
    with pytest.raises(UserError, match=r"must be below 500,000.*got 999999"):
        TaskData(task=questions, seed=SCORED)


def test_classes_count_alone_together_and_as_a_pair(questions: Questions) -> None:
    items = [questions.item(SCORED, number) for number in range(3)]
    scores = questions.score(
        items, [{0: "NUM", 1: "ind"}, {0: "HUM", 1: "ind"}, {0: "NUM", 1: "city"}]
    )
    assert scores["coarse"] == pytest.approx(2 / 3)
    assert scores["fine"] == pytest.approx(2 / 3)
    assert scores["both"] == pytest.approx(1 / 3)
    assert scores["consistent"] == pytest.approx(1 / 3)
    found = floors(questions, 3, SCORED)
    assert found["oracle"]["both"] == 1
    assert found["first word"]["both"] == pytest.approx(2 / 3)
    assert found["constant"]["both"] == pytest.approx(1 / 3)


def test_a_dialogue_asks_for_acts_words_and_slots(dialogues: Dialogues) -> None:
    item = dialogues.item(SCORED, 0)
    assert item.text == (
        "U: A bus?\nS [REQUEST] When?\nU: Now.\nS [NOTIFY OFFER] Done.\nto=Rome\nat=now\n"
    )
    assert [one.text for one in item.answers if one.kind == "slot"] == ["Rome", "now"]
    assert [one.text for one in item.answers if one.kind == "act"] == ["REQUEST", "NOTIFY OFFER"]
    assert [label.text for label in item.whole] == ["FindBus|to", "BuyBus|to,at"]
    found = floors(dialogues, 1, SCORED)
    assert found["oracle"] == {"act": 1, "said": 1, "slot": 1}
    assert found["most frequent in training"]["slot"] == 1


def test_a_long_dialogue_is_cut_at_a_turn(dialogues: Dialogues) -> None:
    short = Dialogues(folder=dialogues.folder, most=45, label_symbols=6)
    item = short.item(SCORED, 0)
    assert item.text == "U: A bus?\nS [REQUEST] When?\nto=Rome\n"
    assert item.whole[0].text == "FindBu"


def test_broken_files_are_told_by_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no .*test.txt"):
        Questions(folder=str(tmp_path)).item(SCORED, 0)
    with pytest.raises(UserError, match="no .*dev.jsonl"):
        Dialogues(folder=str(tmp_path)).item(SCORED, 0)
    (tmp_path / "test.txt").write_text("NUM:date When ?\nNUM When ?\n")
    with pytest.raises(UserError, match="line 2"):
        Questions(folder=str(tmp_path)).item(SCORED, 0)
    (tmp_path / "dev.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        Dialogues(folder=str(tmp_path)).item(SCORED, 0)


@pytest.mark.parametrize(
    "turns",
    [
        [{"speaker": "user", "text": "A bus?", "frames": []}],
        [{"speaker": "user", "text": "A bus?", "frames": [{"slots": {}, "acts": []}]}],
        [turn("user", "A bus?", slots={"to": "Z\u00fcrich"})],
        [turn("user", "A bus?", slots={"to": 3})],
        [turn("user", "A bus?", intent=3)],
    ],
)
def test_a_dialogue_that_cannot_be_written_is_told_by_line(
    tmp_path: Path, turns: list[dict[str, Any]]
) -> None:
    (tmp_path / "dev.jsonl").write_text(json.dumps({"turns": turns}) + "\n")
    with pytest.raises(UserError, match="line 1 must be a dialogue"):
        Dialogues(folder=str(tmp_path)).item(SCORED, 0)


def test_empty_files_are_told(tmp_path: Path) -> None:
    for name in ("dev.jsonl", "test.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="it has none"):
        Dialogues(folder=str(tmp_path)).item(SCORED, 0)
    with pytest.raises(UserError, match="it has no line"):
        Questions(folder=str(tmp_path)).item(SCORED, 0)


@pytest.mark.data
def test_the_published_floors_of_the_questions(data_folder: Path) -> None:
    task = Questions(folder=str(data_folder / "trec-qc"))
    found = floors(task, 500, SCORED)
    assert found["oracle"]["both"] == 1
    assert found["constant"]["coarse"] == pytest.approx(0.276)
    assert found["constant"]["both"] == pytest.approx(0.246)
    assert found["most frequent in training"]["both"] == pytest.approx(0.11)
    assert found["first two words"]["both"] == pytest.approx(0.624)
    assert task.most_symbols == 208


@pytest.mark.data
def test_the_dialogues_of_the_data_folder(data_folder: Path) -> None:
    task = Dialogues(folder=str(data_folder / "sgd-mini"))
    found = floors(task, 200, SCORED)
    assert found["most frequent in training"]["act"] == pytest.approx(0.216, abs=0.001)
    assert found["most frequent in training"]["slot"] == pytest.approx(0.143, abs=0.001)
    assert all(len(task.item(SCORED, number).text) <= 2000 for number in range(200))
