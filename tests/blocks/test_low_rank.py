from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterpoint.blocks.depth import StepLinear
from counterpoint.blocks.low_rank import LowRankConfig, add_low_rank, merged_weights
from counterpoint.systems.moshi import Moshi
from tests.systems.tiny_moshi import CONFIGS, build, random_codes

CONFIG = LowRankConfig(rank=3, scaling=0.7)


def with_change(model: nn.Module, config: LowRankConfig = CONFIG) -> Any:
    """Adapters whose change is not zero."""
    add_low_rank(model, config, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def scores(model: Moshi, codes: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model(model.lay_out(codes)))


def test_linear_map_gives_base_plus_scaled_change() -> None:
    linear = with_change(nn.Linear(6, 4))
    x, a, b = torch.randn(2, 5, 6), linear.lora_A.weight, linear.lora_B.weight
    assert (a.shape, b.shape) == ((3, 6), (4, 3))
    expected = F.linear(x, linear.weight, linear.bias) + 0.7 * ((x @ a.T) @ b.T)
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [(0, 1, 2), (0, 1, 1)])
@pytest.mark.parametrize("first", [0, 1])
def test_every_step_has_a_change_of_its_own(schedule: tuple[int, ...], first: int) -> None:
    linear = with_change(StepLinear(6, 4, schedule))
    x = torch.randn(2, 2, 6)
    sets = len(set(schedule))
    weights = linear.weight.view(sets, 4, 6)
    a, b = linear.lora_A.weight.view(sets, 3, 6), linear.lora_B.weight.view(sets, 4, 3)
    for k, number in enumerate(schedule[first : first + 2]):
        own = weights[number] + 0.7 * b[number] @ a[number]
        torch.testing.assert_close(linear(x, first)[:, k], x[:, k] @ own.T, rtol=0, atol=1e-6)
        spread = linear(x[:, 0], first, 2)
        torch.testing.assert_close(spread[:, k], x[:, 0] @ own.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", list(CONFIGS))
def test_nothing_changes_at_first_and_merged_equals_unmerged(shape: str) -> None:
    model = build(shape)
    codes, before = random_codes(model, 2, 8), dict(model.state_dict())
    expected = scores(model, codes)
    add_low_rank(model, CONFIG, seed=5)
    for name, found in scores(model, codes).items():
        assert torch.equal(found, expected[name])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    changed, plain = scores(model, codes), Moshi(model.config)
    plain.load_state_dict(merged_weights(model.state_dict(), CONFIG.scaling))
    for name, found in scores(plain, codes).items():
        assert not torch.allclose(found, expected[name], atol=1e-3)
        largest = float(found[found.isfinite()].abs().max())
        torch.testing.assert_close(found, changed[name], rtol=0, atol=1e-6 * max(largest, 1))


def gradients(model: Moshi, codes: dict[str, Tensor]) -> dict[str, Tensor]:
    model.loss(model.lay_out(codes)).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", ["both_speakers", "own_delays"])
def test_frozen_weights_may_be_small(shape: str, frozen: Any, autocast: bool) -> None:
    exact = build(shape)
    small = deepcopy(exact)
    codes = random_codes(exact, 2, 8)
    with_change(exact)
    with_change(small, replace(CONFIG, frozen=frozen))
    kinds = {p.dtype for name, p in small.named_parameters() if "lora" in name or "norm" in name}
    assert kinds == {torch.float32}
    frozen_bytes = sum(t.nbytes for n, t in small.state_dict().items() if "lora" not in n)
    plain_bytes = sum(t.nbytes for n, t in exact.state_dict().items() if "lora" not in n)
    assert frozen_bytes < plain_bytes * (0.55 if frozen == "bfloat16" else 0.5)
    with torch.no_grad():  # adapters begin alike, whatever they change
        for name, parameter in small.named_parameters():
            if "lora" in name:
                parameter.copy_(exact.get_parameter(name))
    expected = gradients(exact, codes)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = gradients(small, codes)
    assert found.keys() == expected.keys()
    mine, theirs = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert torch.cosine_similarity(mine, theirs, 0) > 0.995
    merged = Moshi(small.config)
    merged.load_state_dict(merged_weights(small.state_dict(), CONFIG.scaling))
    for name, value in scores(merged, codes).items():
        real = value.isfinite()
        own = scores(small, codes)[name].float()
        assert (value - own)[real].norm() < 0.03 * value[real].norm()


def test_all_linear_maps_and_no_others_have_adapters() -> None:
    model = build("own_delays")  # embeddings of a low rank have a linear map too
    maps = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | StepLinear)}
    with_change(model)
    names = {n.removesuffix(".lora_A.weight") for n, _ in model.named_parameters() if "lora_A" in n}
    assert names == maps
    assert {"head", "depth.head", "depth.project", "temporal.layers.0.mlp.down"} < maps
    assert "depth.embedding.raise_rank" in maps


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_only_adapters_are_trained_and_embeddings_if_asked(train_embeddings: bool) -> None:
    model = with_change(
        build("both_speakers"), LowRankConfig(rank=2, train_embeddings=train_embeddings)
    )
    model.loss(model.lay_out(random_codes(model, 2, 8))).total.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == moved
    tables = {name for name in trained if "lora" not in name}
    expected = {"text_embedding", "audio_embedding", "depth.first_embedding", "depth.embedding"}
    assert tables == ({f"{name}.table.weight" for name in expected} if train_embeddings else set())


def test_costs_count_adapters_at_every_step() -> None:
    model = build("both_speakers")
    before = model.flops_per_tick(8)
    add_low_rank(model, CONFIG, seed=0)
    factors = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    # The text head's are not in it, as those of other parts outside of towers.
    head = sum(p.numel() for n, p in model.named_parameters() if n.startswith("head.lora"))
    assert model.flops_per_tick(8) - before == 2 * (factors - head)


def test_seed_decides_the_start() -> None:
    starts = []
    for seed in (1, 1, 2):
        linear: Any = nn.Linear(6, 4)
        add_low_rank(linear, CONFIG, seed)
        starts.append(linear.lora_A.weight)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_adapters_are_given_once_and_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="A model with adapters cannot get others"):
        with_change(with_change(nn.Linear(6, 4)))
    with pytest.raises(ValueError, match="`rank` must be >= 1: got 0"):
        LowRankConfig(rank=0)
    with pytest.raises(ValueError, match=r"`scaling` must be above 0: got 0\.0"):
        LowRankConfig(scaling=0.0)
