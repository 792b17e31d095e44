"""H-Net: the published composition, learning rates by stage, and rows of fixed length."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from counterpoint.blocks.stage import Stage, StageConfig, Steps
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.systems import sketch
from counterpoint.systems.hnet import (
    HNet,
    HNetConfig,
    lr_factors,
    small,
    small_two_stages,
    tiny,
)
from counterpoint.tracing import tracing
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.optimizer import build_optimizer
from tests.blocks.hnet_reference import mixing, near_identity, numbers, wave
from tests.systems.contract_models import batch_of, build, random_ticks
from tests.systems.tiny_models import hnet, stage, tower


def model_of(name: str) -> HNet:
    torch.manual_seed(1)
    model = build("hnet", name)
    assert isinstance(model, HNet)
    return model


# ------------------------------------------------------------------- the published class `HNet`


def as_published(widths: tuple[int, ...]) -> tuple[Any, list[Any]]:
    """Our stages with the weights of the reference, and `mixing` in place of towers."""
    stages = tuple(stage(width, 4) for width in widths[:-1])
    outermost: Any = Stage(stages, tower(widths[-1], 1, 1, 4), widths[0])
    found: list[Any] = []
    inner: Any = outermost
    while hasattr(inner, "router"):
        found.append(inner)
        k, width = len(found), widths[len(found) - 1]
        inner.encoder.forward = inner.decoder.forward = mixing
        inner.encoder_norm, inner.decoder_norm = nn.Identity(), nn.Identity()
        with torch.no_grad():
            inner.router.query.weight.copy_(near_identity(width, 1.0 + k))
            inner.router.key.weight.copy_(near_identity(width, 2.0 + k))
            inner.residual.weight.copy_(0.5 * wave(width, width, k=0.5 + k))
        inner = inner.inner
    inner.tower.forward, inner.norm = mixing, nn.Identity()
    with torch.no_grad():
        inner.pad.copy_(wave(len(inner.pad), k=4.0))
    return outermost, found


@pytest.mark.parametrize(("name", "widths"), [("one", (4, 6)), ("two", (4, 4, 6))])
def test_stages_compose_as_in_the_published_code(name: str, widths: tuple[int, ...]) -> None:
    """Outputs and gradients; it clamps the weights of smoothing to 1 - 1e-4."""
    expected = numbers()[name]
    outermost, stages = as_published(widths)
    x = wave(2, 14, 4, k=1.5).requires_grad_()
    ratios: list[tuple[Tensor, Tensor]] = []
    first = torch.zeros(2, 14, dtype=torch.long)
    y, _ = outermost(x, Steps(first, None, None), None, ratios)
    (y * wave(2, 14, 4, k=2.5)).sum().backward()
    found = {"y": y, "x_grad": x.grad}
    for number, one in enumerate(stages):
        found[f"query_grad_{number}"] = one.router.query.weight.grad
        found[f"key_grad_{number}"] = one.router.key.weight.grad
        found[f"residual_grad_{number}"] = one.residual.weight.grad
    assert set(found) == set(expected) - {"counts"}
    for key, value in found.items():
        theirs = torch.tensor(expected[key]).view_as(value)
        torch.testing.assert_close(value.detach(), theirs, rtol=1e-3, atol=1e-3)
    steps = torch.full((2,), 14.0)
    for (_, share), count in zip(ratios, expected["counts"], strict=True):
        torch.testing.assert_close(share * steps, torch.tensor(count).float())
        steps = share * steps


def test_a_new_model_has_routers_of_identities_and_no_residual() -> None:
    model = HNet(hnet(stage(12, 7), stage(16, 4)))
    for one in (model.stage, model.stage.inner):
        assert isinstance(one, Stage)
        width = one.config.encoder.width
        assert torch.equal(one.router.query.weight, torch.eye(width))
        assert torch.equal(one.router.key.weight, torch.eye(width))
        assert not one.residual.weight.any()


# ------------------------------------------------------------------------------------- losses


def test_ratio_loss_is_summed_over_stages_and_shares_are_logged() -> None:
    model = model_of("two_stages")
    batch = batch_of(model, random_ticks(model, 3, 31))
    ratios: list[tuple[Tensor, Tensor]] = []
    x = model.conv(model.embedding(batch.ticks["part"]))[0]
    model.stage(x, Steps(batch.document_start, None, None), None, ratios)
    terms = model.loss(batch).terms
    (outer, share), (inner, inner_share) = ratios
    torch.testing.assert_close(terms["ratio"], outer.mean() + inner.mean())
    torch.testing.assert_close(terms["share_1"], share.mean())
    torch.testing.assert_close(terms["share_2"], inner_share.mean())


def test_losses_of_halves_add_up() -> None:
    model = model_of("two_stages_bounded")
    ticks = random_ticks(model, 4, 25)["part"]
    whole = model.losses(batch_of(model, {"part": ticks}))
    halves = [model.losses(batch_of(model, {"part": ticks[i : i + 2]})) for i in (0, 2)]
    for name, sums in whole.items():
        added = [a + b for a, b in zip(*(half[name] for half in halves), strict=True)]
        torch.testing.assert_close(list(sums), added)


# ------------------------------------------------------------------------ rows of fixed length


@pytest.mark.parametrize("name", ["one_stage", "two_stages_bounded"])
def test_several_seeds_run_as_one(name: str) -> None:
    """No shape and no branch depends on a value: each learns what it learns alone."""
    models = [HNet(model_of(name).config).train() for _ in range(3)]
    for model in models:
        nn.init.normal_(model.head.weight)
    batch = batch_of(models[0], random_ticks(models[0], 2, 40))
    weights, _ = stack_module_state(models)
    skeleton = WithLoss(models[0])

    def loss(own: dict[str, Tensor]) -> Tensor:
        named = {f"system.{key}": weight for key, weight in own.items()}
        total: Tensor = functional_call(skeleton, named, (batch,))
        return total

    with tracing():
        together = vmap(loss)(weights)
    together.sum().backward()
    for number, model in enumerate(models):
        alone = model.loss(batch).total
        alone.backward()
        torch.testing.assert_close(together[number], alone)
        for key, weight in model.named_parameters():
            found = weights[key].grad
            assert found is not None
            torch.testing.assert_close(found[number], weight.grad, rtol=1e-4, atol=1e-5)


class WithLoss(nn.Module):
    """A system whose call is its loss."""

    def __init__(self, system: HNet) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> Tensor:
        return self.system.loss(batch).total


def test_a_share_that_is_held_saves_flops() -> None:
    free, held = (HNet(hnet(stage(16, 7, share))) for share in (1.0, 0.25))
    main = free.stage.inner.flops_per_row(64) - free.stage.inner.flops_per_row(16)
    assert free.flops_per_tick(64) - held.flops_per_tick(64) == pytest.approx(main / 64)


# ------------------------------------------------------------------------------ learning rates


def test_learning_rates_fall_inwards_with_the_batch_and_the_width() -> None:
    """The closed form, at the widths of the published two stages with three steps a chunk."""
    wide = [tower(width, 1, 16, 8) for width in (1024, 1536, 2048)]
    config = HNetConfig(
        stages=tuple(StageConfig(encoder=t, decoder=t, ratio=3.0) for t in wide[:2]), main=wide[2]
    )
    factors = dict(lr_factors(config))
    assert list(factors) == ["", "stage.inner.", "stage.inner.inner."]
    expected = [math.sqrt(4.6 * 2), math.sqrt(4.6 / 3 * 2048 / 1536), math.sqrt(4.6 / 9)]
    assert list(factors.values()) == pytest.approx(expected)


def test_the_optimiser_takes_the_learning_rates() -> None:
    model = HNet(hnet(stage(12, 7), stage(16, 4)))
    factors = lr_factors(model.config)
    groups = build_optimizer(model, OptimizerConfig(lr=0.5, lr_factors=factors)).param_groups
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    names = ("embedding.weight", "stage.inner.pad", "stage.inner.inner.pad")
    for name, (_, factor) in zip(names, factors, strict=True):
        assert rates[id(model.get_parameter(name))] == pytest.approx(0.5 * factor)


# -------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("preset", "millions"), [(tiny, 2.5), (small, 27.0), (small_two_stages, 28.0)]
)
def test_presets_have_the_parameters_that_they_name(preset: Any, millions: float) -> None:
    counted = sum(weight.numel() for weight in sketch(preset()).parameters())
    assert counted / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hnet(), "one or more"),
        (lambda: hnet(stage(24, 7)), "not shrink"),
        (lambda: stage(8, 7, ratio=1.0), "more than 1"),
        (lambda: stage(8, 7, share=0.0), "above 0"),
        (
            lambda: StageConfig(encoder=tower(8, 1, 2, 7), decoder=tower(12, 1, 2, 7)),
            "equally wide",
        ),
    ],
)
def test_impossible_shapes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
