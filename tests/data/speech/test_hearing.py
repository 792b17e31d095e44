"""What is heard is written after it has sounded, in its order."""

import math
from typing import Any

import pytest

from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.monologue import Word

HEARD = (
    Word("turn", 1.0, 1.2),
    Word("it", 1.3, 1.4),
    Word("on", 1.4, 1.7),
    Word("please", 2.0, 2.5),
)


def starts(hearing: Hearing) -> list[tuple[str, Any]]:
    placed = hearing.place(reversed(HEARD))
    for word, heard in zip(placed, HEARD, strict=True):
        assert word.end_s - word.start_s == pytest.approx(heard.end_s - heard.start_s)
    return [(word.text, pytest.approx(word.start_s)) for word in placed]


def test_each_word_is_written_when_it_is_over() -> None:
    assert starts(Hearing(after_s=0.2)) == [
        ("turn", 1.4),
        ("it", 1.6),
        ("on", 1.9),
        ("please", 2.7),
    ]


def test_words_of_a_stretch_are_written_when_that_is_over() -> None:
    hearing = Hearing(after_s=0.4, stretch_gap_s=0.25, word_s=0.1)
    assert starts(hearing) == [("turn", 2.1), ("it", 2.2), ("on", 2.3), ("please", 2.9)]
    longer = Hearing(after_s=0.4, stretch_gap_s=0.35, word_s=0.1)
    assert starts(longer) == [("turn", 2.9), ("it", 3.0), ("on", 3.1), ("please", 3.2)]


def test_a_stretch_waits_until_the_one_before_is_written() -> None:
    hearing = Hearing(after_s=0.4, stretch_gap_s=0.25, word_s=0.5)
    assert starts(hearing) == [("turn", 2.1), ("it", 2.6), ("on", 3.1), ("please", 3.6)]


def test_nothing_heard_is_nothing_written() -> None:
    assert Hearing(after_s=0.4, stretch_gap_s=0.25).place(()) == ()


@pytest.mark.parametrize("name", ["after_s", "stretch_gap_s", "word_s"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_times_must_be_seconds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be seconds >= 0: got {value}"):
        Hearing(**{"after_s": 0.1, name: value})


def test_a_stretch_must_be_known_to_be_over() -> None:
    with pytest.raises(ValueError, match="at least `stretch_gap_s`.* got 0.1 and 0.5"):
        Hearing(after_s=0.1, stretch_gap_s=0.5)
