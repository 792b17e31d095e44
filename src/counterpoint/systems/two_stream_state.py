"""State of a session of a `TwoStream`, and the values that its stages pass on."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.chunk import Chunks
from counterpoint.blocks.level_state import Cut, LevelState
from counterpoint.blocks.mixer import MixerReach, MixerState


class TwoStreamState(NamedTuple):
    """State of a session.

    Attributes:
        position: Number of ticks read.
        conv: Last steps of the convolution.
        part: States of the layers of the part tower.
        whole: State of the whole.
        text: The newest text of the whole, its ids plus 1; empty if the whole has no text.
        ends: Number of ends that the router has found; empty if ends are not learned.
    """

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    part: tuple[MixerState, ...]
    whole: LevelState
    text: tuple[Int[Tensor, "B K"], ...] = ()
    ends: tuple[Int[Tensor, " B"], ...] = ()


class Reading(NamedTuple):
    """The whole states of a batch, and how the part stream used them.

    Attributes:
        whole: Whole states.
        attention: Attention of every tick, averaged over links and heads, to the null key (first)
            and to every block.
        finished: Number of blocks finished at or before every tick.
    """

    whole: Float[Tensor, "B W D2"]
    attention: Float[Tensor, "B T W1"]
    finished: Int[Tensor, "B T"]


class LowerStates(NamedTuple):
    """A chunk after the lower layers and before the upper layers of the part tower.

    Attributes:
        x: Lower part states.
        reach: What each tick may read of the part stream.
        cut: The blocks that end within the chunk.
        before: Number of blocks finished before the chunk.
        finished: Number of blocks finished within the chunk.
        after: The state after the chunk, which shares its rings with the state before; ``None`` for
            whole rows.
        ends: The router's decisions where blocks end; ``None`` if ends are not learned.
    """

    x: Float[Tensor, "B T D"]
    reach: MixerReach
    cut: Cut
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: TwoStreamState | None
    ends: Chunks | None = None

    def for_whole_tower(self, state: TwoStreamState) -> tuple["LowerStates", TwoStreamState]:
        """Return what the whole tower needs of the chunk, and the rings that it changes."""
        none: Any = ()
        rings = state.whole._replace(pending=none, place=none, finished=none, raw=none)
        return (
            self._replace(reach=None, cut=self.cut._replace(raw=None), after=None, ends=None),
            TwoStreamState._make((none, none, none, rings, none, none)),
        )
