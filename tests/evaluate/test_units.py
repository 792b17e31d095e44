import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from counterpoint.data.loader import HeldOutRows
from counterpoint.data.text.held_out import HeldOutText
from counterpoint.evaluate.score import bits_per_byte, score
from counterpoint.evaluate.units import measures, score_units
from counterpoint.streams.batch import Batch
from counterpoint.systems.moshi import Moshi
from tests.evaluate.tiny import LENGTHS, two, units
from tests.systems.tiny_moshi import build, random_codes


class FewRows:
    """Rows of one length; in the second one no words are known."""

    def __init__(self, model: Moshi) -> None:
        codes = random_codes(model, 5, 9)
        codes["text"][1] = -1
        self.model, self.codes = model, codes

    def __len__(self) -> int:
        return 5

    def rows(self, indices: np.ndarray) -> Batch:
        rows = torch.from_numpy(indices)
        return self.model.lay_out({name: ids[rows] for name, ids in self.codes.items()})


@pytest.fixture
def model() -> Moshi:
    torch.manual_seed(3)
    return build("unlike_codebooks")


@torch.no_grad()
def test_units_one_by_one_measure_as_one_batch(model: Moshi) -> None:
    """The published loss of all rows, not the mean of the rows' losses."""
    rows = FewRows(model)
    found = measures(model, score_units(model, HeldOutRows(rows)))
    loss = model.loss(rows.rows(np.arange(5)))
    assert found["loss"] == pytest.approx(float(loss.total), rel=1e-5)
    for name, value in loss.terms.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5)
    assert found["bits_per_frame"] == pytest.approx(float(loss.nats) / math.log(2) / 45, rel=1e-5)
    each = [float(model.loss(rows.rows(np.array([i]))).total) for i in range(5)]
    assert abs(sum(each) / 5 - found["loss"]) > 1e-3


def test_streams_pay_by_the_frame(model: Moshi) -> None:
    scores = score_units(model, HeldOutRows(FewRows(model)))
    assert [score.size for score in scores] == [9] * 5
    assert [score.title for score in scores] == [f"row {i}" for i in range(5)]
    # The first acoustic codes are of no content, and the second row has no words.
    assert [float(s.losses["text"].num_ticks) for s in scores] == [9, 0, 9, 9, 9]
    assert {float(s.losses["agent_semantic"].num_ticks) for s in scores} == {9}
    assert {float(s.losses["agent_acoustic"].num_ticks) for s in scores} == {8}
    for one in scores:
        nats = sum(float(loss.nats) for loss in one.losses.values())
        assert one.bits == pytest.approx(nats / math.log(2))


def test_some_units_lie_at_equal_distances(model: Moshi) -> None:
    units = HeldOutRows(FewRows(model))
    seen = list[tuple[int, int]]()
    some = score_units(model, units, 3, lambda *progress: seen.append(progress))
    every: Sequence[float] = [score.bits for score in score_units(model, units)]
    assert [score.bits for score in some] == [every[0], every[2], every[4]]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(score_units(model, units, 9)) == 5


@pytest.mark.parametrize("batch_ticks", [8192, 20])
def test_text_costs_the_same_by_sums_and_id_by_id(batch_ticks: int) -> None:
    """Also where units are cut into pieces."""
    system = two()
    block_ticks = system.layout.block_ticks
    held_out = HeldOutText(
        units=units(), byte_lengths=LENGTHS, block_ticks=block_ticks, batch_ticks=batch_ticks
    )
    scores = score_units(system, held_out)
    each = score(system, units(), LENGTHS, block_ticks=block_ticks, batch_ticks=batch_ticks)
    assert [(one.title, one.size) for one in scores] == [(s.title, s.num_bytes) for s in each]
    assert [one.bits for one in scores] == pytest.approx([s.bits for s in each], rel=1e-5)
    assert {one.unit for one in scores} == {"byte"}
    found = measures(system, scores)
    assert found["bits_per_byte"] == pytest.approx(bits_per_byte(each), rel=1e-5)
