import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from counterpoint.blocks.attention import SelfAttention
from counterpoint.blocks.level_config import LevelConfig
from counterpoint.data.text.held_out import rows_batch
from counterpoint.evaluate.score import target_nats
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.evaluate.whole import donors, effective_rank, measure_whole, without_whole
from counterpoint.systems.two_stream import TwoStream
from tests.evaluate.tiny import LENGTHS, deaf, shaken, single, tower, two, two_config, unit, units


def test_donor_is_the_nearest_in_length_of_another_document() -> None:
    chosen = donors(units())
    assert chosen == [3, 3, 0, 4, 3]


def test_swap_costs_nothing_when_the_whole_is_ignored() -> None:
    found = measure_whole(deaf(two()), units(), LENGTHS)
    np.testing.assert_allclose(found.other_bits, found.own_bits, rtol=1e-6)
    np.testing.assert_allclose(found.none_bits, found.own_bits, rtol=1e-6)


def test_swap_costs_bits_when_the_part_depends_on_the_whole() -> None:
    """Two books of one letter each: only the whole is trained to tell which one is read."""
    letters = [unit(60, title, seed) for seed, title in enumerate("AABB")]
    for one in letters:
        one.ids[1:-1] = ord(one.title)
    torch.manual_seed(0)
    system = TwoStream(two(whole_dropout=0.3).config)
    optimizer = torch.optim.Adam(system.parameters(), 1e-2)
    batch = rows_batch([one.ids for one in letters], 4)
    # What the part sees of its own is hidden, so that nothing but the whole can tell.
    attention = system.part.layers[1].attention
    assert isinstance(attention, SelfAttention)
    attention.out.weight.requires_grad_(False).zero_()
    for _ in range(60):
        optimizer.zero_grad()
        system.loss(batch).total.backward()
        optimizer.step()
    found = measure_whole(system.eval(), letters, LENGTHS)
    own, other = np.array(found.own_bits), np.array(found.other_bits)
    delta = bootstrap_ratio(other - own, np.array(found.num_bytes, float))
    assert delta.low > 0


def test_own_bits_are_those_of_the_plain_forward() -> None:
    system, one = two(), units()[0]
    found = measure_whole(system, units(), LENGTHS)
    num_ticks = 51  # its donor, unit 3, has 12 blocks; the tick after these ends the 13th
    batch = rows_batch([one.ids[: num_ticks + 1]], 1)
    with torch.no_grad():
        nats = target_nats(system(batch)["part"], batch.targets["part"]).sum()
    assert found.own_bits[0] == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    assert found.num_bytes[0] == num_ticks


@pytest.mark.parametrize("lag_blocks", [0, 1])
def test_null_share_is_that_of_a_uniform_reader(lag_blocks: int) -> None:
    system = two(lag_blocks)
    with torch.no_grad():
        for link in system.steering.links:
            link.query.weight.zero_()
    found = measure_whole(system, units()[1:3], LENGTHS, max_ticks=32)
    expected = [
        1 / (1 + min(after, 32)) for t in range(32) if (after := (t + 1) // 4 - lag_blocks) > 0
    ]
    assert found.null_share == pytest.approx(np.mean(expected), rel=1e-5)


def test_null_share_is_that_of_the_whole_that_the_part_reads() -> None:
    """A whole above the whole leads that one; the part never reads it."""
    above = LevelConfig(whole=tower(8, window=8), lower_layers=1, block_ticks=2)
    config = two_config()
    config = replace(config, whole=tower(24, window=32, num_layers=2), levels=(above,))
    found = measure_whole(deaf(shaken(TwoStream(config))), units(), LENGTHS)
    assert 0 < found.null_share < 1


def test_without_whole_exists_only_for_models_trained_without() -> None:
    assert without_whole(two(whole_dropout=0.0)) is None
    assert measure_whole(two(whole_dropout=0.0), units(), LENGTHS).none_bits == ()


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert 1 < effective_rank(torch.diag(torch.tensor([1.0, 0.1, 0.0]))) < 2


def test_one_document_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="at least two documents"):
        measure_whole(two(), units()[:2], LENGTHS)


def test_a_system_without_a_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a whole"):
        measure_whole(single(), units(), LENGTHS)


def test_units_shorter_than_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than one block"):
        measure_whole(two(), [unit(1, "A"), unit(2, "B")], LENGTHS)
