"""Labelled solutions of grade-school problems, read from a file of the published form."""

import json
from pathlib import Path

import pytest

from counterpoint.data.tasks.gsm8k import read_graded, read_solutions, value_of
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


def graded(**own: object) -> dict[str, object]:
    """Return a solution of MR-GSM8K as its results have it."""
    return {
        "uuid": "a",
        "question": "How many eggs?",
        "ground_truth_solution": "16 - 3 = <<16-3=13>>13\n#### 13",
        "model_output_steps": ["Step 1:  16 + 3 = <<16+3=19>>19 eggs.", "Step 2: #### 19"],
        "model_output_solution_correctness": "wrong",
        "model_output_solution_first_error_step": 1,
        "question_type": "original",
        **own,
    }


def test_graded_solutions_are_read_once_with_the_step_that_a_person_labelled(
    tmp_path: Path,
) -> None:
    right = graded(
        uuid="b",
        model_output_solution_correctness="correct",
        model_output_solution_first_error_step="N/A",
    )
    first = tmp_path / "first.json"
    first.write_text(json.dumps([graded(), graded(uuid="c", question_type="POT")]))
    second = tmp_path / "second.json"
    second.write_text(json.dumps([graded(), right]))
    wrong, other = read_graded([first, second])
    assert wrong.steps == ("16 + 3 = 19 eggs.", "The answer is 19")
    assert (wrong.is_correct, wrong.wrong_step, wrong.wrong_sum) == (False, 1, 0)
    assert wrong.worked.endswith("#### 13")
    assert (other.is_correct, other.wrong_step) == (True, 0)


def test_results_of_another_form_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('[{"question_type": "original"}]')
    with pytest.raises(UserError, match="graded solutions of MR-GSM8K"):
        list(read_graded([file]))


def test_the_value_of_a_sum_is_computed() -> None:
    assert value_of("-(2+3)*$2,000/4") == -2500
    assert value_of("2 eggs") is None
