"""State of a session of an `HRT`, and what its stages pass on."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.chunk import Chunks
from counterpoint.blocks.cross_attention import Memory
from counterpoint.blocks.mixer import MixerState
from counterpoint.blocks.pyramid import Blocks, Counts


class HRTState(NamedTuple):
    """State of a session.

    Attributes:
        counts: Progress of the session on every level.
        conv: Last steps of the convolution.
        towers: States of the layers of every level.
        pending: The newest states before the chunk, by coarse level and round; see `Blocks.take`.
        memories: Keys and values of coarse steps, in the order of `HRT.links`.
        ends: Number of ends that the router has found; empty if ends are not learned.
    """

    counts: Counts
    conv: Float[Tensor, "B C D"]
    towers: tuple[tuple[MixerState, ...], ...]
    pending: tuple[tuple[Float[Tensor, "B R D"], ...], ...]
    memories: tuple[Memory, ...]
    ends: tuple[Int[Tensor, " B"], ...] = ()


class Laid(NamedTuple):
    """The finest level of a chunk after its first layers, and the blocks that end in it.

    Attributes:
        x: States of the finest level.
        blocks: Blocks of every coarser level that may have steps.
        ends: The router's decisions where blocks of ticks end; ``None`` if ends are not learned.
    """

    x: Float[Tensor, "B T D"]
    blocks: list[Blocks]
    ends: Chunks | None
