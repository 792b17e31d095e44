import pytest
import torch
from torch import Tensor

from counterpoint.blocks.convolution import CausalConvolution


def naive(block: CausalConvolution, x: Tensor, age: Tensor) -> Tensor:
    rows = []
    for row in range(x.shape[0]):
        steps = []
        for t in range(x.shape[1]):
            y = x[row, t]
            for i in range(len(block.weight)):
                if int(age[row, t]) >= i:
                    y = y + block.weight[i] * x[row, t - i]
            steps.append(y)
        rows.append(torch.stack(steps))
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 63, 100])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_convolution_matches_loops(steps: int, taps: int, packed: bool) -> None:
    block = CausalConvolution(5, taps)
    torch.nn.init.normal_(block.weight)
    x = torch.randn(2, steps, 5, requires_grad=True)
    step = torch.arange(steps)
    cuts = (torch.rand(2, steps) < 0.2) * packed * step
    age = step - cuts.cummax(1).values
    ours, theirs = block(x, age=age)[0], naive(block, x, age)
    torch.testing.assert_close(ours, theirs)
    pull = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, [x, block.weight], pull)
    expected = torch.autograd.grad(theirs, [x, block.weight], pull)
    for mine, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [0, 1, 4])
def test_convolution_in_chunks_is_the_whole(taps: int) -> None:
    """Rows get different numbers of steps, some none, some fewer than there are taps."""
    block = CausalConvolution(5, taps)
    torch.nn.init.normal_(block.weight)
    x, position, state = torch.randn(3, 60, 5), torch.zeros(3, dtype=torch.long), None
    whole = block(x, age=torch.arange(60).expand(3, -1))[0]
    for length in (1, 2, 9, 1, 5, 3, 0, 12):
        lengths = torch.randint(0, length + 1, (3,))
        chunk = torch.randn(3, length, 5)
        for row in range(3):
            at = int(position[row])
            chunk[row, : lengths[row]] = x[row, at : at + int(lengths[row])]
        age = position[:, None] + torch.arange(length)
        state = block.initial_state(3) if state is None else state
        y, state = block(chunk, state, age=age, lengths=lengths)
        for row in range(3):
            at, real = int(position[row]), int(lengths[row])
            torch.testing.assert_close(y[row, :real], whole[row, at : at + real])
        position += lengths


def test_without_taps_nothing_is_changed_learned_or_stored() -> None:
    block = CausalConvolution(5, 0)
    x = torch.randn(2, 7, 5)
    y, state = block(x)
    assert torch.equal(y, x)
    assert state.shape == block.initial_state(2).shape == (2, 0, 5)
    assert not list(block.parameters())
    assert not block.state_dict()
