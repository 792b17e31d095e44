import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.blocks.norm import Gate, RMSNorm, gated_norm


def passes(
    ours: bool, x: Tensor, grad: Tensor, epsilon: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Result, and gradients of the input and the weight, by us or by torch."""
    norm = RMSNorm(x.shape[-1], epsilon)
    norm.weight.data = torch.linspace(0.5, 2, x.shape[-1])
    x = x.clone().requires_grad_()
    y = norm(x) if ours else F.rms_norm(x, x.shape[-1:], norm.weight.to(x.dtype), epsilon)
    y.backward(grad)
    return y.detach(), x.grad, norm.weight.grad


@pytest.mark.parametrize("shape", [(3, 5, 8), (6,)])
@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_its_gradient_are_torchs(
    shape: tuple[int, ...], epsilon: float, dtype: torch.dtype
) -> None:
    x, grad = (torch.randn(shape, dtype=dtype) * 3 for _ in range(2))
    for a, b in zip(passes(True, x, grad, epsilon), passes(False, x, grad, epsilon), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b)


def test_norm_of_nothing_has_a_gradient() -> None:
    x, grad = torch.zeros(2, 4), torch.ones(2, 4)
    for a, b in zip(passes(True, x, grad, 1e-6), passes(False, x, grad, 1e-6), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b)


def test_norm_is_the_same_with_and_without_gradients() -> None:
    norm, x = RMSNorm(16), torch.randn(7, 16)
    with torch.no_grad():
        without = norm(x)
    assert torch.equal(norm(x), without)


@pytest.mark.parametrize("shape", [(3, 5, 8), (6,)])
@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
def test_gated_norm_and_its_gradient_are_torchs(shape: tuple[int, ...], epsilon: float) -> None:
    width = shape[-1]
    sizes = (shape, (width,), (width,), ())
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    x, weight, gate, bias = inputs
    y = F.rms_norm(x, (width,), weight, epsilon)
    expected = y * torch.sigmoid((y * gate).sum(-1, keepdim=True) + bias)
    found = gated_norm(x, weight, Gate(gate, bias), epsilon)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn(shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(gated_norm(x, weight, Gate(gate, bias), epsilon), found)
