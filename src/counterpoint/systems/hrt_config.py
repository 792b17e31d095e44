"""The shape of an `HRT`, and the streams that follow from it."""

import math
from dataclasses import dataclass

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.boundaries import BoundariesConfig, check_ends
from counterpoint.blocks.compress import Kind
from counterpoint.blocks.convolution import check_taps
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.spec import Layout, Role, Stream, coarse_stream
from counterpoint.systems.contract import SystemConfig


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class HRTConfig(SystemConfig):
    """Shape of an `HRT`.

    Attributes:
        levels: Towers from the finest level to the coarsest. The number of layers of each must be a
            multiple of ``num_rounds``; its window is counted in steps of its own level.
        strides: Number of steps of each level in one step of the next level, finest level first;
            the largest number of ticks in a block if blocks of ticks may end early.
        num_rounds: Number of times that the computation goes up and down the levels.
        num_keys: Number of newest steps of each coarser level that a step reads on the way down.
        compressor: How a block becomes a coarse step; see `counterpoint.blocks.compress`. Of the
            wavelet only the approximation goes up.
        reconstruct_weight: Weight of the loss of rebuilding finished blocks from coarser levels.
        vocab_size: Number of ids of the part stream.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
        boundary_ids: Ids after which a block of ticks ends early, such as a space.
        learned_ends: Router that finds the early ends of blocks of ticks; ``None`` if there is no
            router.
        usual_block_ticks: Mean number of ticks of a block in the intended text, for counting FLOPs;
            ``None`` means the first of the ``strides``.
        graph_blocks: Largest number of blocks in the rows of a compiled graph, whose shapes cannot
            follow from the text, if it is known; whoever records the rows must check it. ``None``
            makes room for a block at every tick.
    """

    levels: tuple[TowerConfig, ...]
    strides: tuple[int, ...] = (4, 4, 4)
    num_rounds: int = 1
    num_keys: int = 8
    compressor: Kind = "wavelet"
    reconstruct_weight: float = 0.1
    vocab_size: int = 258
    conv_taps: int = 4
    boundary_ids: tuple[int, ...] = ()
    learned_ends: BoundariesConfig | None = None
    usual_block_ticks: float | None = None
    graph_blocks: int | None = None

    def __post_init__(self) -> None:
        check_taps(self.conv_taps)
        if len(self.levels) < 2 or len(self.strides) != len(self.levels) - 1:
            raise UserError(
                f"`levels` must be two or more, with one stride between neighbouring levels: got "
                f"{len(self.levels)} levels and {len(self.strides)} strides."
            )
        if min(self.strides) < 2:
            raise UserError(f"`strides` must be >= 2 each: got {self.strides}.")
        if self.num_keys < 1 or self.num_rounds < 1:
            raise UserError(
                f"`num_keys` and `num_rounds` must be >= 1: got {self.num_keys} and "
                f"{self.num_rounds}."
            )
        check_ends(self.boundary_ids, self.learned_ends, self.usual_block_ticks, self.vocab_size)
        for tower in self.levels:
            if tower.num_layers % self.num_rounds:
                raise UserError(
                    f"Every level must have the same number of layers in each of the "
                    f"{self.num_rounds} rounds: got {tower.num_layers} layers."
                )
            if not isinstance(tower.mixer, AttentionConfig):
                raise UserError(
                    "A level reads coarser levels with the rotation of its own attention: its "
                    f"`mixer` must be attention; got {type(tower.mixer).__name__}."
                )

    @property
    def ends_early(self) -> bool:
        """Whether blocks of ticks may end before they are full."""
        return bool(self.boundary_ids) or self.learned_ends is not None

    @property
    def block_ticks(self) -> int:
        """Number of ticks after which a block of the second level ends at the latest."""
        return self.strides[0]

    def period_ticks(self, level: int) -> int:
        """Return the largest number of ticks that a step of a level covers."""
        return math.prod(self.strides[:level])

    def least_ticks(self, level: int) -> int:
        """Return the smallest number of ticks that a step of a level covers."""
        return math.prod(self.strides[self.ends_early : level])


def layout_of(config: HRTConfig) -> Layout:
    """Return the part stream, and one stream for each coarser level."""
    part = Stream(name="part", role=Role.PART, vocab_size=config.vocab_size, predicted=True)
    coarse = (
        coarse_stream(
            f"level_{level}",
            width=config.levels[level].width,
            period_ticks=config.period_ticks(level),
            lag_steps=0,
            irregular=config.ends_early,
        )
        for level in range(1, len(config.levels))
    )
    return Layout(streams=(part, *coarse))
