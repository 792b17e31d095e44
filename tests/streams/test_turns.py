import pytest
import torch

from counterpoint.streams.spec import UNSET_ID
from counterpoint.streams.turns import HANDOVER, Turns

TURNS = Turns(speaker="plan", steady="text", padding_id=0, turn_ticks=4)
TICKS = {
    "plan": torch.tensor([[[0, 0], [7, 8], [UNSET_ID, UNSET_ID], [0, 9]]]),
    "text": torch.tensor([[1, 2, 3, 4]]),
}
ALL = ("plan", HANDOVER, "text")


def test_a_turn_stands_before_its_tick_and_ends_with_a_handover() -> None:
    elements = TURNS.elements(TICKS)
    assert list(elements) == ["plan", HANDOVER, "text"]
    order = TURNS.order(ALL, elements)
    sequence = order.merge(elements)[0, : order.lengths[0]].tolist()
    assert sequence == [1, 7, 8, 0, 2, 3, 9, 0, 4]


def test_without_a_speaker_there_is_the_steady_stream_alone() -> None:
    elements = TURNS.elements({"text": TICKS["text"]})
    order = TURNS.order(ALL, elements)
    assert order.merge(elements).tolist() == [[1, 2, 3, 4]]


def test_some_streams_have_an_order_of_their_own() -> None:
    elements = TURNS.elements(TICKS)
    order = TURNS.order((HANDOVER, "text"), elements)
    own = {name: elements[name] for name in (HANDOVER, "text")}
    assert order.merge(own)[0, : order.lengths[0]].tolist() == [1, 0, 2, 3, 0, 4]


@pytest.mark.parametrize(("num_ticks", "turns", "live"), [(3, 1, 1), (4, 2, 2), (9, 3, 3)])
def test_rows_have_room_for_a_turn_in_so_many_ticks(num_ticks: int, turns: int, live: int) -> None:
    assert TURNS.num_turns(num_ticks) == turns
    assert TURNS.num_turns(num_ticks, live=True) == live
    text = torch.zeros(2, num_ticks, dtype=torch.long)
    plan = torch.zeros(2, num_ticks, 2, dtype=torch.long)
    order = TURNS.order(ALL, TURNS.elements({"plan": plan, "text": text}))
    assert order.source.shape[1] == num_ticks + 3 * turns


def test_a_single_session_has_no_empty_places() -> None:
    elements = TURNS.elements(TICKS)
    order = TURNS.order(ALL, elements, num_read=torch.tensor([11]))
    assert order.source.shape[1] == int(order.lengths[0]) == 9


def test_the_most_ticks_leave_room_for_their_turns() -> None:
    assert TURNS.most_ticks(num_places=10, turn_places=3) == 4
    assert TURNS.most_ticks(num_places=4, turn_places=3) == 1
