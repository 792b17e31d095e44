"""Mixers: the part of a layer through which a step reads earlier steps.

Attention is one mixer; any other causal module may be another. A tower knows its mixer only by the
two protocols of this file. The config of a mixer is a frozen dataclass. It builds one mixer for
each layer, and computes once for all layers what the steps of a chunk may read.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

MixerState = Any
"""State of a mixer between chunks: a tensor or nested tuples of tensors.

The batch axis comes first, and the initial state is zeros. A mixer updates it in place.
"""

MixerReach = Any
"""What the steps of a chunk may read, in the form that the mixer's config computes."""


class MixerShape(NamedTuple):
    """The part of a tower's shape that its mixer needs.

    Attributes:
        width: Number of features of a step.
        num_heads: Number of heads.
        window: Number of most recent steps that a step reads, including its own. A mixer without a
            window (a recurrent one) reads all steps; its config must document that.
        capacity: Number of steps that a state holds: enough for a full window at the first step of
            the longest chunk.
        num_pinned: Number of steps at the start of a session that are always read; they count
            towards the window.
        layer: Number of the layer, from 0: a mixer may differ from layer to layer.
        num_layers: Number of layers of the tower.
    """

    width: int
    num_heads: int
    window: int
    capacity: int
    num_pinned: int = 0
    layer: int = 0
    num_layers: int = 1


@runtime_checkable
class Mixer(Protocol):
    """A module that lets each step of a chunk read the steps before it."""

    def initial_state(self, batch_size: int, capacity: int) -> MixerState:
        """Return the state before the first step, with room for ``capacity`` steps."""

    def __call__(
        self, x: Float[Tensor, "B T D"], reach: MixerReach, state: MixerState | None = None
    ) -> Float[Tensor, "B T D"]:
        """Let each step of a chunk read the steps that it may read.

        Args:
            x: Steps of the chunk, normalised.
            reach: From `MixerConfig.reach`, or from `MixerConfig.streaming_reach` if there is a
                state.
            state: State before the chunk; it is updated in place.
        """


@runtime_checkable
class MixerConfig(Protocol):
    """The shape of a mixer beyond that of its tower; a frozen dataclass."""

    def build(self, shape: MixerShape) -> Mixer:
        """Build a mixer for one layer, with random weights."""

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> MixerReach:
        """Return what each step of whole rows may read; documents start at ``document_start``."""

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> MixerReach:
        """Return what each step of a chunk may read.

        Args:
            shape: Shape of the tower.
            position: Number of steps that each row has read before.
            num_steps: Number of steps of the chunk.
            lengths: Number of real steps of each row; ``None`` means all.
        """

    def reach_steps(self, shape: MixerShape) -> int:
        """Return how many most recent steps a step reads, including its own."""

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        """Return the forward FLOPs a step in rows of ``num_steps``, without its linear maps."""


def first_slots(state: MixerState, num_slots: int) -> MixerState:
    """Return a copy of a state that has filled so many slots of its ring.

    Attention has one ring (B, 2, H, C, E), of which only these slots are kept. A state of several
    tensors is copied as it is.
    """
    if isinstance(state, Tensor):
        return state[:, :, :, :num_slots].clone()
    parts = [
        part.clone() if isinstance(part, Tensor) else first_slots(part, num_slots) for part in state
    ]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
