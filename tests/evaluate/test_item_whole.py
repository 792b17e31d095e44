"""The use of the whole in answers: own and foreign wholes, and who is followed."""

import math
from dataclasses import replace

import pytest
import torch

from counterpoint.data.tasks.items import Item, ItemAnswer
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.source import item_rows
from counterpoint.errors import UserError
from counterpoint.evaluate.item_whole import followed, use_of_whole
from counterpoint.recipes.compression import CompressionArm, compression_system
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.single_stream import tiny as single_tiny
from counterpoint.systems.two_stream import TwoStream

TASK = Logbook(num_events=6, num_entities=3, margin=1, whole_share=1.0)


def _model() -> TwoStream:
    torch.manual_seed(0)
    arm = CompressionArm(ends="fixed", rate=4, compressor="mean")
    model = TwoStream(replace(compression_system(arm), whole_dropout=0.0)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def test_answers_are_counted_by_hand() -> None:
    items = [
        Item("xA", (ItemAnswer("whole", 1, "A"),)),
        Item("xB", (ItemAnswer("whole", 1, "B"),)),
        Item("xB", (ItemAnswer("whole", 1, "B"),)),
    ]
    targets = torch.tensor([[-1, ord("A")], [-1, ord("B")], [-1, ord("B")]])
    own = torch.zeros(3, 2, 258)
    own[:, 1, ord("A")] = 20.0  # always A: right for the first item alone
    other = torch.zeros(3, 2, 258)
    other[0, 1, ord("B")] = 20.0  # the first follows its donor
    other[1:, 1, ord("C")] = 20.0
    (found,) = followed(items, targets, own, other)
    assert (found.num_answers, found.num_differing) == (3, 2)
    assert found.right == pytest.approx(1 / 3)
    assert found.kept == 0.0
    assert found.obeyed == pytest.approx(1 / 2)  # of the first and the last, whose donor says A
    assert found.own_bits == pytest.approx(2 / 3 * 20 / math.log(2), rel=1e-3)


def test_the_own_whole_gives_the_scores_of_a_plain_pass() -> None:
    model = _model()
    items = [TASK.item(0, number) for number in range(6)]
    use = use_of_whole(model, items)
    batch = item_rows(items, model.layout, 28)
    nats = model.losses(batch)["part"].nats / math.log(2)
    told = sum(one.own_bits * one.num_answers for one in use.answers)
    assert told == pytest.approx(float(nats.detach()), rel=1e-4)
    assert any(abs(one.swap_delta) > 1e-4 for one in use.answers)
    assert 1 <= use.effective_rank <= use.width == 64
    assert 0 < use.null_share < 1


def test_what_has_no_whole_is_refused() -> None:
    items = [TASK.item(0, number) for number in range(2)]
    with pytest.raises(UserError, match="must have a whole"):
        use_of_whole(SingleStream(single_tiny()), items)
    with pytest.raises(UserError, match="donor"):
        use_of_whole(_model(), items[:1])
