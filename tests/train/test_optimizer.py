import math
from typing import Any, Literal

import pytest
import torch

from counterpoint.train.config import OptimizerConfig, ScheduleConfig
from counterpoint.train.optimizer import KindOptimizers, build_optimizer, lr_ratio
from tests.train.tiny import build


def groups_by_name(config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """(weight decay, learning rate) of each parameter at its highest rate."""
    system = build()
    optimizer = build_optimizer(system, config)
    optimizer.set_lr(1.0)
    found = {
        id(p): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == len(list(system.parameters()))
    return {name: found[id(p)] for name, p in system.named_parameters()}


def test_optimizer_decays_matrices_only() -> None:
    groups = groups_by_name(OptimizerConfig(weight_decay=0.3))
    decayed = {name for name, (decay, _) in groups.items() if decay == 0.3}
    assert decayed == {"layers.0.0.weight", "layers.1.0.weight", "head.weight"}
    assert {groups[name][0] for name in groups.keys() - decayed} == {0.0}


def test_optimizer_gives_prefixes_their_own_rate() -> None:
    config = OptimizerConfig(
        lr=1.0, lr_factors=(("layers", 0.5), ("layers.1", 0.25), ("scale", 0.0))
    )
    rates = {name: rate for name, (_, rate) in groups_by_name(config).items()}
    assert rates["layers.0.0.weight"] == rates["layers.0.0.bias"] == 0.5
    assert rates["layers.1.0.weight"] == 0.25
    assert rates["scale"] == 0.0
    assert rates["head.weight"] == rates["embedding.weight"] == 1.0


def test_optimizer_names_the_nearest_prefix() -> None:
    with pytest.raises(ValueError, match=r"got 'layer\.1'.*Did you mean 'layers\.1'"):
        build_optimizer(build(), OptimizerConfig(lr_factors=(("layer.1", 0.5),)))


def test_optimizer_leaves_frozen_parameters_out() -> None:
    system = build()
    system.head.weight.requires_grad_(False)
    optimizer = build_optimizer(system, OptimizerConfig())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(system.head.weight) not in held


def test_muon_takes_the_hidden_matrices_only() -> None:
    config = OptimizerConfig(lr=1.0, muon_lr=7.0, lr_factors=(("layers.1", 0.5),))
    rates = {name: rate for name, (_, rate) in groups_by_name(config).items()}
    muon = {"layers.0.0.weight": 7.0, "layers.1.0.weight": 3.5}
    assert {name: rates[name] for name in muon} == muon
    assert all(rate in (1.0, 0.5) for name, rate in rates.items() if name not in muon)
    optimizer = build_optimizer(build(), config)
    assert [type(part).__name__ for part in optimizer.parts] == ["AdamW", "Muon"]


def test_muon_steps_with_orthogonal_updates() -> None:
    system = build()
    optimizer = build_optimizer(system, OptimizerConfig(muon_lr=1.0, weight_decay=0.0))
    weight = dict(system.named_parameters())["layers.0.0.weight"]
    before = weight.detach().clone()
    for parameter in system.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.set_lr(0.5)
    optimizer.step()
    singular = torch.linalg.svdvals((before - weight.detach()) / 0.5)
    scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    assert ((singular > 0.6 * scale) & (singular < 1.3 * scale)).all()
    assert set(optimizer.state) == set(system.parameters())


def test_cosine_passes_known_points() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=10, final_ratio=0.1)
    ratios = [lr_ratio(config, step, 110) for step in range(110)]
    assert ratios[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert ratios[59] == pytest.approx(0.55)  # half-way between the last warm-up step and the end
    assert ratios[34] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert ratios[109] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(ratios[9:], ratios[10:], strict=False))


def test_wsd_stays_then_falls_linearly() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=5, decay_fraction=0.2, final_ratio=0.0)
    ratios = [lr_ratio(config, step, 101) for step in range(101)]
    assert ratios[4:81] == [1.0] * 77
    assert ratios[90] == pytest.approx(0.5)
    assert ratios[100] == 0.0


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_schedule_without_room_stays_at_its_warm_up(kind: Literal["cosine", "wsd"]) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=10)
    assert [lr_ratio(config, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    bare = ScheduleConfig(kind=kind, warmup_steps=0)
    assert lr_ratio(bare, 0, 1) == 1.0


def test_optimizer_steps_like_the_plain_one() -> None:
    systems = [build(), build()]
    config = OptimizerConfig(lr=0.1, weight_decay=0.0)
    plain = torch.optim.AdamW(
        systems[1].parameters(), 0.1, config.betas, config.eps, weight_decay=0.0, foreach=False
    )
    for system in systems:
        for parameter in system.parameters():
            parameter.grad = torch.ones_like(parameter) * 0.3
    build_optimizer(systems[0], config).step()
    plain.step()
    for a, b in zip(systems[0].parameters(), systems[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"`lr` must be > 0, got 0\.0"),
        ({"betas": (0.9, 1.0)}, r"`betas` and `muon_momentum` must lie in"),
    ],
)
def test_optimizer_config_refuses_nonsense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def take_steps(kinds: str, seeds: str, **changes: Any) -> dict[str, torch.Tensor]:
    """Moments after steps of kinds ``a`` and ``b``, each with the gradients of a seed."""
    system = build()
    optimizers = KindOptimizers(system, OptimizerConfig(**changes))
    for kind, seed in zip(kinds, seeds, strict=True):
        torch.manual_seed(int(seed))
        for parameter in system.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers.for_kind(kind).step()
        optimizers.for_kind(kind).zero_grad()
    return optimizers.named_state()


@pytest.mark.parametrize("muon_lr", [None, 0.01])
def test_kinds_of_batches_have_moments_of_their_own(muon_lr: float | None) -> None:
    mixed = take_steps("abba", "1234", muon_lr=muon_lr)
    for kind, seeds in (("a", "14"), ("b", "23")):
        alone = take_steps(kind * 2, seeds, muon_lr=muon_lr)
        own = {key: value for key, value in mixed.items() if key.startswith(f"{kind}/")}
        assert own.keys() == alone.keys()
        assert all(torch.equal(own[key], alone[key]) for key in own)
    slots = {key.split("/")[1].partition(".")[0] for key in mixed}
    assert slots == {"step", "exp_avg", "exp_avg_sq"} | ({"momentum_buffer"} if muon_lr else set())


def test_kinds_share_the_parameters() -> None:
    system = build()
    optimizers = KindOptimizers(system, OptimizerConfig(lr=1.0, weight_decay=0.0))
    before = system.scale.detach().clone()
    for kind in ("", "text"):
        system.scale.grad = torch.ones(1)
        optimizers.for_kind(kind).set_lr(0.25)
        optimizers.for_kind(kind).step()
    torch.testing.assert_close(system.scale.detach(), before - 0.5)  # each a first step of Adam


def test_moments_are_filled_again_by_name() -> None:
    system = build()
    optimizers = KindOptimizers(system, OptimizerConfig(muon_lr=0.01))
    for kind in ("", "text"):
        for parameter in system.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers.for_kind(kind).step()
    saved = {key: value.clone() for key, value in optimizers.named_state().items()}
    others = KindOptimizers(system, OptimizerConfig(muon_lr=0.01))
    empty = others.empty_state(saved)
    assert not any(value.any() for value in empty.values())
    for key, value in saved.items():
        empty[key].copy_(value)
    assert others.named_state().keys() == saved.keys()
    assert all(torch.equal(others.named_state()[key], value) for key, value in saved.items())


def test_kinds_have_rates_and_names_that_make_sense() -> None:
    config = OptimizerConfig(kind_lr_factors=(("text", 0.75),))
    assert (config.kind_lr_factor("text"), config.kind_lr_factor("")) == (0.75, 1.0)
    with pytest.raises(ValueError, match=r"must be one word of letters.*got 'text\.only'"):
        KindOptimizers(build(), config).for_kind("text.only")
    with pytest.raises(ValueError, match="The factor of 'text' must be >= 0"):
        OptimizerConfig(kind_lr_factors=(("text", -1.0),))
