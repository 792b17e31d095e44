"""Rounds: the three published layouts, place by place, and what carries loss in them."""

import pytest
import torch
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.rounds import ANSWER, HEARD, MARK, RESPONSE, THOUGHT, lay_out_rounds
from counterpoint.streams.spec import UNSET_ID

EOPA, EOA, CLOSE, INTERRUPT = 90, 91, 92, 93


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


def test_the_basic_layout_alternates_what_is_heard_and_what_is_thought() -> None:
    row = [
        {HEARD: ids(1, 2), MARK: ids(EOPA), THOUGHT: ids(10, CLOSE)},
        {HEARD: ids(3), MARK: ids(EOA), THOUGHT: ids(11, CLOSE), ANSWER: ids(20, 21)},
    ]
    places = lay_out_rounds([row])
    no = UNSET_ID
    assert places.ids.tolist() == [
        [no, no, EOPA, 10, CLOSE, no, EOA, 11, CLOSE, 20, 21],
    ]
    assert places.heard.tolist() == [[1, 2, no, no, no, 3, no, no, no, no, no]]
    assert places.trained.long().tolist() == [[0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]]
    assert places.lengths.tolist() == [11]


def test_an_interrupted_row_ends_with_the_answer_and_responses_carry_no_loss() -> None:
    interrupted = [
        {HEARD: ids(1), MARK: ids(EOPA), THOUGHT: ids(10, INTERRUPT, CLOSE), ANSWER: ids(20)},
    ]
    called = [
        {HEARD: ids(1), MARK: ids(EOPA), THOUGHT: ids(30)},
        {RESPONSE: ids(40, 41), THOUGHT: ids(31, CLOSE)},
        {HEARD: ids(2), MARK: ids(EOA), THOUGHT: ids(CLOSE), ANSWER: ids(21)},
    ]
    places = lay_out_rounds([interrupted, called])
    no = UNSET_ID
    assert places.lengths.tolist() == [6, 11]
    assert places.ids.tolist() == [
        [no, EOPA, 10, INTERRUPT, CLOSE, 20, no, no, no, no, no],
        [no, EOPA, 30, 40, 41, 31, CLOSE, no, EOA, CLOSE, 21],
    ]
    assert places.trained.long().tolist() == [
        [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 1],
    ]


def test_vectors_are_heard_in_the_places_of_their_chunks() -> None:
    frames = torch.randn(5, 3)
    row = [
        {HEARD: frames[:2], MARK: ids(EOPA), THOUGHT: ids(CLOSE)},
        {HEARD: frames[2:], MARK: ids(EOA), THOUGHT: ids(CLOSE)},
    ]
    places = lay_out_rounds([row, row[:1]])
    here = [0, 1, 4, 5, 6]
    assert torch.equal(places.heard[0, here], frames)
    assert torch.equal(places.heard[1, :2], frames[:2])
    assert not places.heard[0, [2, 3, 7, 8]].any()
    assert not places.heard[1, 2:].any()
    assert (places.ids[0, here] == UNSET_ID).all()


def test_what_is_no_round_is_refused() -> None:
    with pytest.raises(UserError, match="only the parts response, heard, mark"):
        lay_out_rounds([[{"said": ids(1)}]])
    with pytest.raises(UserError, match="at least one element"):
        lay_out_rounds([[{HEARD: ids()}]])
