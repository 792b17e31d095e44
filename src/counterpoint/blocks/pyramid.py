"""A pyramid of levels: blocks of blocks, and attention from each level to the coarser ones.

Level 0 is a sequence. A step of each higher level stands for a fixed number of steps of the level
below; only the blocks of level 0 may end early. Blocks are aligned to the start of their document,
and an unfinished block is never read. Whole rows and chunks of sessions go through the same
functions.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import AttentionConfig, Reach, score_bias, write_ring
from counterpoint.blocks.block_grid import BlockGrid, gather_blocks, lay_blocks, newest_steps
from counterpoint.blocks.compress import Kind, build_compressor
from counterpoint.blocks.cross_attention import (
    CrossAttention,
    CrossReach,
    Memory,
    cross_reach,
    newest_reach,
)
from counterpoint.blocks.key_groups import group_keys, keys_run
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.clock import finished_span
from counterpoint.tracing import is_traced

GATE_START = -3.0  # its sigmoid is 0.05, so at first a level works almost on its own


class Counts(NamedTuple):
    """Progress of a session on every level. Tuples have one entry a coarse level, finest first.

    Attributes:
        position: Number of steps of level 0 that were read.
        finished: Number of finished steps of each coarse level.
        place: Number of steps of the level below that belong to its unfinished block.
    """

    position: Int[Tensor, " B"]
    finished: tuple[Int[Tensor, " B"], ...]
    place: tuple[Int[Tensor, " B"], ...]

    def after(self, blocks: "list[Blocks]", read: int | Tensor) -> "Counts":
        """Return the counts after a chunk of ``read`` real steps."""
        finished = [laid.before + laid.finished for laid in blocks]
        place = [laid.left for laid in blocks]
        return Counts(
            self.position + read,
            (*finished, *self.finished[len(blocks) :]),
            (*place, *self.place[len(blocks) :]),
        )


class Blocks(NamedTuple):
    """Where the blocks of a coarse level lie over the steps of the level below, within a chunk.

    Attributes:
        grid: The blocks that end within the chunk.
        first: First block of the document of each lower step.
        before: Number of blocks finished before the chunk.
        finished: Number of blocks finished within the chunk.
        left: Number of lower steps in the unfinished block after the chunk.
        read: Number of real lower steps of the chunk.
        of_rows: Whether the chunk is whole rows, whose shapes depend on nothing but ``grid``.
    """

    grid: BlockGrid
    first: Int[Tensor, "B T"]
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    left: Int[Tensor, " B"]
    read: Int[Tensor, " B"]
    of_rows: bool

    @property
    def has_steps(self) -> bool:
        """Whether a step of the coarse level must be computed in the chunk."""
        if not self.grid.end.shape[1]:
            return False
        on_host = self.finished.device.type == "cpu" and not is_traced()
        return self.of_rows or not on_host or bool(self.finished.any())

    def ended(self, finer: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Return how many blocks end within the first ``finer`` lower steps of the chunk."""
        return F.pad(self.grid.finished, (1, 0)).gather(1, finer)

    def take(
        self, fine: Float[Tensor, "B T D"], kept: Float[Tensor, "B R D"]
    ) -> tuple[Float[Tensor, "B W R D"], Float[Tensor, "B R D"]]:
        """Return the lower steps of each block, and the newest ones after the chunk.

        Args:
            fine: Lower steps of the chunk.
            kept: The R lower steps before the chunk; the last of them belong to the unfinished
                block.
        """
        steps = torch.cat((kept.to(fine.dtype), fine), 1)
        return gather_blocks(steps, self.grid), newest_steps(steps, kept.shape[1], self.read)


class View(NamedTuple):
    """How one level reads a coarser level within a chunk.

    Attributes:
        reach: Coarse steps that each step of the reading level may read.
        end: Step of the reading level at which each coarse step of the chunk ended.
        slot: Memory slots of these coarse steps in a session; ``None`` for whole rows.
    """

    reach: CrossReach
    end: Int[Tensor, "B W"]
    slot: Int[Tensor, "B W"] | None

    def keep(
        self, memory: Float[Tensor, "B 2 H W E"], before: Float[Tensor, "B 2 H _ E"]
    ) -> Float[Tensor, "B 2 H _ E"]:
        """Return the memory with the coarse steps of the chunk; its last slot is never read."""
        if self.slot is None:
            return F.pad(memory, (0, 0, 0, 1))
        write_ring(before, self.slot, memory)
        return before


def lay_levels(
    shape: tuple[int, int],
    strides: tuple[int, ...],
    document: Int[Tensor, "B T"] | None,
    lengths: Int[Tensor, " B"] | None,
    counts: Counts,
    early: Bool[Tensor, "B T"] | None = None,
    most: int | None = None,
) -> list[Blocks]:
    """Return the blocks of every coarse level whose lower level has steps in a chunk.

    Args:
        shape: Number of rows, and number of steps of level 0 in the chunk.
        strides: Number of steps of each level in one step of the next level, finest level first.
        document: First step of the document of each step; ``None`` for sessions.
        lengths: Number of real steps of each row; ``None`` means all.
        counts: Counts before the chunk.
        early: True at steps of level 0 that end their block; ``None`` if none ends early.
        most: Largest number of blocks of level 0, if shapes must follow from it; see `lay_blocks`.
    """
    num_rows, num_steps = shape
    laid: list[Blocks] = []
    for stride, before, place in zip(strides, counts.finished, counts.place, strict=True):
        if laid and most is not None:
            most = num_steps // stride
        start = -place[:, None].expand(-1, num_steps) if document is None else document
        # A session does not count its blocks, or its shapes would depend on the other rows.
        counted = document is not None or num_rows == 1
        grid = lay_blocks(early, start, stride, lengths=lengths, counted=counted, most=most)
        early = None
        padded = F.pad(grid.finished, (1, 0))
        read = torch.full_like(place, num_steps) if lengths is None else lengths
        finished = padded.gather(1, read[:, None])[:, 0]
        left = torch.cat((place[:, None], grid.place), 1).gather(1, read[:, None])[:, 0]
        first = torch.zeros_like(start) if document is None else padded.gather(1, document)
        laid.append(Blocks(grid, first, before, finished, left, read, document is not None))
        if not laid[-1].has_steps:
            break
        if document is not None:
            document = first.gather(1, grid.end)
        lengths = finished
        num_steps = grid.end.shape[1]
    return laid


def level_views(
    blocks: list[Blocks],
    reaches: list[Reach],
    counts: Counts,
    num_keys: int,
    capacities: tuple[int, ...] | None,
) -> dict[tuple[int, int], View]:
    """Return how each level with steps in a chunk reads each coarser one, by (reader, source).

    Args:
        blocks: From `lay_levels`.
        reaches: What the steps of each such level may read of their own level.
        counts: Counts before the chunk.
        num_keys: Number of newest steps of a coarser level that a step reads.
        capacities: Number of steps of each coarse level that a session keeps; ``None`` for whole
            rows.
    """
    views = {}
    for reader, reach in enumerate(reaches):
        num_steps = reach.cos.shape[2]
        end = torch.arange(num_steps, device=reach.cos.device).expand(len(counts.position), -1)
        seen = end + 1
        first = torch.zeros_like(end)
        shortest = 1
        position = counts.finished[reader - 1] if reader else counts.position
        for source in range(reader + 1, len(counts.finished) + 1):
            if source <= len(blocks):
                laid = blocks[source - 1]
                first = laid.first if source == reader + 1 else laid.ended(first)
                seen = laid.ended(seen)
                end = end.gather(1, laid.grid.end)
                shortest *= laid.grid.shortest
            else:  # no step of the coarse level ends within the chunk
                first = torch.zeros_like(first)
                seen = first
                end = end[:, :0]
            before = counts.finished[source - 1]
            capacity = end.shape[1]
            slot = None
            if capacities is not None:
                capacity = capacities[source - 1]
                offset = torch.arange(end.shape[1], device=end.device)
                real = offset < seen[:, -1:]
                slot = torch.where(real, (before[:, None] + offset) % capacity, capacity)
            span = finished_span(seen + before[:, None], 0, first, num_keys)
            groups = None
            if capacities is None:
                groups = group_keys(span, capacity, num_keys, shortest, few_keys=0)
            if groups is not None or (capacities is None and capacity <= num_keys):
                # No coarse step needs to be picked for each step: all are read, or those of a group
                number = torch.arange(capacity + 1, device=end.device)[None]
                near = cross_reach(reach.cos, reach.sin, span, number, groups)
            else:
                near = newest_reach(reach.cos, reach.sin, span, num_keys, capacity)
            views[reader, source] = View(near, end + position[:, None], slot)
    return views


def keys_scored(num_steps: int, num_coarse: int, num_keys: int, shortest: int) -> float:
    """Return for how many coarse steps each step of whole rows computes scores.

    Args:
        num_steps: Number of steps of the reading level.
        num_coarse: Number of coarse steps.
        num_keys: See `level_views`.
        shortest: Smallest number of steps of the reading level that a coarse step covers.
    """
    run = keys_run(num_steps, num_coarse, num_keys, shortest, few_keys=0)
    return run if run < num_coarse else min(num_keys, num_coarse + 1)


class Link(nn.Module):
    """Cross-attention from a level to the newest finished steps of a coarser level."""

    def __init__(self, fine: TowerConfig, coarse: TowerConfig) -> None:
        """Make the link with a gate that is almost closed."""
        super().__init__()
        rope = cast("AttentionConfig", fine.mixer).rope
        self.coarse_norm = RMSNorm(coarse.width)
        self.attention = CrossAttention(fine.width, coarse.width, fine.num_heads, rope)
        self.gate = nn.Parameter(torch.full((fine.width,), GATE_START))

    def remember(self, coarse: Float[Tensor, "B W D2"], tick: Int[Tensor, "B W"]) -> Memory:
        """Return keys and values of coarse steps that stand at the given steps of the level."""
        return self.attention.remember(self.coarse_norm(coarse), tick)

    def no_memory(self, num_rows: int, capacity: int = 0) -> Memory:
        """Return an empty memory for ``capacity`` coarse steps, with one more slot, never read."""
        heads = self.attention.num_heads
        return self.gate.new_zeros(num_rows, 2, heads, capacity + 1, len(self.gate) // heads)

    def flops_per_step(self, num_keys: float) -> float:
        """Return the forward FLOPs of one step that computes scores for ``num_keys`` steps."""
        maps = (self.attention.query, self.attention.gate, self.attention.out)
        products = sum(one.weight.numel() for one in maps)
        return 2 * (products + 2 * (num_keys + 1) * len(self.gate))


class Gather(nn.Module):
    """Cross-attention from a coarse step to the states of its own block.

    Source: cross-attention to the level below, with a learned offset of the score for each place in
    the block; the result is mixed in by the gate of `Link`.
    """

    def __init__(self, coarse: TowerConfig, fine_width: int, stride: int) -> None:
        """Make the attention with a gate that is almost closed.

        Args:
            coarse: Shape of the coarse level.
            fine_width: Features of a state of the level below.
            stride: Number of states of a block.
        """
        super().__init__()
        self.num_heads = coarse.num_heads
        self.norm = RMSNorm(coarse.width)
        self.query = nn.Linear(coarse.width, coarse.width, bias=False)
        self.key_value = nn.Linear(fine_width, 2 * coarse.width, bias=False)
        self.place = nn.Parameter(torch.zeros(coarse.num_heads, stride))
        self.out = nn.Linear(coarse.width, coarse.width, bias=False)
        for linear in (self.query, self.key_value, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.gate = nn.Parameter(torch.full((coarse.width,), GATE_START))

    def forward(
        self,
        x: Float[Tensor, "B W D2"],
        blocks: Float[Tensor, "B W R D"],
        real: Bool[Tensor, "B W R"],
    ) -> Float[Tensor, "B W D2"]:
        """Return what each coarse step reads from the states of its block that are ``real``."""
        q = self.query(self.norm(x)).unflatten(-1, (self.num_heads, 1, -1))
        kv = self.key_value(blocks).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, W, H, R, E)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + self.place[:, None].to(q.dtype)
        scores = scores + score_bias(real).transpose(1, 2)[..., None, :].to(q.dtype)
        read: Tensor = self.out((torch.softmax(scores, -1) @ v).flatten(2))
        return read

    def products(self) -> int:
        """Return the multiply-adds of the matrix products for one coarse step."""
        width = len(self.gate)
        stride = self.place.shape[1]
        a_block = self.query.weight.numel() + self.out.weight.numel()
        return a_block + stride * (self.key_value.weight.numel() + 2 * width)


def fuse(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return ``a y + (1 - a) x``, where ``a`` is the sigmoid of the gate, feature by feature."""
    return x + torch.sigmoid(gate).to(x.dtype) * (y - x)


class Rise(nn.Module):
    """How a coarse level reads the level below, in every round.

    The first round compresses each finished block. In later rounds the coarse step attends to its
    block again.
    """

    def __init__(
        self, below: TowerConfig, level: TowerConfig, stride: int, kind: Kind, num_rounds: int
    ) -> None:
        """Make modules for blocks of ``stride`` steps, each compressed by ``kind`` to one slot."""
        super().__init__()
        self.norms = _typed(RMSNorm(below.width) for _ in range(num_rounds))
        self.compressor = build_compressor(kind, below.width, stride, 1)
        self.merge = nn.Linear(below.width, level.width, bias=False)
        nn.init.normal_(self.merge.weight, std=below.width**-0.5)
        self.gathers = _typed(Gather(level, below.width, stride) for _ in range(num_rounds - 1))

    def compress(
        self, gathered: Float[Tensor, "B W R D"], real: Bool[Tensor, "B W R"]
    ) -> Float[Tensor, "B W D2"]:
        """Return the first states of the coarse level; a wavelet gives only its approximation."""
        return self.merge(self.compressor(gathered, real)[..., 0, :])

    def gather(
        self,
        number: int,
        x: Float[Tensor, "B W D2"],
        gathered: Float[Tensor, "B W R D"],
        real: Bool[Tensor, "B W R"],
    ) -> Float[Tensor, "B W D2"]:
        """Let coarse states read their blocks again, in a round after the first.

        Args:
            number: Number of the round, counted from 0; it is at least 1.
            x: Coarse states.
            gathered: The R states of each block.
            real: True for those that the block has; a block that ends early has fewer.
        """
        gather = self.gathers[number - 1]
        return fuse(x, gather(x, gathered, real), gather.gate)

    def flops_per_step(self) -> float:
        """Return the forward FLOPs of a coarse step, in all rounds."""
        products = self.merge.weight.numel() + self.compressor.products_per_block()
        return 2 * (products + sum(gather.products() for gather in self.gathers))


def _typed(modules: Iterable[nn.Module]) -> Any:
    """Return a `nn.ModuleList`, typed so that its items are not plain modules."""
    return nn.ModuleList(modules)
