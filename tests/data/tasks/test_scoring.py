"""The scorer that is exported with tasks: it cannot be gamed, and a bad line is told."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.tasks import scoring

NAN = float("nan")
INF = float("inf")
ANSWERS = {"text": "ab", "answers": [{"kind": "k", "text": one} for one in "ab"]}
PLAN = ANSWERS | {"plan": {"start": 1, "letters": ["b"], "rhymes": "A", "length": 2}}
CONTEXTS = {"text": "ab", "contexts": {"own": "x", "absent": ""}, "names": [[0, 1]]}
CHOICE = {"right": ["a"], "wrong": ["b"], "kind": "k"}
COSTS = {"own": 1.0, "absent": 2.0}


def scored(line: dict[str, Any], *answers: dict[str, Any]) -> dict[str, Any]:
    """The scores of lines of one kind, one for each answer."""
    head = {"task": "t"}
    lines = [head | {"id": number} | line for number in range(len(answers))]
    return scoring.score(lines, [head | {"id": i} | one for i, one in enumerate(answers)])["t"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (ANSWERS, {}),
        (ANSWERS, {"answers": "ab"}),  # the letters of a text are no list of texts
        (ANSWERS, {"answers": {"0": "a", "1": "b"}}),
        (ANSWERS, {"answers": ["a", 5]}),
        (ANSWERS, {"answers": ["a", "b", "c"]}),
        (ANSWERS, {"answers": ["a", "b"], "nats": [1.0]}),
        (ANSWERS, {"answers": ["a", "b"], "nats": [1.0, NAN]}),
        (ANSWERS, {"answers": ["a", "b"], "nats": [1.0, -1.0]}),
        (ANSWERS, {"answers": ["a", "b"], "nat": [1.0, 1.0]}),
        (ANSWERS, {"answers": ["a", "b"], "poem": "b"}),
        (PLAN, {"answers": [], "poem": None}),
        (CONTEXTS, {"nats": {}}),
        (CONTEXTS, {"nats": {"own": 1.0}}),
        (CONTEXTS, {"nats": COSTS | {"bogus": 1.0}}),
        (CONTEXTS, {"nats": COSTS | {"own": -1e9}}),
        (CONTEXTS, {"nats": COSTS | {"own": NAN}}),
        (CONTEXTS, {"nats": COSTS | {"own": INF}}),
        (CONTEXTS, {"nats": COSTS | {"own": "1"}}),
        (CONTEXTS, {"nats": COSTS | {"own": True}}),
        (CONTEXTS, {"nats": COSTS, "name_nats": {"own": 1.0}}),
        (CHOICE, {"losses": [NAN, 1.0]}),
        (CHOICE, {"losses": [-2.0, -1.0]}),  # log likelihoods: the sign was forgotten
        (CHOICE, {"losses": [1.0, 2.0, 3.0]}),
        (CHOICE, {"losses": "12"}),
    ],
)
def test_an_answer_that_is_not_complete_or_no_number_is_refused(
    line: dict[str, Any], answer: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"^The answer to 0 of 't' must have .*nothing else: got"):
        scored(line, answer)


@pytest.mark.parametrize(
    ("line", "first", "field", "costs"),
    [
        (ANSWERS, {"answers": ["a", "b"]}, "nats", [1.0, 2.0]),
        (CONTEXTS, {"nats": COSTS}, "name_nats", COSTS),
    ],
)
def test_costs_are_told_of_all_lines_of_a_task_or_of_none(
    line: dict[str, Any], first: dict[str, Any], field: str, costs: Any
) -> None:
    """Who tells the costs of easy lines alone would have better ones."""
    assert scored(line, first, first)
    assert scored(line, first | {field: costs}, first | {field: costs})
    with pytest.raises(ValueError, match=f"must have `{field}`, or none: that to 1 has not"):
        scored(line, first | {field: costs}, first)


def test_a_line_has_one_answer() -> None:
    told = {"task": "t", "id": 0}
    line = told | ANSWERS
    with pytest.raises(ValueError, match="one answer: 0 of 't' has a second one"):
        scoring.score([line], [told | {"answers": ["x", "y"]}, told | {"answers": ["a", "b"]}])
    with pytest.raises(ValueError, match="must be an answer to a line: got none"):
        scoring.score([line], [])
    with pytest.raises(ValueError, match="must be a line of a task"):
        scoring.score([told], [told | {"answers": []}])


def test_an_answer_that_was_not_given_is_wrong() -> None:
    assert scored(ANSWERS, {"answers": ["a", None]}, {"answers": []})["k"]["value"] == 0.25


def test_a_score_of_nothing_is_left_out() -> None:
    """There are no violations in an empty poem; NaN is no JSON."""
    found = scored(PLAN, {"answers": [], "poem": ""})
    assert found["poem, written"]["value"] == 0
    assert "poem, violations" not in found
    json.dumps(found, allow_nan=False)


def test_a_bad_line_is_told_with_its_number_and_without_a_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    line = {"task": "t", "id": 0} | ANSWERS
    (folder / "t.jsonl").write_text(json.dumps(line) + "\n")
    answers = tmp_path / "answers.jsonl"
    right = json.dumps({"task": "t", "id": 0, "answers": ["a", "b"]}).encode()
    for text, message in (
        (right + b"\n{bad", f"{answers}, line 2 must be a JSON object: "),
        (b"\n[]", f"{answers}, line 2 must be a JSON object: got []."),
        (b"3", f"{answers}, line 1 must be a JSON object: got 3."),
        (b"\xff", f"{answers}, line 1 must be a JSON object: "),
        (b"[" * 100_000, f"{answers}, line 1 must be a JSON object: "),
        (b'{"task": "t"}', "An answer must have the `task` and `id` of a line: "),
        (b'{"task": "t", "id": []}', "An answer must have the `task` and `id` of a line: "),
        (b'{"task": ["t"], "id": 0}', "An answer must have the `task` and `id` of a line: "),
        (b"", "There must be an answer to a line: got none."),
    ):
        answers.write_bytes(text)
        with pytest.raises(SystemExit, match="^" + re.escape(message)) as told:
            scoring.main([str(folder), str(answers)])
        assert len(str(told.value).splitlines()) == 1
    for words in ([], [str(folder), str(tmp_path / "none.jsonl")]):
        with pytest.raises(SystemExit, match="usage|No such file"):
            scoring.main(words)
    answers.write_bytes(right)
    (folder / "u.jsonl").write_text('{"task": "t"}\n')
    with pytest.raises(SystemExit, match="must hold lines of tasks as they were exported: .*'id'"):
        scoring.main([str(folder), str(answers)])


def test_the_scorer_alone_ends_with_one_line_and_a_code(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{bad\n")
    command = [sys.executable, "-I", "-S", scoring.__file__, ".", "answers.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("answers.jsonl, line 1 must be a JSON object: ")
    assert len(done.stderr.splitlines()) == 1
