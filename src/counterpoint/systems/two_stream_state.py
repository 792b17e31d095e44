"""What a session of a `TwoStream` carries, and what its stages hand on."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.chunk import Chunks
from counterpoint.blocks.level_state import Cut, LevelState
from counterpoint.blocks.mixer import MixerReach, MixerState


class TwoStreamState(NamedTuple):
    """What a session carries.

    Attributes:
        position: Ticks read.
        conv: Last steps of the convolution.
        part: States of the part tower's layers.
        whole: State of the whole.
        text: The text of the whole that holds, its ids plus 1; empty where it writes none.
        ends: Ends of blocks that were found; empty where they are not learned.
    """

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    part: tuple[MixerState, ...]
    whole: LevelState
    text: tuple[Int[Tensor, "B K"], ...] = ()
    ends: tuple[Int[Tensor, " B"], ...] = ()


class Reading(NamedTuple):
    """What `TwoStream.read_whole` shows.

    Attributes:
        whole: Whole states.
        attention: Mean attention over links and heads of every tick on the null key (first) and on
            every block.
        finished: Blocks finished at or before every tick.
    """

    whole: Float[Tensor, "B W D2"]
    attention: Float[Tensor, "B T W1"]
    finished: Int[Tensor, "B T"]


class LowerStates(NamedTuple):
    """A chunk between the lower and the upper part layers.

    Attributes:
        x: Lower part states.
        reach: What they may read of the part stream.
        cut: The blocks that end within the chunk.
        before: Blocks finished before the chunk.
        finished: Blocks that the chunk finished.
        after: The state after the chunk (its rings are shared with the state before); ``None`` for
            whole rows.
        ends: Where the model let blocks end; ``None`` where that is not learned.
    """

    x: Float[Tensor, "B T D"]
    reach: MixerReach
    cut: Cut
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: TwoStreamState | None
    ends: Chunks | None = None
