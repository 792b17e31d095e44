"""A judge of sums interrupts nobody who is right, at whatever word he is."""

import random

import pytest

from counterpoint.data.tasks.gsm8k_speech import said_words
from counterpoint.runtime.cascade.sum_judge import SumJudge
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.speech.partials import ScoredWord


def words(text: str) -> tuple[ScoredWord, ...]:
    return tuple(ScoredWord(word, 0.0, 0.0, 1.0) for word in text.split())


def judged(said: str) -> list[float]:
    """Return the scores after every word of a turn that goes on, and at its end."""
    heard = words(said)
    going_on = [SumJudge()(Scene(words=heard[:count])) for count in range(len(heard) + 1)]
    return [*going_on, SumJudge()(Scene(words=heard, is_over=True))]


@pytest.mark.parametrize(
    ("said", "is_wrong"),
    [
        ("so seven times eight is fifty four right", True),
        ("so seven times eight is fifty six right", False),
        ("7 times 8 is 54, so", True),
        ("7 + 8 = 15. Then", False),
        ("three hundred plus twenty five equals three hundred twenty five so", False),
        ("three hundred plus twenty five equals three hundred thirty so", True),
        ("twelve divided by four is three and then", False),
        ("twelve divided by four is two and then", True),
        ("ten divided by zero is five or so", False),
        ("two apples plus three is nine and", False),
        ("seven times eight is fifty", False),  # "four" may follow
        ("there is five and six", False),
    ],
)
def test_sums_are_judged_when_they_are_complete(said: str, is_wrong: bool) -> None:
    assert SumJudge()(Scene(words=words(said))) == float(is_wrong)


def test_judge_is_as_sure_as_the_least_certain_word() -> None:
    sure = [1.0, 0.9, 0.4, 0.8, 0.7, 0.1]
    said = ["two", "plus", "two", "is", "five", "so"]
    heard = tuple(ScoredWord(one, 0.0, 0.0, p) for one, p in zip(said, sure, strict=True))
    assert SumJudge()(Scene(words=heard)) == 0.4


@pytest.mark.parametrize(
    "said",
    [
        "seven times eight is fifty six so",
        "seven times eight, is fifty-six, so",
        "seven multiplied by eight is fifty six so",
        "sixty plus sixty is one hundred twenty so",
        "six hundred plus six hundred is one thousand two hundred so",
        "one hundred and five plus five is one hundred and ten so",
        "two thousand five hundred plus one is two thousand five hundred and one so",
        "1,200 + 300 = 1,500. So",
        "three plus four plus five is twelve so",
        "three plus uh four plus five is twelve so",
        "two plus three times four is twenty so",
        "two plus three times four is fourteen so",
        "2.5 times 2 is 5, so",
        "two point five times two is five so",
        "zero point two five times four is one so",
        "ten divided by three is three point three so",
        "10 minus 12 is -2, so",
        "ten minus twelve is minus two so",
        "four plus four is eight. Eight plus two is ten. So",
        "four plus four is eight plus two is ten so",
        "ten dollars minus four dollars is six dollars so",
        "five divided by two is two and a half",
        "one thousand times one thousand is one million",
        "four divided by eight is one half",
        "eight divided by three is two remainder two",
        "eight divided by three is two, remainder two.",
        "seven times eight is fifty uh six",
        "seven times eight is fifty, six",
        "three by three is nine",
        "1/4 is 25%",
        "11 plus 2 is 1 o'clock",
        "twenty plus one is twenty first",
        "two plus two is one less than five",
        "half of ten plus two is seven.",
        "twice three plus one is seven.",
        "555-1234 is 7 digits",
        "$5 plus $3 is $8.",
        "two and a half times two is five.",
        "the sum of four and five is nine.",
    ],
)
def test_nobody_who_is_right_is_interrupted_at_any_word(said: str) -> None:
    assert set(judged(said)) == {0.0}


@pytest.mark.parametrize(
    "said",
    [
        "10 - 4 = 7 so",
        "seven times eight, is fifty four, so",
        "seven multiplied by eight is fifty five so",
        "six hundred plus six hundred is one thousand three hundred so",
        "three plus four plus five is thirteen so",
        "two plus three times four is twenty one so",
        "2.5 times 2 is 6, so",
        "ten divided by three is three point four so",
        "ten minus twelve is two so",
        "four plus four is nine. Eight plus two is ten so",
    ],
)
def test_wrong_sums_are_found_when_they_are_complete(said: str) -> None:
    found = judged(said)
    assert found[-1] == 1.0
    assert found[-2] == 1.0


@pytest.mark.parametrize("said", ["seven times eight is one hundred and", "2 times 2 is 5 point"])
def test_a_number_that_may_go_on_is_not_judged(said: str) -> None:
    assert judged(said)[-2:] == [0.0, 0.0]


def test_random_sums_in_words_and_figures() -> None:
    rng = random.Random(0)
    for number in range(300):
        first, second = rng.randrange(2000), rng.randrange(2000)
        error = rng.choice([-100, -10, -1, 1, 10, 100])
        for result, score in ((first + second, 0.0), (first + second + error, 1.0)):
            written = f"{first} + {second} = {result} so"
            said = " ".join(said_words(written)) if number % 2 else written
            scores = judged(said)
            assert scores[-1] == score, said
            assert set(scores[: len(scores) - 2]) == {0.0}, said
