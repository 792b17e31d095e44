import pytest
import torch
from torch import Tensor, nn

from counterpoint.blocks.compress import (
    AttentionSlots,
    Kind,
    Last,
    Mean,
    StridedConvolution,
    Unfold,
    Wavelet,
    build_compressor,
)


def randomise(block: nn.Module) -> None:
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)


def everything(blocks: Tensor) -> Tensor:
    return torch.ones(blocks.shape[:-1], dtype=torch.bool)


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)
    pull = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, pull)
    expected = torch.autograd.grad(theirs, inputs, pull)
    for mine, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 63, 100])
def test_mean_and_last_match_loops(steps: int) -> None:
    blocks = torch.randn(2, 3, steps, 5, requires_grad=True)
    mean = sum(blocks[:, :, i] for i in range(steps)) / steps
    assert isinstance(mean, Tensor)
    agree(Mean()(blocks, everything(blocks)), mean[:, :, None], [blocks])
    agree(Last()(blocks, everything(blocks)), blocks[:, :, steps - 1 : steps], [blocks])


@pytest.mark.parametrize(("steps", "slots"), [(1, 1), (63, 7), (100, 5)])
def test_convolution_matches_strided_conv1d(steps: int, slots: int) -> None:
    block = StridedConvolution(6, steps, slots)
    randomise(block)
    blocks = torch.randn(2, 3, steps, 6, requires_grad=True)
    kernel = block.weight.unflatten(0, (slots, 6)).unflatten(-1, (steps, 6))
    row = blocks.flatten(1, 2).transpose(1, 2)  # channels, then the steps of all blocks
    theirs = [
        nn.functional.conv1d(row, kernel[s].transpose(1, 2), stride=steps) for s in range(slots)
    ]
    expected = torch.stack(theirs, -1).permute(0, 2, 3, 1)
    agree(block(blocks, everything(blocks)), expected, [blocks, block.weight])


def test_convolution_starts_as_the_mean_of_each_share() -> None:
    block = StridedConvolution(64, 8, 2)
    constant = torch.randn(64).expand(1, 8, 64).clone()
    constant[:, 4:] *= -2
    slots = block(constant, everything(constant))
    for slot, share in enumerate((constant[:, :4], constant[:, 4:])):
        mean = share.mean(1)
        assert nn.functional.cosine_similarity(slots[:, slot], mean) > 0.5
        other = constant[:, :4] if slot else constant[:, 4:]
        assert nn.functional.cosine_similarity(slots[:, slot], other.mean(1)) < 0


@pytest.mark.parametrize(("steps", "slots"), [(1, 1), (63, 7), (100, 5)])
def test_attention_slots_match_loops(steps: int, slots: int) -> None:
    block = AttentionSlots(6, steps, slots)
    randomise(block)
    blocks = torch.randn(2, 3, steps, 6, requires_grad=True)
    rows = []
    for b in blocks.flatten(0, 1):
        keys = block.key(b)
        for slot in range(slots):
            scores = [
                block.query[slot] @ keys[i] / 6**0.5 + block.place[slot, i] for i in range(steps)
            ]
            weights = torch.softmax(torch.stack(scores), 0)
            rows.append((weights[:, None] * b).sum(0))
    expected = torch.stack(rows).view(2, 3, slots, 6)
    agree(block(blocks, everything(blocks)), expected, [blocks, *block.parameters()])


def test_attention_slots_start_near_the_mean_and_differ() -> None:
    block, blocks = AttentionSlots(64, 8, 2), torch.randn(50, 8, 64)
    slots = block(blocks, everything(blocks))
    mean = blocks.mean(1, keepdim=True)
    assert nn.functional.cosine_similarity(slots, mean, -1).min() > 0.95
    assert (slots[:, 0] != slots[:, 1]).all()


def test_wavelet_starts_as_haar() -> None:
    blocks = torch.randn(3, 8, 5)
    approximation, bands = blocks, []
    while approximation.shape[1] > 1:
        pairs = approximation.unflatten(1, (-1, 2))
        bands.append(pairs[:, :, 1] - pairs[:, :, 0])
        approximation = pairs.mean(2)
    expected = torch.cat([approximation, *reversed(bands)], 1)
    torch.testing.assert_close(Wavelet(5, 8)(blocks, everything(blocks)), expected)
    torch.testing.assert_close(
        Wavelet(5, 8)(blocks, everything(blocks))[:, :1], blocks.mean(1, keepdim=True)
    )


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_wavelet_is_inverted_exactly_with_any_factors(steps: int) -> None:
    block = Wavelet(5, steps)
    randomise(block)
    blocks = torch.randn(2, 3, steps, 5)
    torch.testing.assert_close(
        block.inverse(block(blocks, everything(blocks))), blocks, rtol=0, atol=1e-5
    )
    slots = torch.randn(2, 3, steps, 5)
    again = block(block.inverse(slots), everything(slots))
    torch.testing.assert_close(again, slots, rtol=0, atol=1e-5)


def test_wavelet_gradients_match_loops() -> None:
    block = Wavelet(5, 8)
    randomise(block)
    blocks = torch.randn(3, 8, 5, requires_grad=True)
    values, bands = [blocks[:, i] for i in range(8)], []
    for level in range(3):
        detail = [
            values[i + 1] - block.predict[level] * values[i] for i in range(0, len(values), 2)
        ]
        values = [values[2 * i] + block.update[level] * d for i, d in enumerate(detail)]
        bands.append(detail)
    expected = torch.stack([*values, *(d for detail in reversed(bands) for d in detail)], 1)
    agree(block(blocks, everything(blocks)), expected, [blocks, block.predict, block.update])


def test_wavelet_refuses_blocks_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match="power of two: got 6"):
        Wavelet(5, 6)


def test_builder_returns_each_kind() -> None:
    assert isinstance(build_compressor("mean", 4, 6, 9), Mean)
    assert isinstance(build_compressor("last", 4, 6, 9), Last)
    assert isinstance(build_compressor("convolution", 4, 6, 3), StridedConvolution)
    assert isinstance(build_compressor("attention", 4, 6, 2), AttentionSlots)
    assert isinstance(build_compressor("wavelet", 4, 8, 9), Wavelet)
    for kind in ("convolution", "attention"):
        with pytest.raises(ValueError, match="`num_slots` must divide `block_ticks`: got 4 and 6"):
            build_compressor(kind, 4, 6, 4)
        with pytest.raises(ValueError, match="got 0 and 6"):
            build_compressor(kind, 4, 6, 0)


def test_unfold_is_one_map_a_step() -> None:
    block, x = Unfold(6, 4, 3), torch.randn(2, 5, 6)
    maps = block.unfold.weight.unflatten(0, (3, 4))
    for step in range(3):
        torch.testing.assert_close(block(x)[:, :, step], x @ maps[step].T)


@pytest.mark.parametrize("kind", ["mean", "last", "attention"])
def test_short_blocks_compress_like_blocks_of_their_size(kind: Kind) -> None:
    block = build_compressor(kind, 6, 8, 2)
    with torch.no_grad():
        block.load_state_dict({name: torch.randn_like(w) for name, w in block.state_dict().items()})
    for size in range(1, 9):
        steps = torch.randn(2, size, 6)
        padded = torch.nn.functional.pad(steps, (0, 0, 8 - size, 0))
        real = (torch.arange(8) >= 8 - size).expand(2, -1)
        slots = block(padded, real)
        if kind == "mean":
            expected = steps.mean(1, keepdim=True)
        elif kind == "last":
            expected = steps[:, -1:]
        else:
            assert isinstance(block, AttentionSlots)
            scores = (block.query @ block.key.weight) @ steps.transpose(1, 2) / 6**0.5
            expected = torch.softmax(scores + block.place[:, 8 - size :], -1) @ steps
        torch.testing.assert_close(slots, expected)
