"""Rings of published coarse states: which steps stay, and in which slot."""

import torch

from counterpoint.blocks.steering import ring_slots


def test_the_newest_steps_stay_each_in_the_slot_of_its_number() -> None:
    first = torch.tensor([2, 7])
    count = torch.tensor([5, 1])
    found = ring_slots(first, count, 6, 3)
    # Steps 4, 5 and 6 of row 0 stay, and step 7 of row 1; slot 3 takes what is not kept.
    assert found.tolist() == [[3, 3, 1, 2, 0, 3], [1, 3, 3, 3, 3, 3]]
