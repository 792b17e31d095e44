"""HRT: an exact wavelet, costs that grow as declared, and what its levels give."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.blocks.compress import Wavelet
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.systems.hrt import HRT, HRTConfig, levels_for, tiny
from tests.systems.contract_models import batch_of, build, random_ticks
from tests.systems.tiny_models import HRT_LEVELS, hrt, tower


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_the_wavelet_is_undone_exactly(stride: int) -> None:
    wavelet = Wavelet(6, stride)
    with torch.no_grad():
        for factor in wavelet.parameters():
            factor.add_(torch.randn_like(factor))
    blocks = torch.randn(3, 5, stride, 6)
    slots = wavelet(blocks, torch.ones(3, 5, stride, dtype=torch.bool))
    torch.testing.assert_close(wavelet.inverse(slots), blocks, rtol=0, atol=1e-5)


def test_the_wavelet_starts_as_the_mean() -> None:
    blocks = torch.randn(2, 3, 4, 6)
    slots = Wavelet(6, 4)(blocks, torch.ones(2, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(slots[..., 0, :], blocks.mean(2))


def _long(num_ticks: int) -> HRTConfig:
    """As many levels as rows of so many ticks need."""
    levels = levels_for(num_ticks, window=16, stride=4)
    return HRTConfig(levels=(tower(16, 1, 2, 16),) * levels, strides=(4,) * (levels - 1))


def test_costs_grow_as_n_log_n() -> None:
    """Counted FLOPs a tick grow no faster than the levels needed, so a row costs O(n log n)."""
    sizes = [2**k for k in range(8, 15)]
    with torch.device("meta"):
        costs = [HRT(_long(n)).flops_per_tick(n) for n in sizes]
    by_level = [
        cost / levels_for(n, window=16, stride=4) for cost, n in zip(costs, sizes, strict=True)
    ]
    assert all(b <= a * 1.01 for a, b in zip(by_level, by_level[1:], strict=False))
    exponents = [math.log(b * 2 / a, 2) for a, b in zip(costs, costs[1:], strict=False)]  # of a row
    assert max(exponents) < 1.25


def test_more_text_costs_a_step_nothing_more() -> None:
    """A session keeps rings: its state does not grow with the text."""
    model = build("hrt", "three_levels")
    assert model.state_bytes_per_tick(1000) * 1000 == model.state_bytes_per_tick(10) * 10


def three_levels(name: str = "three_levels") -> HRT:
    model = build("hrt", name)
    assert isinstance(model, HRT)
    return model


def test_every_level_is_read() -> None:
    """Changing a coarse level alone changes what is predicted once its first block is finished."""
    torch.manual_seed(0)
    model = three_levels()
    ticks = random_ticks(model, 1, 24)
    plain = model(batch_of(model, ticks))["part"]
    period = 1
    for level, stride in enumerate(model.config.strides, 1):
        period *= stride
        other = build_like(model)
        with torch.no_grad():
            for weight in other.towers[level].parameters():
                weight.add_(torch.randn_like(weight))
        moved = (other(batch_of(other, ticks))["part"] != plain).any(-1)[0]
        assert not moved[: period - 1].any()
        assert moved[period - 1 :].all()


def build_like(model: HRT) -> HRT:
    other = HRT(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_a_gate_that_is_shut_leaves_the_finest_level_alone() -> None:
    model = three_levels("two_rounds")
    with torch.no_grad():
        for link in model.links.values():
            link.gate.fill_(-100.0)
    ticks = random_ticks(model, 1, 24)
    plain = model(batch_of(model, ticks))["part"]
    with torch.no_grad():
        for weight in model.towers[1].parameters():
            weight.add_(1.0)
    assert torch.equal(model(batch_of(model, ticks))["part"], plain)


def test_rebuilding_uses_every_coarser_level() -> None:
    model = three_levels().train()
    batch = batch_of(model, random_ticks(model, 2, 24))
    model.losses(batch)["reconstruct"].nats.backward()
    for level in (1, 2):
        assert all(weight.grad is not None for weight in model.towers[level].parameters())
    found = model.unfolds[1].unfold.weight.grad
    assert found is not None
    assert found.count_nonzero() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (3,)}, "one stride between"),
        ({"strides": (3, 1)}, ">= 2"),
        ({"num_keys": 0}, ">= 1"),
        ({"num_rounds": 3}, "the same number of layers"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hrt(*HRT_LEVELS, **changes)


def test_a_wavelet_over_blocks_that_do_not_halve_is_refused() -> None:
    with pytest.raises(UserError, match="steps of a block must be a power of two: got 3"):
        HRT(hrt(*HRT_LEVELS, strides=(3, 2), compressor="wavelet"))


def test_a_preset_builds() -> None:
    config = replace(
        tiny(),
        levels=(TowerConfig(width=8, num_layers=2, num_heads=2, mlp_hidden=8, window=4),) * 3,
    )
    assert HRT(config).layout.block_ticks == 16


def test_blocks_of_ticks_end_after_boundaries_or_when_they_are_full() -> None:
    model = three_levels("words")  # a block has at most 4 ticks; 1 and 5 are boundaries
    ids = torch.tensor([[2, 5, 3, 3, 1, 1, 2, 2, 2, 2, 2]])
    _, state = model.read({"part": ids}, model.initial_state(1))
    assert state.counts.finished[0].tolist() == [4]  # of 2, 3, 1 and 4 ticks
    assert state.counts.finished[1].tolist() == [2]
    assert state.counts.place[0].tolist() == [1]


def test_a_learned_block_may_end_before_it_is_full() -> None:
    model = three_levels("learned")
    ids = random_ticks(model, 1, 40)
    _, state = model.read(ids, model.initial_state(1))
    assert state.counts.finished[0] > 40 // model.config.strides[0]
    assert set(model.losses(batch_of(model, ids))) == {"part", "reconstruct", "ratio", "share"}
