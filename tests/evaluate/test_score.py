import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint.data.text.held_out import rows_batch
from counterpoint.evaluate.score import (
    Score,
    bits_per_byte,
    by_position,
    part_scores,
    position_edges,
    score,
)
from counterpoint.streams.batch import Batch
from tests.evaluate.tiny import LENGTHS, single, two, unit, units
from tests.systems.scoring import extend


def by_streaming(system: Any, ids: np.ndarray) -> np.ndarray:
    """Nats of every id but the first, one tick at a time: the definition."""
    state = system.initial_state(1)
    nats = []
    for now, following in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        with torch.no_grad():
            logits, state = extend(system, {"part": torch.tensor([[now]])}, state)
        nats.append(-torch.log_softmax(logits["part"][0, 0].double(), -1)[following].item())
    return np.array(nats)


@pytest.mark.parametrize("build", [single, two])
def test_scores_equal_streaming_id_by_id(build: type[nn.Module]) -> None:
    system, all_units = build(), units()
    found = score(system, all_units, LENGTHS, block_ticks=4, batch_ticks=220)
    for one, its_score in zip(all_units, found, strict=True):
        np.testing.assert_allclose(its_score.nats, by_streaming(system, one.ids), atol=2e-4)
        assert its_score.num_bytes == one.num_bytes
    total = sum(by_streaming(system, one.ids).sum() for one in all_units) / math.log(2)
    expected = total / sum(one.num_bytes for one in all_units)
    assert bits_per_byte(found) == pytest.approx(expected, rel=1e-5)


def test_scores_behind_states_are_those_of_one_pass() -> None:
    model: Any = single().eval()
    ids = torch.randint(0, 256, (3, 20))
    hidden, _ = model.read({"part": ids}, model.initial_state(3))
    start = torch.zeros_like(ids)
    batch = Batch(ticks={"part": ids}, targets={"part": ids}, document_start=start, size=60)
    assert torch.allclose(part_scores(model, hidden), model(batch)["part"], atol=1e-5)


def test_a_fair_die_pays_its_size() -> None:
    from counterpoint.systems.single_stream import SingleStream
    from tests.evaluate.tiny import single_config

    found = score(SingleStream(single_config()).eval(), [unit(40, "A")], LENGTHS)
    assert bits_per_byte(found) == pytest.approx(41 * math.log2(258) / 40, rel=1e-6)


def test_long_units_are_cut_into_pieces_without_a_past() -> None:
    system, one = single(), unit(50, "A")
    found = score(system, [one], LENGTHS, batch_ticks=20)[0]
    pieces = [one.ids[0:21], one.ids[20:41], one.ids[40:]]
    expected = np.concatenate([by_streaming(system, piece) for piece in pieces])
    np.testing.assert_allclose(found.nats, expected, atol=2e-4)


def test_progress_ends_with_all_ticks() -> None:
    seen: list[tuple[int, int]] = []
    score(single(), units(), LENGTHS, batch_ticks=120, on_progress=lambda *now: seen.append(now))
    total = sum(len(one.ids) - 1 for one in units())
    assert len(seen) > 1
    assert seen[-1] == (total, total)


def test_nothing_held_out_is_refused() -> None:
    with pytest.raises(ValueError, match="At least one unit must be held out"):
        score(single(), [], LENGTHS)


def test_rows_are_filled_up_to_whole_blocks() -> None:
    batch = rows_batch([np.array([9, 1, 2, 3, 4, 5]), np.array([9, 7])], 4)
    assert batch.ticks["part"].tolist() == [[9, 1, 2, 3, 4, 4, 4, 4], [9] * 8]
    assert batch.targets["part"].tolist() == [[1, 2, 3, 4, 5, -1, -1, -1], [7] + [-1] * 7]


def test_position_edges_double_and_cover() -> None:
    assert position_edges(1000) == (0, 64, 128, 256, 512, 1024)
    assert position_edges(64) == (0, 64)
    assert position_edges(65)[-1] == 128


def test_bins_hold_what_their_bytes_cost() -> None:
    ln2 = math.log(2)
    scores = [
        Score(title="A", nats=ln2 * np.arange(1.0, 7), byte_lengths=np.array([1, 1, 1, 1, 1, 0])),
        Score(title="A", nats=ln2 * np.array([8.0, 9]), byte_lengths=np.array([3, 0])),
    ]
    bits, num_bytes = by_position(scores, (0, 2, 4, 8))
    np.testing.assert_allclose(bits, [[1 + 2, 3 + 4, 5 + 6], [8, 9, 0]])
    assert num_bytes.tolist() == [[2, 2, 1], [3, 0, 0]]
