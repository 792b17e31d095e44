"""Transformer layers and towers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import (
    Cache,
    Reach,
    SelfAttention,
    offline_reach,
    streaming_reach,
)
from counterpoint.blocks.mlp import GatedMLP
from counterpoint.blocks.norm import RMSNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Shape of a stack of transformer layers.

    Attributes:
        width: Features of a step.
        num_layers: Layers.
        num_heads: Attention heads; must divide ``width``.
        mlp_hidden: Hidden features of the gated MLP; about 8/3 of the width is usual.
        window: Most recent steps that a step reads, its own included.
        norm_epsilon: Added to the mean square of what is normalised.
        pinned_steps: First steps of a session that are read for ever; part of the window. Only
            for streaming: whole rows may then not be longer than the window.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_hidden: int
    window: int
    norm_epsilon: float = 1e-6
    pinned_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_hidden", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"A tower's `{name}` must be >= 1: got {getattr(self, name)}.")
        if not 0 <= self.pinned_steps < self.window:
            raise ValueError(
                f"A tower's `pinned_steps` must be 0 to {self.window - 1}, less than its window: "
                f"got {self.pinned_steps}."
            )


class Layer(nn.Module):
    """Pre-norm transformer layer: self-attention, then gated MLP."""

    def __init__(self, config: TowerConfig) -> None:
        """One layer of the tower's shape."""
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config.width, config.mlp_hidden)

    def forward(
        self, x: Float[Tensor, "B T D"], reach: Reach, cache: Cache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Apply the layer to a chunk; see `SelfAttention.forward`."""
        x = x + self.attention(self.attention_norm(x), reach, cache)
        return x + self.mlp(self.mlp_norm(x))


class Tower(nn.Module):
    """A stack of layers that share one window."""

    def __init__(self, config: TowerConfig) -> None:
        """Matrices start at ``N(0, 1 / fan_in)``; those that end a branch are scaled by depth."""
        super().__init__()
        self.config = config
        layers = [Layer(config) for _ in range(config.num_layers)]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))
        out_scale = (2 * config.num_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    weight, std=weight.shape[1] ** -0.5 * (out_scale if ends_branch else 1)
                )

    @property
    def chunk_steps(self) -> int:
        """Most steps of one streaming call."""
        return min(self.config.window, 128)

    @property
    def capacity(self) -> int:
        """Cache slots: a window for the first query of the longest chunk."""
        return self.config.window + self.chunk_steps - 1

    def initial_state(self, batch_size: int) -> tuple[Cache, ...]:
        """Empty caches, one a layer."""
        return tuple(
            layer.attention.initial_state(batch_size, self.capacity) for layer in self.layers
        )

    def reach(self, document_start: Int[Tensor, "B T"]) -> Reach:
        """What each step of whole rows may read."""
        if self.config.pinned_steps and document_start.shape[1] > self.config.window:
            raise ValueError(
                f"With pinned steps whole rows must fit the window of {self.config.window}: got "
                f"{document_start.shape[1]} steps. Read them with a cache."
            )
        head_width = self.config.width // self.config.num_heads
        return offline_reach(document_start, head_width, self.config.window)

    def streaming_reach(
        self, position: Int[Tensor, " B"], num_steps: int, lengths: Int[Tensor, " B"] | None
    ) -> Reach:
        """What each step of a chunk may read, after ``position`` cached steps."""
        config = self.config
        return streaming_reach(
            position,
            num_steps,
            lengths,
            config.width // config.num_heads,
            config.window,
            self.capacity,
            config.pinned_steps,
        )

    def forward(
        self, x: Float[Tensor, "B T D"], reach: Reach, caches: tuple[Cache, ...] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Apply all layers to a chunk."""
        for i, layer in enumerate(self.layers):
            x = layer(x, reach, None if caches is None else caches[i])
        return x

    def flops_per_step(self, num_steps: int) -> float:
        """Forward FLOPs a step over rows of ``num_steps``, masked attention entries included."""
        config = self.config
        weights = (*self.parameters(), *self.buffers())  # those of 8 bits are buffers
        linear = 2 * sum(weight.numel() for weight in weights if weight.ndim == 2)
        grouped = num_steps > 2 * config.window
        steps_run = -(-num_steps // config.window) * config.window if grouped else num_steps
        keys = 2 * config.window if grouped else num_steps
        return linear + 4 * config.width * keys * config.num_layers * steps_run / num_steps
