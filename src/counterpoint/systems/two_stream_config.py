"""The shape of a `TwoStream`, and the streams that follow from it."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from counterpoint.blocks.boundaries import BoundariesConfig, check_ends
from counterpoint.blocks.convolution import check_taps
from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.ramp import mean_of_shorter
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.spec import Layout, Role, Stream, coarse_stream
from counterpoint.systems.contract import SystemConfig

WHOLE_TEXT = "whole_text"
"""Stream of the whole as text.

Its step s is written when block s is over and before any element of block s + 1 is written: it is
the plan of block s + 1, and a summary of the text so far.
"""


class BlockLengths(NamedTuple):
    """How long blocks of the part stream are, in a step of a training or in the finished model.

    Attributes:
        longest: Number of ticks after which a block ends at the latest.
        usual: Mean number of ticks of a block, if it is known.
        learned: Shape of the router that finds early ends, if there is one.
    """

    longest: int
    usual: float | None
    learned: BoundariesConfig | None

    def num_blocks(self, num_ticks: int) -> int:
        """Return the number of blocks in whole rows, for counting FLOPs."""
        if self.learned is not None:  # as many as there is room for
            return self.learned.most_blocks(num_ticks, self.longest)
        return round(num_ticks / self.usual) if self.usual else num_ticks // self.longest


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStreamConfig(SystemConfig, LevelConfig):
    """Shape of a `TwoStream`; the fields of `LevelConfig` are the shape of its whole.

    Attributes:
        part: Tower of the fine stream; its window is counted in ticks.
        levels: Wholes above the whole, lowest first. Each compresses blocks of the whole below it,
            and guides the upper layers of that whole. They have no losses of their own.
        boundary_ids: Ids after which a block of the part stream ends early, such as a space.
        learned_ends: Router that finds the early ends of blocks of the part stream; ``None`` if
            there is no router.
        usual_block_ticks: Mean number of ticks of a block in the intended text, for counting FLOPs;
            ``None`` means `block_ticks`.
        graph_blocks: Largest number of blocks in the rows of a compiled graph, whose shapes cannot
            follow from the text, if it is known; whoever records the rows must check it. ``None``
            makes room for a block at every tick.
        whole_dropout: Share of training rows in which the whole is hidden from the part.
        shared_layers: Whether the whole and those above it use the layers of the part tower instead
            of their own: one stack of layers serves all levels, whose shapes may differ only in
            their windows. This is the control of levels without towers of their own.
        whole_control: Control that shows what the whole contributes. "shuffled": each row reads the
            whole of the next row of its batch, and the last row that of the first, in training and
            everywhere else: at every tick what the next row itself may read there, which are the
            blocks that it has finished, its lag and its document kept. Of `levels` that is the
            lowest whole, which the next row's own levels guide. A row alone in a batch reads zeros.
            The rows of a batch of sessions must be read in step. "frozen": the compressor and the
            whole tower keep their random weights; a router of `learned_ends` learns. "unread":
            the part reads no plan either, so with no links, recall and text the whole learns by its
            own losses alone.
        predict_weight: Weight of the loss with which each plan predicts its tick by itself.
        reconstruct_weight: Weight of the loss of rebuilding each block.
        reconstruct_from: What a block is rebuilt from. "compressed": its compressed form, before
            the whole tower. "whole": the state of the whole after it, which is what ticks read.
            Without a `reconstruct_weight` nothing is rebuilt.
        vocab_size: Number of ids of the part stream.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
        text: Shape of the text of the whole: a few ids for each block, in the stream `WHOLE_TEXT`,
            which guide the block; ``None`` if the whole is not written as text.
    """

    part: TowerConfig
    levels: tuple[LevelConfig, ...] = ()
    boundary_ids: tuple[int, ...] = ()
    learned_ends: BoundariesConfig | None = None
    usual_block_ticks: float | None = None
    graph_blocks: int | None = None
    whole_dropout: float = 0.1
    shared_layers: bool = False
    whole_control: Literal["none", "shuffled", "frozen", "unread"] = "none"
    predict_weight: float = 0.3
    reconstruct_weight: float = 0.0
    reconstruct_from: Literal["compressed", "whole"] = "compressed"
    vocab_size: int = 258
    conv_taps: int = 4
    text: NotesConfig | None = None

    def __post_init__(self) -> None:
        check_taps(self.conv_taps)
        self.check(self.part)
        fine = self.whole
        below: LevelConfig = self
        for level in self.levels:
            level.check(fine)
            if level.block_ticks % below.steps_a_block:
                raise UserError(
                    "A block of a whole above must hold whole blocks of the one below, whose "
                    f"`slots_apart` are {below.steps_a_block} steps each: got {level.block_ticks}."
                )
            below = level
            fine = level.whole
        self._check_control()
        for level in levels_of(self) if self.shared_layers else ():
            if replace(level.whole, window=self.part.window) != self.part:
                raise UserError(
                    "With `shared_layers` the shape of a whole must be the part's, but for its "
                    f"window: got {level.whole} for a whole and {self.part} for the part."
                )
        self._check_ends()
        self._check_ramp()
        if not 0 <= self.whole_dropout <= 1:
            raise UserError(f"`whole_dropout` must be 0 to 1; got {self.whole_dropout}.")

    def _check_control(self) -> None:
        """Check that the control of the whole changes all that it is said to change."""
        if self.whole_control == "frozen" and (self.shared_layers or self.levels):
            raise UserError(
                "A frozen whole must be the only one and have layers of its own: got "
                f"{len(self.levels)} `levels` and `shared_layers` = {self.shared_layers}."
            )
        if self.whole_control == "shuffled" and self.recall is not None:
            raise UserError(
                "With a shuffled whole a row must read nothing old of its own, but by `recall` it "
                f"reads its own ticks again: got {self.recall}. Leave it out, or the control."
            )
        is_read = bool(self.num_links or self.recall or self.text)
        if self.whole_control == "unread" and is_read:
            raise UserError(
                "An unread whole must have no link, no `recall` and no `text`: got `num_links` = "
                f"{self.num_links}, `recall` = {self.recall} and `text` = {self.text}. Leave them "
                "out, or the control."
            )

    def _check_ends(self) -> None:
        """Check where blocks end."""
        check_ends(self.boundary_ids, self.learned_ends, self.usual_block_ticks, self.vocab_size)
        if self.text is not None and self.ends_early:
            raise UserError(
                "A whole of text stands at fixed ticks: with `text` blocks must not end early. "
                "Leave `boundary_ids` and `learned_ends` out, or `text`."
            )

    def _check_ramp(self) -> None:
        """Check that blocks may be shorter at the beginning of a training."""
        if any(level.ramp.start_ticks is not None for level in self.levels):
            raise UserError(
                "Only the blocks of the part stream may have a `ramp`: got one in `levels`. Leave "
                "it out there."
            )
        start = self.ramp.start_ticks
        if start is None:
            return
        self.ramp.check(self.block_ticks)
        if self.text is not None or self.graph_blocks is not None:
            raise UserError(
                "With a `ramp` the number of blocks of a row changes during the training: leave "
                "`text`, which stands at fixed ticks, and `graph_blocks` out, or the ramp."
            )
        learned = self.learned_ends
        if learned is not None and learned.ratio * start <= self.block_ticks:
            raise UserError(
                "With `learned_ends` the `ramp` must begin with blocks of more than one tick on "
                f"average: `start_ticks` = {start} of `block_ticks` = {self.block_ticks} makes "
                f"`ratio` {learned.ratio * start / self.block_ticks:.3g}. Begin with longer blocks."
            )

    def lengths_at(self, longest: int) -> BlockLengths:
        """Return the lengths of blocks in the stage of the `ramp` that ends them after ``longest``.

        The lengths of the finished model are those of `block_ticks`.
        """
        usual = self.usual_block_ticks
        learned = self.learned_ends
        if longest == self.block_ticks:
            return BlockLengths(longest, usual, learned)
        if usual is not None:
            usual = mean_of_shorter(usual, self.block_ticks, longest)
        if learned is not None:
            learned = learned.shortened(longest / self.block_ticks)
        return BlockLengths(longest, usual, learned)

    @property
    def ends_early(self) -> bool:
        """Whether blocks may end before they are full."""
        return bool(self.boundary_ids) or self.learned_ends is not None


def levels_of(config: TwoStreamConfig) -> list[LevelConfig]:
    """Return the shapes of the whole and of the levels above it, lowest first."""
    return [config, *config.levels]


def layout_of(config: TwoStreamConfig) -> Layout:
    """Return the streams: text of the whole if it has one, part, and one for each whole."""
    part = Stream(name="part", role=Role.PART, vocab_size=config.vocab_size, predicted=True)
    text: list[Stream] = []
    if config.text is not None:
        # One tick later than the block that it closes: before the first element of the next block.
        own = Stream(
            name=WHOLE_TEXT,
            role=Role.WHOLE,
            vocab_size=config.text.vocab_size,
            depth=config.text.depth,
            has_codebooks=True,
            padding_id=config.text.padding_id,
            period_ticks=config.block_ticks,
            delay_ticks=1,
            predicted=True,
        )
        text.append(own)
    wholes: list[Stream] = []
    period = 1
    steps_a_block = 1  # of the level below
    for number, level in enumerate(levels_of(config), 1):
        period = period * level.block_ticks // steps_a_block
        steps_a_block = level.steps_a_block
        wholes.append(
            coarse_stream(
                "whole" if number == 1 else f"whole_{number}",
                width=level.coarse_width,
                period_ticks=period,
                lag_steps=level.lag_blocks,
                irregular=config.ends_early,
            )
        )
    return Layout(streams=(*text, part, *wholes))
