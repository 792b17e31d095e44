"""Short causal depthwise convolution."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.errors import UserError


def check_taps(conv_taps: int) -> None:
    """Check the number of taps in the shape of a system.

    Raises:
        UserError: It is negative.
    """
    if conv_taps < 0:
        raise UserError(f"`conv_taps` must be >= 0, 0 for no convolution: got {conv_taps}.")


class CausalConvolution(nn.Module):
    """Add to every step a learned mix, feature by feature, of it and the few steps before it.

    ``y[t] = x[t] + sum_i weight[i] * x[t - i]`` over ``i < taps`` within the document; without taps
    it is the identity, and has no parameter.
    """

    def __init__(self, width: int, taps: int = 4) -> None:
        """Make small weights, so that the block starts near the identity."""
        super().__init__()
        self.weight: Tensor
        weight = torch.randn(taps, width) * 0.02
        if taps:
            self.weight = nn.Parameter(weight)
        else:  # an empty parameter would wait for a gradient, and be stored
            self.register_buffer("weight", weight, persistent=False)

    def initial_state(self, batch_size: int) -> Float[Tensor, "B C D"]:
        """Return the ``taps - 1`` steps before the first step: zeros; none without taps."""
        taps, width = self.weight.shape
        return self.weight.new_zeros(batch_size, max(taps - 1, 0), width)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B C D"] | None = None,
        *,
        age: Int[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B C D"]]:
        """Convolve a chunk.

        Args:
            x: Steps of the chunk.
            state: The ``taps - 1`` steps before the chunk; ``None`` means zeros.
            age: Number of steps since the start of the document; taps that reach further back are
                masked. ``None`` if a row is one document.
            lengths: Number of real steps of each row; ``None`` means all.

        Returns:
            The convolved steps, and the state for the next chunk.
        """
        taps = len(self.weight)
        num_steps = x.shape[1]
        if state is None:
            state = x.new_zeros(x.shape[0], max(taps - 1, 0), x.shape[2])
        if not taps:
            return x, state
        padded = torch.cat((state.to(x.dtype), x), 1)
        weights = self.weight.to(x.dtype).unbind()
        y = torch.addcmul(x, x, weights[0])
        for i in range(1, taps):
            past = padded.narrow(1, taps - 1 - i, num_steps)
            if age is not None:
                past = past * (age >= i)[..., None]
            y = torch.addcmul(y, past, weights[i])
        if lengths is None:
            return y, padded[:, num_steps:]
        last = lengths[:, None] + torch.arange(taps - 1, device=x.device)
        return y, padded.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
