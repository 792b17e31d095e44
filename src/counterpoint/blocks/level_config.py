"""The shape of a level: a coarse tower over the blocks of a finer one."""

from dataclasses import dataclass

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.compress import Kind
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelConfig:
    """Shape of a `Level`.

    Attributes:
        whole: The coarse tower; its window is in blocks.
        lower_layers: Layers of the finer tower below the compressor; the others are led.
        block_ticks: Steps of the finer tower in a block; of the longest, where blocks may end
            early.
        lag_blocks: Blocks by which the coarse tower is used later than it could be.
        compressor: How a finished block becomes slots; `counterpoint.blocks.compress`.
        num_slots: Slots a block (compressors with a free number).
        num_links: Led layers, from the first, that also read the coarse tower by cross-attention.
    """

    whole: TowerConfig
    lower_layers: int
    block_ticks: int = 8
    lag_blocks: int = 0
    compressor: Kind = "wavelet"
    num_slots: int = 2
    num_links: int = 1

    def check(self, fine: TowerConfig) -> None:
        """Check that the level can stand on a tower.

        Raises:
            UserError: It cannot.
        """
        if self.block_ticks < 1:
            raise UserError(f"`block_ticks` must be >= 1; got {self.block_ticks}.")
        if self.lag_blocks < 0:
            raise UserError(f"`lag_blocks` must be >= 0; got {self.lag_blocks}.")
        most = fine.num_layers - 1
        if not 1 <= self.lower_layers <= most:
            raise UserError(
                f"`lower_layers` must be 1 to {most}, so that the finer tower has layers on both "
                f"sides; got {self.lower_layers}."
            )
        num_upper = fine.num_layers - self.lower_layers
        if not 0 <= self.num_links <= num_upper:
            raise UserError(f"`num_links` must be 0 to {num_upper}; got {self.num_links}.")
        if self.num_links and not isinstance(fine.mixer, AttentionConfig):
            raise UserError(
                "Links rotate as the attention of the tower that they lead: its `mixer` must be "
                f"attention where `num_links` is not 0; got {type(fine.mixer).__name__}."
            )

    def rope_of(self, fine: TowerConfig) -> RopeConfig:
        """The rotation of a finer tower, which the links share."""
        mixer = fine.mixer
        return mixer.rope if isinstance(mixer, AttentionConfig) else PLAIN_ROPE
