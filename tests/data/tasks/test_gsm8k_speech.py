"""Solutions of grade-school problems in words, with the place of their error."""

from dataclasses import replace

import pytest

from counterpoint.data.tasks.gsm8k import LabelledSolution
from counterpoint.data.tasks.gsm8k_speech import said_number, said_problem, said_words
from counterpoint.data.tasks.spoken_maths.hearing import at_rate, chunks

WRONG = LabelledSolution(
    question="Ann has 16 eggs. She eats 3. How many are left?",
    model="small",
    steps=("16 + 3 = 19.", "She has 19 eggs.", "The answer is 19"),
    is_correct=False,
    wrong_sum=2,
    wrong_step=1,
)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ("0", "zero"),
        ("99", "ninety nine"),
        ("100", "one hundred"),
        ("1,250", "one thousand two hundred fifty"),
        ("2000001", "two million one"),
        ("120000", "one hundred twenty thousand"),
        ("3.05", "three point zero five"),
        (".5", "zero point five"),
    ],
)
def test_numbers_are_said_in_words(figures: str, words: str) -> None:
    assert " ".join(said_number(figures)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("16-3=13 x 2", "sixteen minus three is thirteen times two"),
        ("$5, 20% off: 6/2", "five dollars twenty percent off six divided by two"),
        ("a 5-year plan, miles/hour", "a five year plan miles per hour"),
        ("Ann\u2019s box x", "ann's box x"),
    ],
)
def test_signs_and_words_are_said(text: str, words: str) -> None:
    assert " ".join(said_words(text)) == words


def test_an_error_has_been_said_where_its_sentence_ends() -> None:
    problem = said_problem(WRONG)
    said = [" ".join(clause.words) for clause in problem.clauses]
    assert said[:4] == [
        "ann has sixteen eggs",
        "she eats three",
        "how many are left",
        "here is my solution",
    ]
    first = problem.clauses[4]
    assert (" ".join(first.words), first.step) == ("sixteen plus three is nineteen", 1)
    assert problem.words[: problem.wrong_word + 1][-5:] == [*first.words]
    assert problem.wrong_step == 1
    by_sum = said_problem(replace(WRONG, wrong_step=0))
    assert by_sum.words[by_sum.wrong_word] == "eggs"


def test_a_right_solution_and_one_without_a_label_have_no_place_of_an_error() -> None:
    assert said_problem(replace(WRONG, is_correct=True)).wrong_word == -1
    assert said_problem(replace(WRONG, wrong_step=0, wrong_sum=0)).wrong_word == -1


def test_what_is_said_has_times_and_chunks() -> None:
    heard = at_rate(said_problem(WRONG), 2.8, 0, 0)
    cut = chunks(heard, 2.0)
    assert [word for chunk in cut for word in chunk.words] == heard.problem.words
    assert heard.wrong_s == heard.words[heard.problem.wrong_word].end_s
