"""A causal convolutional network that hears: it turns features of sound into a vector a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.mlp import GatedMLP
from counterpoint.blocks.norm import RMSNorm
from counterpoint.errors import UserError

ListenerState = tuple[Float[Tensor, "B C D"], ...]
"""The newest steps before a chunk, one tensor a layer; zeros at the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenerConfig:
    """Shape of a `Listener`.

    Attributes:
        heard_width: Number of features of a step of sound.
        width: Number of features inside the network and of its result.
        num_layers: Number of layers.
        mlp_hidden: Number of hidden features of the gated MLP of a layer.
        taps: Number of steps that the convolution of a layer sees, including the newest.
    """

    heard_width: int
    width: int = 128
    num_layers: int = 4
    mlp_hidden: int = 256
    taps: int = 5

    def __post_init__(self) -> None:
        for name in ("heard_width", "width", "num_layers", "mlp_hidden", "taps"):
            if getattr(self, name) < 1:
                raise UserError(f"A listener's `{name}` must be >= 1: got {getattr(self, name)}.")

    @property
    def reach_steps(self) -> int:
        """Number of most recent steps on which a result depends, including its own."""
        return self.num_layers * (self.taps - 1) + 1


class Listener(nn.Module):
    """A linear map, then layers of a causal convolution over steps and a gated MLP.

    Source: the layer has the form of ConvNeXt's (arXiv:2201.03545), with a causal convolution.
    """

    def __init__(self, config: ListenerConfig) -> None:
        """Make random weights."""
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.heard_width, config.width)
        layers = [_Layer(config) for _ in range(config.num_layers)]
        self.layers = cast("Sequence[_Layer]", nn.ModuleList(layers))
        self.norm = RMSNorm(config.width)

    def initial_state(self, batch_size: int) -> ListenerState:
        """Return the state before the first step: zeros."""
        return tuple(layer.conv.initial_state(batch_size) for layer in self.layers)

    def forward(
        self,
        heard: Float[Tensor, "B T _F"],
        state: ListenerState | None = None,
        *,
        age: Int[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ListenerState]:
        """Return a vector for each step of a chunk, and the state for the next chunk.

        Args:
            heard: Features of the steps.
            state: State before the chunk; ``None`` means the start.
            age: See `CausalConvolution.forward`.
            lengths: Number of real steps of each row; ``None`` means all.
        """
        x = self.embed(heard.to(self.norm.weight.dtype))
        states = []
        for number, layer in enumerate(self.layers):
            before = None if state is None else state[number]
            x, after = layer.conv(x, before, age=age, lengths=lengths)
            x = x + layer.mlp(layer.norm(x))
            states.append(after)
        return self.norm(x), tuple(states)

    @property
    def flops_per_step(self) -> float:
        """Forward FLOPs a step of the matrix products."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return 2 * sum(module.weight.numel() for module in linear)


class _Layer(nn.Module):
    def __init__(self, config: ListenerConfig) -> None:
        super().__init__()
        self.conv = CausalConvolution(config.width, config.taps)
        self.norm = RMSNorm(config.width)
        self.mlp = GatedMLP(config.width, config.mlp_hidden)
