"""The whole of a session that has finished other blocks in as many ticks."""

import pytest
import torch
from torch import Tensor

from counterpoint.systems.two_stream_state import TwoStreamState
from tests.systems.test_two_stream import END, build, feed, same, words
from tests.systems.tiny_models import tower


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("swapped_rows", [[0], [0, 1]])
@torch.no_grad()
def test_a_donor_at_the_same_tick_lends_its_whole_with_other_blocks(
    lag: int, swapped_rows: list[int]
) -> None:
    """Texts with one ending: when the part has forgotten its own text, it goes on as the donor.

    The second row has as many blocks as its donor, and does not depend on the first one.
    """
    model = build(lag, whole=tower(20, 2, 2, 9), boundary_ids=(END,))
    tail = torch.randint(0, END, (2, 78))
    tail[:, ::3] = END
    mine, other = words(2, 15, 3), words(2, 15, 3)
    mine[0, 1::2] = END  # more blocks than the donor has
    ids, theirs = torch.cat((mine, tail), 1), torch.cat((other, tail), 1)
    pick = torch.tensor(swapped_rows)

    def read(text: Tensor) -> TwoStreamState:
        return feed(model, text[pick, :27], model.initial_state(len(pick)))[1]

    differs = read(ids).whole.finished != read(theirs).whole.finished
    assert differs.tolist() == [True, False][: len(pick)]
    own, _ = feed(model, ids[pick, 27:], read(ids))
    donor, _ = feed(model, theirs[pick, 27:], read(theirs))
    found, _ = feed(model, ids[pick, 27:], model.swap(read(ids), read(theirs)))
    same(found[0, 48:], donor[0, 48:])
    assert not torch.allclose(found[0, :3], own[0, :3], atol=1e-3)
