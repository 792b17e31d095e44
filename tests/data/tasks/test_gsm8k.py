"""Labelled solutions of grade-school problems, read from a file of the published form."""

import json
from pathlib import Path

import pytest

from counterpoint.data.tasks.gsm8k import read_solutions
from counterpoint.errors import UserError


def test_solutions_are_read_with_their_labels_and_wrong_sums(tmp_path: Path) -> None:
    right = "She has 16 - 3 = <<16-3=13>>13 eggs.\nThat is $<<13*2=26>>26.\nA: 26"
    wrong = "She has 16 - 3 = <<16-3=13>>13 eggs.\nThat is $<<13*2=27>>27.\nA: 27"
    line = {
        "question": "How many?",
        "ground_truth": right,
        "small": {"is_correct": True, "solution": right},
        "large": {"is_correct": False, "solution": wrong},
    }
    file = tmp_path / "solutions.jsonl"
    file.write_text(json.dumps(line) + "\n")
    ours, theirs = read_solutions(file)
    assert ours.steps == ("She has 16 - 3 = 13 eggs.", "That is $26.", "The answer is 26")
    assert (ours.model, ours.is_correct, ours.wrong_sum) == ("small", True, 0)
    assert (theirs.model, theirs.is_correct, theirs.wrong_sum) == ("large", False, 2)


def test_what_is_no_sum_is_no_error(tmp_path: Path) -> None:
    text = "<<x+1=3>>a\n<<1/0=3>>b\n<<-(2+3)*2=-10>>c"
    line = {"question": "?", "small": {"is_correct": False, "solution": text}}
    file = tmp_path / "solutions.jsonl"
    file.write_text(json.dumps(line) + "\n")
    (one,) = read_solutions(file)
    assert one.wrong_sum == 0


def test_other_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "solutions.jsonl"
    file.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="must have a question"):
        list(read_solutions(file))
