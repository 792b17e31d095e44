"""Telling words that a recogniser revises: each once, and what is not believed any more."""

import random
from collections import Counter

import pytest

from counterpoint.runtime.cascade.ear import UserTurn
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.trace import Trace, WordTeller, standing_words
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.timeline import Timeline


def heard(text: str, shift_s: float = 0.0) -> tuple[ScoredWord, ...]:
    """Return words of half a second each, all of them later by some time."""
    return tuple(
        ScoredWord(word, 0.5 * place + shift_s, 0.5 * place + 0.5 + shift_s, 0.9)
        for place, word in enumerate(text.split())
    )


class Told:
    """What is told of one turn, hypothesis after hypothesis."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.teller = WordTeller(self.trace)
        self.turn = UserTurn(number=1, start_s=0.0, voice_end_s=9.0, voiced_s=9.0)

    def hear(self, words: tuple[ScoredWord, ...]) -> str:
        self.turn.update(words, 0, 1.0)
        return self.teller.tell(self.turn)

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self.trace.events if event.kind == kind]

    @property
    def standing(self) -> list[str]:
        """What stands when the events are taken in order."""
        counts: Counter[str] = Counter()
        for event in self.trace.events:
            counts[plain(event.text)] += {"word": 1, "retracted": -1}[event.kind]
            assert counts[plain(event.text)] >= 0
        return sorted(counts.elements())


@pytest.mark.parametrize("shift_s", [0.0, 0.3, 0.8, 5.0])
def test_word_that_vanishes_lets_no_other_be_told_twice(shift_s: float) -> None:
    """Also if the times of those after it move, as a recogniser does."""
    told = Told()
    told.hear(heard("I would like a tea"))
    assert told.hear(heard("I like a tea please", shift_s=shift_s)) == "please"
    assert told.texts("word") == ["I", "would", "like", "a", "tea", "please"]
    assert told.texts("retracted") == ["would"]


@pytest.mark.parametrize(
    ("first", "second", "new", "retracted", "returned"),
    [
        ("", "one two", "one two", "", "one two"),
        ("one two", "one two", "", "", ""),
        ("one two", "One, two.", "", "", ""),
        ("one fi", "one five six", "five six", "fi", "five six"),
        ("one two three", "one to three four", "to four", "two", "four"),
        ("two three", "one two three", "one", "", ""),
        ("no no", "no no no", "no", "", "no"),
        ("la la la", "la", "", "la la", ""),
        ("seven times", "7 times 8", "7 8", "seven", "8"),
        ("a b", "", "", "a b", ""),
    ],
)
def test_what_changes_is_told(
    first: str, second: str, new: str, retracted: str, returned: str
) -> None:
    told = Told()
    told.hear(heard(first))
    told.trace.take()
    assert told.hear(heard(second)) == returned
    assert told.texts("word") == new.split()
    assert told.texts("retracted") == retracted.split()


def test_what_stands_is_the_newest_hypothesis_whatever_came_before() -> None:
    draw = random.Random(0)
    for _ in range(200):
        told = Told()
        for _ in range(draw.randrange(1, 6)):
            words = " ".join(draw.choice("abcde") for _ in range(draw.randrange(8)))
            told.hear(heard(words, shift_s=draw.random()))
            assert told.standing == sorted(words.split())
            timeline = Timeline(events=tuple(told.trace.events))
            assert sorted(one.text for one in standing_words(timeline, "user")) == told.standing


def test_words_that_only_come_are_told_in_order_and_once() -> None:
    told = Told()
    text = " ".join(f"w{number}" for number in range(3000))
    for count in (10, 1000, 3000):
        told.hear(heard(" ".join(text.split()[:count])))
    assert told.texts("word") == text.split()
    assert not told.texts("retracted")


def test_words_of_the_next_turn_retract_nothing() -> None:
    told = Told()
    told.hear(heard("one two"))
    told.turn = UserTurn(number=2, start_s=9.0, voice_end_s=19.0, voiced_s=9.0)
    assert told.hear(heard("two", shift_s=9.0)) == "two"
    assert not told.texts("retracted")
