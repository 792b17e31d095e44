"""The toy task of Multi-Token Attention: what is asked can be told from the text, and only so."""

from typing import Any

import pytest

from counterpoint.data.tasks.block_search import BlockSearch
from counterpoint.data.tasks.items import ScoredTask, floors
from counterpoint.errors import UserError


@pytest.mark.parametrize("asked", ["all", "first", "last"])
@pytest.mark.parametrize("letters", [5, 8])
def test_one_block_has_all_letters_and_each_letter_is_in_others(asked: Any, letters: int) -> None:
    task = BlockSearch(num_blocks=12, block_letters=letters, asked=asked)
    assert isinstance(task, ScoredTask)
    for number in range(50):
        item = task.item(3, number)
        text, _, asking = item.text.partition("#")
        query, _, answer = asking.partition("=")
        blocks = text.rstrip(".").split(".")
        assert len(blocks) == 12
        assert all(len(set(block)) == letters for block in blocks)
        found = [block for block in blocks if set(query) <= set(block)]
        assert len(found) == 1
        told = {"all": found[0], "first": found[0][0], "last": found[0][-1]}[asked]
        assert answer == told == item.answers[0].text
        for letter in query:
            assert sum(letter in block for block in blocks) >= 2
        assert len(item.text) == task.most_symbols


def test_the_text_of_the_paper_is_as_long_as_there() -> None:
    assert BlockSearch().most_symbols == 309


def test_floors_are_between_nothing_and_all() -> None:
    found = floors(BlockSearch(num_blocks=12), 400, 5)
    scores = [found[name]["block"] for name in ("constant", "any block", "first letter", "oracle")]
    assert scores == sorted(scores)
    assert scores[-1] == 1.0
    assert 0.02 < scores[1] < 0.2 < scores[2] < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_letters": 1}, "2 letters or more"),
        ({"block_letters": 14}, "up to 13"),
        ({"num_blocks": 2}, "more blocks than the 2 letters"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BlockSearch(**changes)
