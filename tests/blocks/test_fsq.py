import itertools

import pytest
import torch

from counterpoint.blocks.compress import Coded, Mean
from counterpoint.blocks.fsq import FiniteScalarQuantizer
from counterpoint.errors import UserError

LEVELS = (5, 4, 3)


def test_every_code_can_come_out_and_is_decoded() -> None:
    """Numbers far from the middle and near it reach all levels of each number, and no others."""
    torch.manual_seed(1)
    quantizer = FiniteScalarQuantizer(3, LEVELS)
    with torch.no_grad():
        quantizer.down.weight.copy_(torch.eye(3))
    x = torch.tensor(list(itertools.product(torch.linspace(-3, 3, 25).tolist(), repeat=3)))
    codes = quantizer.codes(x)
    assert sorted(set(codes.tolist())) == list(range(5 * 4 * 3)) == list(range(quantizer.num_codes))
    with torch.no_grad():
        torch.testing.assert_close(quantizer.decode(codes), quantizer(x))
        numbers = torch.linalg.lstsq(quantizer.up.weight, quantizer(x).T).solution.T
    for place, levels in enumerate(LEVELS):
        found = sorted({round(float(value), 4) for value in numbers[:, place]})
        assert found == [(step - levels // 2) / (levels // 2) for step in range(levels)]


def test_zero_is_the_middle_and_rounding_passes_gradients() -> None:
    quantizer = FiniteScalarQuantizer(6, LEVELS)
    assert not quantizer(torch.zeros(1, 6)).any()
    x = torch.randn(4, 6, requires_grad=True)
    (quantizer(x) * torch.randn(4, 6)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).gt(0).all()


def test_equal_codes_are_equal_slots() -> None:
    torch.manual_seed(1)
    compressor = Coded(Mean(), 6, LEVELS)
    blocks, real = torch.randn(500, 4, 6), torch.ones(500, 4, dtype=torch.bool)
    codes = compressor.codes(blocks, real)[:, 0]
    slots = compressor(blocks, real)[:, 0]
    assert len(codes.unique()) > 10
    for code in codes.unique():
        assert torch.equal(
            slots[codes == code], slots[codes == code][:1].expand((codes == code).sum(), -1)
        )


@pytest.mark.parametrize("levels", [(), (4, 2)])
def test_codes_of_two_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 3 levels each: got"):
        FiniteScalarQuantizer(4, levels)
