import torch

from tests.other_rounding import OtherRounding


def test_equal_shapes_round_alike_and_others_differently() -> None:
    x, weight = torch.randn(6, 64), torch.randn(32, 64)
    plain = torch.nn.functional.linear(x, weight)
    with OtherRounding():
        once, again = (torch.nn.functional.linear(x, weight) for _ in range(2))
        fewer = torch.nn.functional.linear(x[:5], weight)
    assert torch.equal(once, again)
    assert not torch.equal(once, plain)
    assert not torch.equal(fewer, once[:5])
    torch.testing.assert_close(fewer, plain[:5], rtol=3e-7, atol=1e-5)


def test_gradients_come_through() -> None:
    x, weight = torch.randn(3, 8), torch.randn(4, 8, requires_grad=True)
    (plain,) = torch.autograd.grad((x @ weight.T).square().sum(), weight)
    with OtherRounding():
        (other,) = torch.autograd.grad((x @ weight.T).square().sum(), weight)
    assert not torch.equal(other, plain)
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
