"""Tasks as files: anyone can score a model on them, with the same result as here."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.tasks import lm_eval_utils, scoring
from counterpoint.data.tasks.exported import (
    EXPORT_SEED,
    all_tasks,
    item_of,
    lines,
    read_folder,
    score_folder,
    write_folder,
)
from counterpoint.data.tasks.items import FiniteTask
from counterpoint.data.tasks.named import REAL, named_task
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.errors import UserError
from counterpoint.files import write_json_lines
from tests.data.tasks.real_data import write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("partwhole")
    write_folder(path, all_tasks(), 12)
    return path


def right(line: dict[str, Any]) -> dict[str, Any]:
    """What a model answers that knows everything."""
    head = {"task": line["task"], "id": line["id"]}
    if "answers" in line:
        return head | {"answers": [one["text"] for one in line["answers"]]}
    if "contexts" in line:
        return head | {"nats": {"own": 100.0, "other": 150.0, "absent": 120.0}}
    return head | {"losses": [1.0, 2.0]}


def test_a_folder_has_every_task_and_what_scores_it(folder: Path) -> None:
    tasks = read_folder(folder)
    assert set(tasks) == {*TASKS, "shuffle", "book_lm", "needles"}
    assert {len(own) for own in tasks.values()} == {12}
    for name, task in TASKS.items():
        for number, line in enumerate(tasks[name]):
            item = task.item(EXPORT_SEED, number)
            assert item_of(line) == type(item)(item.text, item.answers)
            assert [label["text"] for label in line["whole"]] == [one.text for one in item.whole]


@pytest.mark.parametrize("seed", [EXPORT_SEED, 3])
def test_no_item_is_written_twice(tmp_path: Path, seed: int) -> None:
    """Whoever counts an item twice has intervals that are narrower than they are."""
    data = write_data(tmp_path)
    tasks = [named_task(name, str(data)) for name in REAL]
    finite = [task for task in tasks if isinstance(task, FiniteTask)]
    assert len(finite) == 4
    for task in finite:
        found = list(lines(task, 60, seed))
        different = {json.dumps(line | {"id": None}, sort_keys=True) for line in found}
        assert len(found) == len(different) <= task.num_scored(seed) < 60
        if seed == EXPORT_SEED:
            assert [line["id"] for line in found] == list(range(task.num_scored(seed)))


@pytest.mark.parametrize("name", TASKS)
def test_the_scorer_of_a_folder_agrees_with_the_task(name: str) -> None:
    """On answers of which some are wrong, and some are missing."""
    task = TASKS[name]
    items = [task.item(EXPORT_SEED, number) for number in range(60)]
    rng = random.Random(name)
    given = [
        {number: text for number, text in policy.items() if rng.random() < 0.9}
        for policy in (task.policies()["oracle"](item, rng) for item in items)
    ]
    told = [
        {"task": name, "id": i, "answers": [one.get(n) for n in range(len(item.answers))]}
        for i, (item, one) in enumerate(zip(items, given, strict=True))
    ]
    found = scoring.score(lines(task, 60), told)[name]
    assert {kind: one["value"] for kind, one in found.items()} == pytest.approx(
        task.score(items, given)
    )
    assert all(one["low"] <= one["value"] <= one["high"] for one in found.values())


def test_the_scorer_works_where_the_library_is_not(folder: Path, tmp_path: Path) -> None:
    """The copy in the folder runs alone: isolated, and from another place."""
    shutil.copytree(folder, tmp_path / "copy")
    told = [right(line) for own in read_folder(folder).values() for line in own]
    write_json_lines(tmp_path / "answers.jsonl", told)
    command = [sys.executable, "-I", "-S", "copy/score.py", "copy", "answers.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    scores = json.loads(done.stdout)
    assert scores == score_folder(folder, tmp_path / "answers.jsonl")
    assert scores["audit"]["f1"]["value"] == 1
    assert scores["shuffle"]["all"] == {"value": 1, "low": 1, "high": 1}
    assert scores["book_lm"]["other minus own"]["value"] == pytest.approx(
        0.5 * scores["book_lm"]["own"]["value"]
    )


def test_a_poem_that_a_model_has_written_is_scored_by_its_plan() -> None:
    """Half of the poems are their own, and half are those of the item before."""
    task = Acrostic()
    told = list(lines(task, 20))
    items = [task.item(EXPORT_SEED, number) for number in range(20)]
    poems = []
    answers = []
    for number in range(len(told)):
        lender = told[number - number % 2]
        poems.append(lender["text"][lender["plan"]["start"] :])
        answers.append({"task": "acrostic", "id": number, "answers": [], "poem": poems[-1]})
    found = scoring.score(told, answers)["acrostic"]
    judged = [task.judge(item, poem) for item, poem in zip(items, poems, strict=True)]
    assert 0.5 < found["poem, acrostic"]["value"] < 0.65
    for name in ("acrostic", "rhyme", "length"):
        mean = sum(one[name] for one in judged) / len(judged)
        assert found[f"poem, {name}"]["value"] == pytest.approx(mean)
    assert found["poem, violations"]["value"] == 0
    assert found["poem, written"]["value"] == 1
    answers[3]["poem"] = ""
    assert scoring.score(told, answers)["acrostic"]["poem, written"]["value"] == 0.95
    del answers[3]["poem"], answers[5]
    assert scoring.score(told, answers)["acrostic"]["poem, written"]["value"] == 0.9
    for answer in answers:
        answer.pop("poem", None)
    assert "poem, written" not in scoring.score(told, answers)["acrostic"]


def test_costs_are_compared_document_by_document() -> None:
    choice = {"task": "t", "document": "d", "kind": "k", "right": ["a"], "wrong": ["b"]}
    told = [choice | {"id": number} for number in range(3)]
    losses = [[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]
    answers = [{"task": "t", "id": i, "losses": pair} for i, pair in enumerate(losses)]
    found = scoring.score(told, answers)["t"]
    assert found["k"] == {"value": 0.5, "low": 0.5, "high": 0.5}  # one document: no spread


def test_bits_of_answers_are_scored_where_their_costs_are_told() -> None:
    asked = [{"kind": "x", "start": 0, "text": "ab"}, {"kind": "y", "start": 2, "text": "c"}]
    line = {"task": "t", "id": 0, "text": "abc", "answers": asked}
    answer = {"task": "t", "id": 0, "answers": ["ab"], "nats": [2.0, 3.0]}
    found = scoring.score([line], [answer])["t"]
    assert found["bits, x"]["value"] == pytest.approx(1.4426950408889634)
    assert found["bits, y"]["value"] == pytest.approx(3 * 1.4426950408889634)
    assert (found["x"]["value"], found["y"]["value"]) == (1, 0)


def test_names_are_scored_where_their_costs_are_told() -> None:
    line = {
        "task": "t",
        "id": 0,
        "document": "d",
        "contexts": {"own": "x", "other": "y"},
        "text": "abcdefgh",
        "names": [[2, 4]],
    }
    nats = {"own": 8.0, "other": 16.0}
    answer = {"task": "t", "id": 0, "nats": nats, "name_nats": {"own": 1.0, "other": 3.0}}
    found = scoring.score([line], [answer])["t"]
    bit = 1.4426950408889634
    assert found["other minus own"]["value"] == pytest.approx(bit)
    assert found["names, other minus own"]["value"] == pytest.approx(bit)
    assert found["names, own"]["value"] == pytest.approx(bit / 2)
    assert "absent minus own" not in found


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"task": "navon", "id": 99, "answers": []}, "no 99 of 'navon'"),
        ({"task": "shuffle", "id": 0}, "must have `losses`"),
        ({"task": "book_lm", "id": 0, "losses": [1, 2]}, "must have `nats`"),
        ({"task": "navon"}, "lacks 'id'"),
    ],
)
def test_answers_that_cannot_be_scored_are_told(
    folder: Path, tmp_path: Path, answer: dict[str, Any], message: str
) -> None:
    write_json_lines(tmp_path / "answers.jsonl", [answer])
    with pytest.raises(UserError, match=message):
        score_folder(folder, tmp_path / "answers.jsonl")


def test_lines_that_are_no_items_are_told(tmp_path: Path) -> None:
    line: dict[str, Any] = {"task": "t", "id": 7, "text": "a=1"}
    for answers in ([{"kind": "x", "start": 0}], [{"kind": "x", "start": 1, "text": "1"}]):
        with pytest.raises(UserError, match="Line 7 of 't' must be an item"):
            item_of(line | {"answers": answers})
    with pytest.raises(UserError, match="must be a folder of tasks"):
        read_folder(tmp_path)
    write_json_lines(tmp_path / "x.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="line 1 must be a line of a task"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="must exist"):
        all_tasks(str(tmp_path / "none"))


def lm_eval_docs(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> list[lm_eval_utils.Doc]:
    monkeypatch.setattr(lm_eval_utils, "__file__", str(folder / "lm_eval" / "utils.py"))
    return lm_eval_utils.docs(name)


def test_lm_eval_is_given_the_same_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, task in TASKS.items():
        docs = lm_eval_docs(folder, name, monkeypatch)
        items = [task.item(EXPORT_SEED, number) for number in range(12)]
        primary = "verdict" if name == "audit" else task.primary
        asked = [
            (item.text[: one.start], one.text)
            for item in items
            for one in item.answers
            if one.kind == primary
        ]
        assert [(doc["prompt"], doc["answer"]) for doc in docs] == asked
    choices = lm_eval_docs(folder, "shuffle", monkeypatch)
    assert len(choices) == 8  # those of two texts cannot be asked
    assert {lm_eval_utils.gold(doc) for doc in choices} == {0, 1}
    texts = lm_eval_docs(folder, "book_lm", monkeypatch)
    assert all(lm_eval_utils.continuation(doc) for doc in texts)


def test_lm_eval_scores_answers_choices_and_flags() -> None:
    doc = {"choices": ["a", "b"], "gold": 1}
    assert lm_eval_utils.chosen(doc, [(-2.0, False), (-1.0, False)]) == {"score": 1}
    assert lm_eval_utils.chosen(doc, [(-1.0, False), (-1.0, False)]) == {"score": 0}  # a tie
    assert lm_eval_utils.right({}, [(-3.0, True)]) == {"score": 1}
    flags = [
        lm_eval_utils.flagged({"answer": text}, [(-1.0, False), (flag, False)])["score"]
        for text, flag in (("!", 0.0), ("!", -2.0), (".", 0.0), (".", -2.0))
    ]
    assert flags == [(True, True), (False, True), (True, False), (False, False)]
    assert lm_eval_utils.f1(flags) == pytest.approx(0.5)


def test_the_group_is_valid_yaml(folder: Path) -> None:
    yaml = pytest.importorskip("yaml")

    class Tags(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Functions as their names."""

    Tags.add_constructor("!function", lambda loader, node: node.value)
    read = {
        path.stem: yaml.load(path.read_text(), Loader=Tags)
        for path in (folder / "lm_eval").glob("*.yaml")
    }
    group = read.pop("partwhole")
    assert sorted(group["task"]) == sorted(read)
    for name, task in read.items():
        assert task["task"] == name
        assert (folder / f"{task['metadata']['partwhole']}.jsonl").exists()
        functions = [value for value in map(str, task.values()) if value.startswith("utils.")] + [
            one["aggregation"] for one in task["metric_list"]
        ]
        for function in functions:
            assert function == "mean" or hasattr(lm_eval_utils, function.removeprefix("utils."))


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"answers": [], "text": "\u00e9"},
        {"answers": [], "text": 5},
        {"contexts": {"own": 3}, "text": "b", "names": []},
        {"contexts": {}, "text": "b", "names": []},
        {"right": ["a"]},
    ],
)
def test_lines_that_cannot_be_answered_are_told(tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"task": "own", "id": 0} | line) + "\n")
    with pytest.raises(UserError, match=r"line 1 must have `answers`"):
        read_folder(tmp_path)


@pytest.mark.slow
def test_lm_eval_runs_the_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows everything gets everything right, through lm-eval itself."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    model = pytest.importorskip("lm_eval.api.model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    class Oracle(model.LM):  # type: ignore[misc, name-defined]
        """Finds what is right likely, and all else not."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            found = []
            for request in requests:
                doc = request.doc
                wanted = doc["answer"] if "answer" in doc else doc["choices"][doc["gold"]]
                found.append((0.0, True) if wanted in request.args else (-9.0, False))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    manager = tasks.TaskManager(include_path=str(folder / "lm_eval"), include_defaults=False)
    done = lm_eval.simple_evaluate(
        model=Oracle(), tasks=["partwhole"], task_manager=manager, bootstrap_iters=0
    )
    scores = {name: one["score,none"] for name, one in done["results"].items()}
    assert len(scores) == len(TASKS) + 3
    assert set(scores.values()) == {1.0}


@pytest.mark.parametrize(
    ("line", "answer", "form"),
    [
        ({"text": "ab", "contexts": {}, "names": []}, {"nats": [1.0]}, '`nats`, such as {"own"'),
        ({"text": "ab", "contexts": {}, "names": []}, {}, '`nats`, such as {"own"'),
        ({"right": ["a"], "wrong": ["b"], "kind": "k"}, {"losses": [1.0]}, "`losses`, two numbers"),
        (
            {"text": "ab", "answers": [], "plan": {"start": 1, "letters": ["b"], "length": 2}},
            {"answers": [], "poem": 3},
            "`poem`, a text",
        ),
        (
            {"text": "ab", "answers": [{"kind": "k", "text": "b"}]},
            {"answers": 3},
            "a list of texts",
        ),
    ],
)
def test_an_answer_of_another_form_is_refused_with_the_form(
    line: dict[str, Any], answer: dict[str, Any], form: str
) -> None:
    own = {"task": "t", "id": 5}
    with pytest.raises(ValueError, match=f"answer to 5 of 't' must have.*{re.escape(form)}"):
        scoring.score([own | line], [own | answer])
