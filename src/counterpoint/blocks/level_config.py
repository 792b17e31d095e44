"""The shape of a level: a coarse tower over the blocks of a finer one."""

from dataclasses import dataclass, field

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.compress import Kind, count_slots
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.blocks.rope import PLAIN_ROPE, RopeConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class LevelConfig:
    """Shape of a `Level`.

    Attributes:
        whole: Shape of the coarse tower; its window is counted in its steps: blocks, or slots if
            these are kept apart.
        lower_layers: Number of layers of the finer tower below the compressor; the layers above
            are guided.
        block_ticks: Number of steps of the finer tower in a block, or in the longest block if
            blocks may end early.
        ramp: Shorter blocks at the beginning of a training. Fixed blocks become longer; of blocks
            that end at ids only the longest do; learned ends raise their `ratio` too, and lower
            `max_share`, by the same factor.
        lag_blocks: Number of the newest finished blocks that the finer tower may not read yet.
        compressor: How a finished block becomes slots; see `counterpoint.blocks.compress`.
        num_slots: Number of slots a block of the convolution and the attention. The others ignore
            it: mean and last make one slot, the wavelet one for each step.
        slots_apart: Every slot is a step of the coarse tower of its own, instead of all slots of a
            block being merged into one: more state and more detail.
        code_levels: Levels of the numbers of each slot's code (finite scalar quantisation): the
            coarse tower reads codes, which can be listed. Empty: slots are continuous.
        num_links: Number of guided layers, counted from the first, that also read the coarse tower
            through cross-attention.
        recall: How the finer tower reads its own steps of old blocks again, after the last link;
            ``None``: not at all.
    """

    whole: TowerConfig
    lower_layers: int
    block_ticks: int = 8
    ramp: RampConfig = field(default_factory=RampConfig)
    lag_blocks: int = 0
    compressor: Kind = "wavelet"
    num_slots: int = 2
    slots_apart: bool = False
    code_levels: tuple[int, ...] = ()
    num_links: int = 1
    recall: RecallConfig | None = None

    def check(self, fine: TowerConfig) -> None:
        """Check that the level fits a finer tower.

        Raises:
            UserError: A number is out of range, or links are asked of a tower without attention.
        """
        if self.block_ticks < 1:
            raise UserError(f"`block_ticks` must be >= 1; got {self.block_ticks}.")
        if self.lag_blocks < 0:
            raise UserError(f"`lag_blocks` must be >= 0; got {self.lag_blocks}.")
        most = fine.num_layers - 1
        if not 1 <= self.lower_layers <= most:
            raise UserError(
                f"`lower_layers` must be 1 to {most}, so that the finer tower has layers below and "
                f"above the compressor; got {self.lower_layers}."
            )
        num_upper = fine.num_layers - self.lower_layers
        if not 0 <= self.num_links <= num_upper:
            raise UserError(f"`num_links` must be 0 to {num_upper}; got {self.num_links}.")
        reads = self.num_links or self.recall is not None
        if reads and not isinstance(fine.mixer, AttentionConfig | MultiTokenConfig):
            raise UserError(
                "Links and recall use the rotation of the attention of the tower that they guide: "
                "its `mixer` must be attention if `num_links` is not 0 or `recall` is given; got "
                f"{type(fine.mixer).__name__}."
            )
        if self.steps_a_block > self.whole.chunk_steps:
            raise UserError(
                "With `slots_apart` the window of the whole must hold the slots of a block: it is "
                f"{self.whole.window} (128 at most count), a block has {self.steps_a_block} slots."
            )
        if self.recall is not None:
            self.recall.beneath(self.window_blocks)

    @property
    def steps_a_block(self) -> int:
        """Steps of the coarse tower for one block."""
        if not self.slots_apart:
            return 1
        return count_slots(self.compressor, self.block_ticks, self.num_slots)

    @property
    def ends_early(self) -> bool:
        """Whether blocks may end before they are full."""
        return False

    @property
    def shortest_block(self) -> int:
        """Smallest number of steps of the finer tower from the end of a block to the next end.

        A `ramp` shortens the blocks of whole rows in training, and no session has these.
        """
        return 1 if self.ends_early else self.block_ticks

    @property
    def coarse_width(self) -> int:
        """Features of what the coarse tower knows of a block: of all its steps together."""
        return self.whole.width * self.steps_a_block

    @property
    def window_blocks(self) -> int:
        """Newest blocks that the finer tower may read."""
        return self.whole.window // self.steps_a_block

    def rope_of(self, fine: TowerConfig) -> RopeConfig:
        """Return the rotation of a finer tower, which the links share."""
        mixer = fine.mixer
        if isinstance(mixer, AttentionConfig | MultiTokenConfig):
            return mixer.rope
        return PLAIN_ROPE
