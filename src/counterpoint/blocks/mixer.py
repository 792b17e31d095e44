"""What a layer may use to let a step read earlier ones: attention, or anything else that is causal.

A tower knows its mixer only by the two protocols of this file. Its config is a frozen dataclass
that builds one mixer a layer, and computes once for all layers what the steps of a chunk may read.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

MixerState = Any
"""What a mixer carries between chunks: a tensor or nested tuples of them, batch first, zeros at
first. A mixer writes into it in place."""

MixerReach = Any
"""What the steps of a chunk may read, as the mixer's own config computes it."""


class MixerShape(NamedTuple):
    """The part of a tower's shape that a mixer sees.

    Attributes:
        width: Features of a step.
        num_heads: Heads.
        window: Most recent steps that a step reads, its own included. A mixer without a window
            (a recurrent one) reads them all, and its config says so.
        capacity: Steps that a state holds: a window for the first step of the longest chunk.
        num_pinned: First steps of a session that are read for ever; part of the window.
    """

    width: int
    num_heads: int
    window: int
    capacity: int
    num_pinned: int = 0


@runtime_checkable
class Mixer(Protocol):
    """A module that lets each step of a chunk read the steps before it."""

    def initial_state(self, batch_size: int, capacity: int) -> MixerState:
        """State before the first step, that holds ``capacity`` steps."""
        ...

    def __call__(
        self, x: Float[Tensor, "B T D"], reach: MixerReach, state: MixerState | None = None
    ) -> Float[Tensor, "B T D"]:
        """Mix a chunk of steps with what each may read.

        Args:
            x: Steps of the chunk, normalised.
            reach: What `MixerConfig.reach` gives, or `MixerConfig.streaming_reach` with a state.
            state: Carries what was before the chunk; the chunk is written into it.
        """
        ...


@runtime_checkable
class MixerConfig(Protocol):
    """The shape of a mixer beyond that of its tower; a frozen dataclass."""

    def build(self, shape: MixerShape) -> Mixer:
        """A mixer for one layer, with random weights."""
        ...

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> MixerReach:
        """What each step of whole rows may read, whose documents start at ``document_start``."""
        ...

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> MixerReach:
        """What each step of a chunk may read.

        Args:
            shape: Shape of the tower.
            position: Steps that each row has read before.
            num_steps: Steps of the chunk.
            lengths: Real steps of each row; ``None`` means all.
        """
        ...

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        """Forward FLOPs a step over rows of ``num_steps``, those of its weights not counted."""
        ...
