"""What a level carries between chunks, and the blocks that it finds in one."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.block_grid import BlockGrid
from counterpoint.blocks.mixer import MixerState
from counterpoint.blocks.recall import Raw
from counterpoint.blocks.steering import Published


class LevelState(NamedTuple):
    """State of a level in a session.

    Attributes:
        pending: The newest fine states; the last ``place`` of them belong to the unfinished block.
        place: Number of fine steps in the unfinished block.
        finished: Number of finished blocks.
        tower: States of the layers of the coarse tower.
        published: What the finer tower reads from the coarse tower.
        above: State of the level above, or empty if there is none.
        raw: Fine steps that recall may read again; empty without recall.
    """

    pending: Float[Tensor, "B R D"]
    place: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    tower: tuple[MixerState, ...]
    published: Published
    above: tuple["LevelState", ...]
    raw: tuple[Raw, ...] = ()


class Cut(NamedTuple):
    """The blocks that end within a chunk of fine steps.

    Attributes:
        grid: The blocks, and the place of every fine step.
        steps: Fine states: the R states before the chunk, then those of the chunk.
        end_step: Fine step at which each block ended, counted from the start of the row.
        first_block: First block of the document of each fine step; 0 in a session.
        before: Number of blocks finished before the chunk.
        finished: Number of blocks finished within the chunk.
        pending: The newest R fine states.
        place: Number of these that belong to the block that continues after the chunk.
        raw: Fine steps that recall may read again; ``None`` without recall.
    """

    grid: BlockGrid
    steps: Float[Tensor, "B R_T D"]
    end_step: Int[Tensor, "B W"]
    first_block: Int[Tensor, "#B #T"]
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    pending: Float[Tensor, "B R D"]
    place: Int[Tensor, " B"]
    raw: Raw | None


class Start(NamedTuple):
    """Where the rows of a chunk begin, and which of its steps are real.

    Attributes:
        document: First step of the document of each step; ``None`` if the chunk continues a
            session.
        step: Number of steps that each row has read before; ``None`` for whole rows.
        lengths: Number of real steps of each row; ``None`` means all.
    """

    document: Int[Tensor, "B T"] | None = None
    step: Int[Tensor, " B"] | None = None
    lengths: Int[Tensor, " B"] | None = None


def count_behind(
    counts: Int[Tensor, "B T1"], lengths: Int[Tensor, " B"] | None
) -> Int[Tensor, " B"]:
    """Return the count after the real steps of each row.

    ``counts`` holds the count before the chunk, then the count after every step.
    """
    return counts[:, -1] if lengths is None else counts.gather(1, lengths[:, None])[:, 0]
