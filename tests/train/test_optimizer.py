import math

import pytest
import torch

from counterpoint.train.config import OptimizerConfig, ScheduleConfig
from counterpoint.train.optimizer import build_optimizer, lr_ratio
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
def test_schedule_without_room_stays_at_its_warm_up(kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=10)  # type: ignore[arg-type]
    assert [lr_ratio(config, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    bare = ScheduleConfig(kind=kind, warmup_steps=0)  # type: ignore[arg-type]
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
def test_optimizer_config_refuses_nonsense(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)  # type: ignore[arg-type]
