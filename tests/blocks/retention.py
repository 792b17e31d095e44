"""A mixer that is not attention: a sum of products of keys and values that fades, one state a head.

Proves that a tower takes another mixer. Source: retention (arXiv:2307.08621) without rotation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.mixer import MixerShape

State = Float[Tensor, "B H E E2"]


class Reach(NamedTuple):
    """How much each step keeps of each one of the chunk, and of what was before the chunk."""

    within: Float[Tensor, "B H T T2"]
    before: Float[Tensor, "B H T"] | None = None
    to_state: Float[Tensor, "B H T"] | None = None
    kept: Float[Tensor, "B H"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionConfig:
    """Half of what is remembered fades in ``half_life`` steps; of later heads twice as many."""

    half_life: float = 4.0

    def build(self, shape: MixerShape) -> "Retention":
        return Retention(shape)

    def decay(self, num_heads: int) -> Float[Tensor, " H"]:
        return 0.5 ** (1 / (self.half_life * 2 ** torch.arange(num_heads)))

    def reach(self, shape: MixerShape, document_start: Int[Tensor, "B T"]) -> Reach:
        step = torch.arange(document_start.shape[1], device=document_start.device)
        age = step[:, None] - step
        allowed = (age >= 0) & (step >= document_start[..., None])
        decay = self.decay(shape.num_heads).to(step.device)[:, None, None]
        return Reach((decay ** age.clamp(min=0)) * allowed[:, None])

    def streaming_reach(
        self,
        shape: MixerShape,
        position: Int[Tensor, " B"],
        num_steps: int,
        lengths: Int[Tensor, " B"] | None,
    ) -> Reach:
        if lengths is None:
            lengths = torch.full_like(position, num_steps)
        starts = position.new_zeros(len(position), num_steps)
        within = self.reach(shape, starts).within
        step = torch.arange(num_steps, device=position.device)
        decay = self.decay(shape.num_heads).to(position.device)
        left = lengths[:, None] - 1 - step  # steps of the row that follow
        to_state = decay[:, None] ** left.clamp(min=0)[:, None] * (left >= 0)[:, None]
        before = (decay[:, None] ** (step + 1)).expand(len(position), -1, -1)
        return Reach(within, before, to_state, decay ** lengths[:, None])

    def reach_steps(self, shape: MixerShape) -> int:
        return shape.window

    def flops_per_step(self, shape: MixerShape, num_steps: int) -> float:
        return 4 * shape.width * num_steps


class Retention(nn.Module):
    """Each step reads the faded sum of all before it."""

    def __init__(self, shape: MixerShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def initial_state(self, batch_size: int, capacity: int) -> State:
        head_width = self.out.in_features // self.num_heads
        return self.out.weight.new_zeros(batch_size, self.num_heads, head_width, head_width)

    def forward(
        self, x: Float[Tensor, "B T D"], reach: Reach, state: State | None = None
    ) -> Float[Tensor, "B T D"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = (qkv * qkv.shape[-1] ** -0.25).unbind(0)
        y = (q @ k.transpose(-1, -2) * reach.within) @ v
        if state is not None and reach.before is not None:
            assert reach.to_state is not None
            assert reach.kept is not None
            y = y + (q @ state) * reach.before[..., None]
            added = (k * reach.to_state[..., None]).transpose(-1, -2) @ v
            state.mul_(reach.kept[..., None, None]).add_(added)
        return self.out(y.transpose(1, 2).flatten(2))
