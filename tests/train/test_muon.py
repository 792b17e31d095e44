import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.systems import build_system, single_stream
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.muon import Muon, orthogonal, product_flops
from counterpoint.train.optimizer import build_optimizer, optimizer_flops

SHAPES = [(24, 8), (8, 24), (24, 8), (8, 8), (5, 31), (1, 6)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int) -> None:
    for step in range(count):
        for parameter, gradient in zip(parameters, matrices(step + 1), strict=True):
            parameter.grad = gradient.detach()
        optimizer.step()


def test_muon_is_torchs() -> None:
    """Wide, tall and square matrices, two of one shape at different rates."""
    ours, theirs = matrices(), matrices()
    for parameters, kind in ((ours, Muon), (theirs, torch.optim.Muon)):
        groups = [{"params": parameters[:2], "lr": 0.2}, {"params": parameters[2:], "lr": 0.05}]
        steps(kind(groups, momentum=0.9, weight_decay=0.1), parameters, 5)
    for a, b, before in zip(ours, theirs, matrices(), strict=True):
        moved = (b - before).norm()
        assert (a - b).norm() < 0.01 * moved  # last bits of bfloat16


def test_muon_keeps_torchs_moments() -> None:
    ours, theirs = matrices(), matrices()
    optimizers = Muon(ours, momentum=0.9), torch.optim.Muon(theirs, momentum=0.9)
    for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
        steps(optimizer, parameters, 3)
    for a, b in zip(ours, theirs, strict=True):
        assert optimizers[0].state[a].keys() == {"momentum_buffer"}
        moments = optimizers[0].state[a], optimizers[1].state[b]
        assert torch.equal(*(moment["momentum_buffer"] for moment in moments))


def test_muon_does_not_depend_on_who_else_is_there() -> None:
    """Not to the last bit: products of other sizes may round differently."""
    alone, together = matrices(), matrices()
    steps(Muon(together, momentum=0.9), together, 2)
    steps(Muon(alone[:1], momentum=0.9), alone, 2)
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-4)


def test_muon_leaves_matrices_without_gradient_alone() -> None:
    parameters = matrices()
    parameters[1].grad = torch.ones_like(parameters[1])
    Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.5).step()
    for i, (parameter, before) in enumerate(zip(parameters, matrices(), strict=True)):
        assert torch.equal(parameter, before) == (i != 1)


def test_orthogonal_moves_singular_values_to_one() -> None:
    wide = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)) * 1e-3
    wide[2] = 0
    for x in (wide, wide.mT):
        values = torch.linalg.svdvals(orthogonal(x.bfloat16()).float())
        assert ((values[:2] > 0.6) & (values[:2] < 1.3)).all()
        assert not values[2].any()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_products_are_counted_as_torch_counts_them(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counted:
        orthogonal(torch.randn(1, *shape))
    assert product_flops(shape) == counted.get_total_flops()


def test_only_matrices_that_muon_trains_are_counted() -> None:
    """Not embeddings and the head, and nothing without Muon."""
    system = build_system(single_stream.tiny(), 0)
    assert optimizer_flops(system, OptimizerConfig()) == 0
    config = OptimizerConfig(muon_lr=0.01)
    trained = [
        weight
        for part in build_optimizer(system, config).parts
        if isinstance(part, Muon)
        for group in part.param_groups
        for weight in group["params"]
    ]
    assert optimizer_flops(system, config) == sum(product_flops(w.shape) for w in trained) > 0
    trained[0].requires_grad_(False)
    less = product_flops(trained[0].shape)
    assert optimizer_flops(system, config) == sum(product_flops(w.shape) for w in trained) - less


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"takes matrices only: got \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))], momentum=0.9)
