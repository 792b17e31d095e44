"""Transformer layers and towers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.mixer import MixerConfig, MixerReach, MixerShape, MixerState
from counterpoint.blocks.mlp import GatedMLP
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.recompute import computed_again
from counterpoint.errors import UserError

Branch = Callable[[Tensor], Tensor]
"""A function of the steps of a chunk whose result is added to them before a layer.

It maps (B, T, D) to (B, T, D), for example by cross-attention to another stream.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Shape of a stack of transformer layers.

    Attributes:
        width: Number of features of a step.
        num_layers: Number of layers.
        num_heads: Number of heads; must divide ``width``.
        mlp_hidden: Number of hidden features of the gated MLP; about 8/3 of the width is usual.
        window: Number of most recent steps that a step reads, including its own.
        norm_epsilon: Number added to the mean square in normalisation.
        pinned_steps: Number of steps at the start of a session that are always read; they count
            towards the window. They are for streaming only: whole rows must then fit the window.
        mixer: How the layers let a step read earlier steps.
        checkpoint_activations: Whether training keeps only the input of each layer and computes its
            other activations again for the gradient: less memory for a third more time.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_hidden: int
    window: int
    norm_epsilon: float = 1e-6
    pinned_steps: int = 0
    mixer: AttentionConfig | FarAttentionConfig | MultiTokenConfig | MixerConfig = AttentionConfig()
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_hidden", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"A tower's `{name}` must be >= 1: got {getattr(self, name)}.")
        if not 0 <= self.pinned_steps < self.window:
            raise UserError(
                f"A tower's `pinned_steps` must be 0 to {self.window - 1}, less than its window: "
                f"got {self.pinned_steps}."
            )

    @property
    def chunk_steps(self) -> int:
        """Largest number of steps of one streaming call."""
        return min(self.window, 128)

    @property
    def mixer_shape(self) -> MixerShape:
        """The part of the shape that a mixer needs."""
        return MixerShape(
            width=self.width,
            num_heads=self.num_heads,
            window=self.window,
            capacity=self.window + self.chunk_steps - 1,
            num_pinned=self.pinned_steps,
            num_layers=self.num_layers,
        )

    @property
    def reach_steps(self) -> int:
        """Number of most recent steps that a step reads in one layer, including its own."""
        return self.mixer.reach_steps(self.mixer_shape)


class Layer(nn.Module):
    """Pre-norm transformer layer: the mixer, then a gated MLP.

    The mixer is called ``attention`` in checkpoints, whatever its kind.
    """

    def __init__(self, config: TowerConfig, number: int = 0) -> None:
        """Make one layer of the tower's shape, with its number in the tower."""
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = config.mixer.build(config.mixer_shape._replace(layer=number))
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config.width, config.mlp_hidden)

    def forward(
        self, x: Float[Tensor, "B T D"], reach: MixerReach, state: MixerState | None = None
    ) -> Float[Tensor, "B T D"]:
        """Apply the layer to a chunk; see `Mixer`."""
        x = x + self.attention(self.attention_norm(x), reach, state)
        return x + self.mlp(self.mlp_norm(x))


class Tower(nn.Module):
    """A stack of layers that share one window."""

    def __init__(self, config: TowerConfig, borrowed: Sequence[Layer] = ()) -> None:
        """Draw matrices from ``N(0, 1 / fan_in)``; those that end a branch are scaled by depth.

        Args:
            config: Shape of the tower.
            borrowed: Layers of another tower that this one uses in place of its own. They remain
                the parameters of that tower; this one then has none.
        """
        super().__init__()
        self.config = config
        self.layers: Sequence[Layer]
        if borrowed:
            self.layers = tuple(borrowed)  # torch registers no module of a tuple
            return
        layers = [Layer(config, number) for number in range(config.num_layers)]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))
        out_scale = (2 * config.num_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    weight, std=weight.shape[1] ** -0.5 * (out_scale if ends_branch else 1)
                )

    @property
    def config(self) -> TowerConfig:
        """The shape of the tower. Another one, for example with pinned steps, may be set later."""
        return self._config

    @config.setter
    def config(self, config: TowerConfig) -> None:
        self._config = config
        self.mixer_shape = config.mixer_shape

    @property
    def chunk_steps(self) -> int:
        """Largest number of steps of one streaming call."""
        return self.config.chunk_steps

    @property
    def capacity(self) -> int:
        """Number of steps that a state holds: a window for the first query of the longest chunk."""
        return self.mixer_shape.capacity

    def initial_state(self, batch_size: int) -> tuple[MixerState, ...]:
        """Return the states of the mixers before the first step, one a layer."""
        return tuple(
            layer.attention.initial_state(batch_size, self.capacity) for layer in self.layers
        )

    def reach(self, document_start: Int[Tensor, "B T"]) -> MixerReach:
        """Return what each step of whole rows may read."""
        return self.config.mixer.reach(self.mixer_shape, document_start)

    def streaming_reach(
        self, position: Int[Tensor, " B"], num_steps: int, lengths: Int[Tensor, " B"] | None
    ) -> MixerReach:
        """Return what each step of a chunk may read, after ``position`` steps."""
        return self.config.mixer.streaming_reach(self.mixer_shape, position, num_steps, lengths)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        states: tuple[MixerState, ...] | None = None,
        *,
        layers: range | None = None,
        side_inputs: Sequence[Float[Tensor, "B T D"]] | None = None,
        before: Mapping[int, Branch] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Apply layers to a chunk.

        Args:
            x: Steps of the chunk.
            reach: From `reach`, or from `streaming_reach` if there are ``states``.
            states: States of all layers, even if only some are applied; they are updated in place.
            layers: Numbers of the layers that are applied; ``None`` means all.
            side_inputs: A tensor that is added to the steps before each of these layers, in order.
            before: For the number of a layer, a branch whose result is added before the layer and
                after its side input.
        """
        first = 0 if layers is None else layers.start
        for number, layer in enumerate(self.layers):  # indexing a `ModuleList` is slower
            if layers is not None and number not in layers:
                continue
            if side_inputs is not None:
                x = x + side_inputs[number - first]
            if before is not None and number in before:
                x = x + before[number](x)
            if states is not None:
                x = layer(x, reach, states[number])
            elif self.config.checkpoint_activations:
                x = computed_again(layer, x, reach)
            else:
                x = layer(x, reach)
        return x

    @property
    def weight_flops(self) -> float:
        """Forward FLOPs a step of the products with weights."""
        return 2 * sum(
            weight.numel()
            for layer in self.layers
            for weight in (*layer.parameters(), *layer.buffers())  # 8-bit ones are buffers
            if weight.ndim == 2
        )

    def flops_per_step(self, num_steps: int) -> float:
        """Return the forward FLOPs a step in rows of ``num_steps``, including masked entries."""
        mixing = sum(
            self.config.mixer.flops_per_step(self.mixer_shape._replace(layer=layer), num_steps)
            for layer in range(self.config.num_layers)
        )
        return self.weight_flops + mixing
