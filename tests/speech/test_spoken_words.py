"""Sounds of an utterance go to its words, and words without time of their own share some."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.speech.spoken_words import SpokenWord, owners, shared


def words_of(alone: list[str], said: str) -> list[str]:
    """The part of an utterance that belongs to each word; letters stand for phonemes."""
    found = owners([list(word) for word in alone], list(said))
    return [
        "".join(unit for unit, owner in zip(said, found, strict=True) if owner == index)
        for index in range(len(alone))
    ]


@pytest.mark.parametrize(
    ("alone", "said", "expected"),
    [
        (["one", "two"], "one two", ["one", "two"]),
        (["one", "two"], "^onetwo.$", ["one", "two"]),  # said as one
        (["of", "the", "best"], "ofthe best", ["of", "the", "best"]),
        (["wun threti", "pm"], "wun threti pm", ["wunthreti", "pm"]),  # one word, two groups
        (["ei", "dog"], "a dog", ["a", "dog"]),  # a weak form
        (["to", "-", "go"], "to, go.", ["to", "", "go"]),
        (["cat", "sat"], "cat xsat", ["cat", "xsat"]),  # a sound that joins them
        (["a"], "", [""]),
    ],
)
def test_units_go_to_the_words_that_they_are_nearest_to(
    alone: list[str], said: str, expected: list[str]
) -> None:
    assert words_of(alone, said) == expected


def test_every_unit_that_sounds_has_a_word_and_words_keep_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    letters = "abcdef"

    def text(length: int) -> str:
        picked = torch.randint(len(letters), (length,), generator=generator)
        return "".join(letters[int(index)] for index in picked)

    for _ in range(100):
        alone = [text(1 + int(torch.randint(5, (), generator=generator))) for _ in range(4)]
        said = " ".join(text(1 + int(torch.randint(5, (), generator=generator))) for _ in range(4))
        found = owners([list(word) for word in alone], list(said))
        sounding = [owner for unit, owner in zip(said, found, strict=True) if unit != " "]
        assert sounding == sorted(sounding)
        assert set(sounding) <= set(range(4))
        assert all(owner == -1 for unit, owner in zip(said, found, strict=True) if unit == " ")


def plain_owners(alone: list[str], said: str) -> list[int]:
    """The same alignment, a cell at a time."""

    def cost(unit: str, other: str) -> int:
        return 3 * (unit != other) if " " in (unit, other) else int(unit != other)

    units = [(unit, index) for index, word in enumerate(alone) for unit in (*word, " ")]
    costs = [list(range(len(said) + 1))]
    for row, (unit, _) in enumerate(units, start=1):
        before, line = costs[-1], [row]
        for column, other in enumerate(said, start=1):
            change = before[column - 1] + cost(unit, other)
            line.append(min(change, before[column] + 1, line[-1] + 1))
        costs.append(line)
    found, row, column = [-1] * len(said), len(units), len(said)
    while column:
        unit, index = units[row - 1] if row else ("", 0)
        here = costs[row][column]
        if row and here == costs[row - 1][column - 1] + cost(unit, said[column - 1]):
            row, column = row - 1, column - 1
            found[column] = index
        elif row and here == costs[row - 1][column] + 1:
            row -= 1
        else:
            column -= 1
            found[column] = index if unit != " " or not row else min(index + 1, len(alone) - 1)
    return [-1 if unit == " " else index for unit, index in zip(said, found, strict=True)]


@settings(max_examples=200, deadline=None)
@given(
    alone=st.lists(st.text("ab ", max_size=5), min_size=1, max_size=6),
    said=st.text("ab ", max_size=30),
)
def test_rows_at_a_time_are_cells_at_a_time(alone: list[str], said: str) -> None:
    assert owners([list(word) for word in alone], list(said)) == plain_owners(alone, said)


def test_long_utterances_are_aligned_in_a_moment() -> None:
    alone = [list(f"word{number % 7}") for number in range(300)]
    said = [unit for word in alone for unit in (*word, " ")]
    began = time.perf_counter()
    found = owners(alone, said)
    assert time.perf_counter() - began < 3
    assert found == [owner for index in range(300) for owner in (*[index] * 5, -1)]


def test_words_without_time_share_that_of_the_word_before() -> None:
    words = [
        SpokenWord("of", 1.0, 1.5),
        SpokenWord("the", 1.5, 1.5),
        SpokenWord("best", 1.6, 2.0),
        SpokenWord("-", 2.0, 2.0),
        SpokenWord("end", 2.0, 3.0),
    ]
    assert shared(words) == [
        SpokenWord("of", 1.0, 1.2),
        SpokenWord("the", 1.2, 1.5),
        SpokenWord("best", 1.6, 2.0),
        SpokenWord("-", 2.0, 2.0),
        SpokenWord("end", 2.0, 3.0),
    ]
