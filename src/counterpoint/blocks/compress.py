"""Compressors, which turn blocks of a fine stream into coarse vectors, and `Unfold`, the reverse.

A compressor turns each finished block into a few vectors, called slots. It reads one block at a
time, so it is causal by construction and has no state. A block may have fewer than R steps: they
are aligned to the right, ``real`` marks them, and the other steps are zero.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.fsq import FiniteScalarQuantizer
from counterpoint.errors import UserError

Kind = Literal["mean", "last", "convolution", "attention", "wavelet"]


class Compressor(nn.Module):
    """Base class of all compressors.

    Attributes:
        num_slots: Number of vectors that a block becomes; each has the width of a step.
    """

    num_slots: int

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B S D"]:
        """Compress blocks of R steps to S slots."""
        raise NotImplementedError

    def products_per_block(self) -> int:
        """Return the multiply-adds of the matrix products of one block."""
        return 0


class Mean(Compressor):
    """The mean of the block."""

    num_slots = 1

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B 1 D"]:
        """Average over the steps."""
        size = real.sum(-1, keepdim=True).clamp(min=1)
        return blocks.sum(-2, keepdim=True) / size[..., None]


class Last(Compressor):
    """The last step of the block; the fine tower has to gather the other steps into it.

    Source: boundary selection of AU-Net (arXiv:2506.14761) and H-Net (arXiv:2507.07955).
    """

    num_slots = 1

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B 1 D"]:
        """Select the last step."""
        return blocks[..., -1:, :]


class StridedConvolution(Compressor):
    """A convolution whose kernel and stride are one block.

    Slot s starts as the mean of the s-th part of the block, so that the slots start out different.
    """

    def __init__(self, width: int, block_ticks: int, num_slots: int) -> None:
        """Make the weights; ``num_slots`` must divide ``block_ticks``."""
        super().__init__()
        self.num_slots = num_slots
        share = block_ticks // num_slots
        weight = torch.randn(num_slots, width, block_ticks, width) * (block_ticks * width) ** -0.5
        for slot in range(num_slots):
            weight[slot, :, slot * share : (slot + 1) * share] += torch.eye(width)[:, None] / share
        self.weight = nn.Parameter(weight.flatten(2).flatten(0, 1))

    def products_per_block(self) -> int:
        """Return the multiply-adds of the matrix products of one block."""
        return self.weight.numel()

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B S D"]:
        """Convolve each block to its slots."""
        slots = nn.functional.linear(blocks.flatten(-2), self.weight)
        return slots.unflatten(-1, (self.num_slots, -1))


class AttentionSlots(Compressor):
    """Learned queries that attend to the steps of their block; every slot starts near the mean.

    Source: the resampler of Perceiver (arXiv:2103.03206); starting as the mean follows BLT.
    """

    def __init__(self, width: int, block_ticks: int, num_slots: int) -> None:
        """Make small orthogonal queries, so that slots start near the mean but differ."""
        super().__init__()
        self.num_slots = num_slots
        self.query = nn.Parameter(nn.init.orthogonal_(torch.empty(num_slots, width)) * 0.1)
        self.place = nn.Parameter(torch.zeros(num_slots, block_ticks))
        self.key = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.key.weight, std=width**-0.5)

    def products_per_block(self) -> int:
        """Return the multiply-adds of one block's matrix products: scores and weighted sums."""
        return 2 * self.place.numel() * self.query.shape[1]

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B S D"]:
        """Mix the steps of each block, once for each slot."""
        # The key matrix is applied to the queries instead of every step: (q K) x = q (K x).
        query = self.query @ self.key.weight * blocks.shape[-1] ** -0.5
        scores = nn.functional.linear(blocks, query).transpose(-1, -2) + self.place
        scores = scores.float().masked_fill(~real[..., None, :], -1e9)
        return torch.softmax(scores, -1).to(blocks.dtype) @ blocks


class Wavelet(Compressor):
    """Lifting Haar wavelet: one approximation, then all detail bands, coarsest first.

    At each level ``detail = odd - predict * even`` and ``approximation = even + update * detail``
    with learned per-feature factors that start at the Haar wavelet (1 and 1/2). The transform is
    exactly invertible for any factors, so nothing of the block is lost.

    Source: the lifting scheme (Sweldens 1998).
    """

    def __init__(self, width: int, block_ticks: int) -> None:
        """Make the lifting factors.

        Raises:
            UserError: ``block_ticks`` is not a power of two.
        """
        super().__init__()
        num_levels = block_ticks.bit_length() - 1
        if block_ticks != 2**num_levels:
            raise UserError(
                f"The wavelet halves a block until one step is left, so the steps of a block must "
                f"be a power of two: got {block_ticks}. Choose another size or another compressor."
            )
        self.num_slots = block_ticks
        self.predict = nn.Parameter(torch.ones(num_levels, width))
        self.update = nn.Parameter(torch.full((num_levels, width), 0.5))

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B R D"]:
        """Split each block into its approximation and details."""
        approximation = blocks
        bands = []
        for predict, update in zip(self.predict, self.update, strict=True):
            even = approximation[..., ::2, :]
            odd = approximation[..., 1::2, :]
            detail = odd - predict.to(blocks.dtype) * even
            approximation = even + update.to(blocks.dtype) * detail
            bands.append(detail)
        return torch.cat((approximation, *reversed(bands)), -2)

    def inverse(self, slots: Float[Tensor, "*B R D"]) -> Float[Tensor, "*B R D"]:
        """Rebuild the blocks exactly from what `forward` returned."""
        approximation = slots[..., :1, :]
        for predict, update in zip(
            reversed(self.predict.unbind(0)), reversed(self.update.unbind(0)), strict=True
        ):
            size = approximation.shape[-2]
            detail = slots[..., size : 2 * size, :]
            even = approximation - update.to(slots.dtype) * detail
            odd = detail + predict.to(slots.dtype) * even
            approximation = torch.stack((even, odd), -2).flatten(-3, -2)
        return approximation


class Coded(Compressor):
    """A compressor whose slots are codes: what comes out can only be one of finitely many.

    Args:
        plain: The compressor whose slots are rounded.
        width: Features of a slot.
        levels: Number of values of each number of a code.
    """

    def __init__(self, plain: Compressor, width: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.plain = plain
        self.num_slots = plain.num_slots
        self.quantizer = FiniteScalarQuantizer(width, levels)

    def forward(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Float[Tensor, "*B S D"]:
        """Compress, and round."""
        coded: Tensor = self.quantizer(self.plain(blocks, real))
        return coded

    def codes(
        self, blocks: Float[Tensor, "*B R D"], real: Bool[Tensor, "*B R"]
    ) -> Int[Tensor, "*B S"]:
        """Return the code of each slot."""
        return self.quantizer.codes(self.plain(blocks, real))

    def products_per_block(self) -> int:
        """Return the multiply-adds of the matrix products of one block."""
        maps = self.quantizer.down.weight.numel() + self.quantizer.up.weight.numel()
        return self.plain.products_per_block() + self.num_slots * maps


def count_slots(kind: Kind, block_ticks: int, num_slots: int) -> int:
    """Return the number of slots of a compressor.

    Args:
        kind: Its name.
        block_ticks: Steps of the longest block, which the wavelet has as slots.
        num_slots: Number of slots of the convolution and the attention.
    """
    if kind in ("mean", "last"):
        return 1
    return block_ticks if kind == "wavelet" else num_slots


def build_compressor(
    kind: Kind,
    width: int,
    block_ticks: int,
    num_slots: int,
    code_levels: tuple[int, ...] = (),
) -> Compressor:
    """Build a compressor by name.

    Args:
        kind: Its name.
        width: Features of a step and of a slot.
        block_ticks: Steps of the longest block.
        num_slots: Only used by the convolution and the attention; the others fix their own.
        code_levels: Levels of the numbers of a slot's code; empty keeps slots continuous.

    Raises:
        UserError: ``num_slots`` does not divide ``block_ticks``, the wavelet's ``block_ticks``
            is not a power of two, or a number of a code has fewer than three levels.
    """
    if code_levels:
        plain = build_compressor(kind, width, block_ticks, num_slots)
        return Coded(plain, width, code_levels)
    if kind == "mean":
        return Mean()
    if kind == "last":
        return Last()
    if kind == "wavelet":
        return Wavelet(width, block_ticks)
    if num_slots < 1 or block_ticks % num_slots:
        raise UserError(
            f"`num_slots` must divide `block_ticks`: got {num_slots} and {block_ticks}."
        )
    if kind == "convolution":
        return StridedConvolution(width, block_ticks, num_slots)
    return AttentionSlots(width, block_ticks, num_slots)


class Unfold(nn.Module):
    """A linear map from one vector of a block to a state for each of its steps."""

    def __init__(self, width: int, step_width: int, block_ticks: int) -> None:
        """Make a map from ``width`` features to ``block_ticks`` states of ``step_width``."""
        super().__init__()
        self.block_ticks = block_ticks
        self.unfold = nn.Linear(width, block_ticks * step_width, bias=False)
        nn.init.normal_(self.unfold.weight, std=width**-0.5)

    def forward(self, x: Float[Tensor, "*B D2"]) -> Float[Tensor, "*B R D"]:
        """Return the R states of each vector."""
        return self.unfold(x).unflatten(-1, (self.block_ticks, -1))
