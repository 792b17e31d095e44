"""A speaker of ids that hears a continuous stream, injected at every layer.

The shape of LSLM (arXiv:2408.02622), sections 4 and 5.1, middle fusion: the vector that was heard
is added to the input of every block, through one shared map. What is spoken in a tick may depend on
everything that was spoken and heard before it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.depth import CodebookEmbedding
from counterpoint.blocks.mixer import MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Choose, Logits, State, System, SystemConfig, in_chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class InjectedConfig(SystemConfig):
    """Shape of an `Injected`."""

    tower: TowerConfig
    vocab_size: int
    heard_width: int


class InjectedState(NamedTuple):
    """What a session carries: ticks read, and the caches of the tower."""

    position: Int[Tensor, " B"]
    caches: tuple[MixerState, ...]


class Injected(System):
    """A tower over what it speaks, to which what it hears is added before every layer."""

    Config = InjectedConfig

    def __init__(self, config: InjectedConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size, width = config.vocab_size, config.tower.width
        spoken = Stream(
            name="spoken",
            role=Role.SPOKEN,
            vocab_size=vocab_size,
            predicted=True,
            initial_id=vocab_size,
        )
        heard = Stream(name="heard", role=Role.HEARD, width=config.heard_width)
        self.layout = Layout(streams=(spoken, heard))
        self.embedding = CodebookEmbedding(1, vocab_size + 1, width)
        self.hear = nn.Linear(config.heard_width, width)
        self.tower = Tower(config.tower)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> Logits:
        states = self._states(batch.ticks, self.tower.reach(batch.document_start))
        return {"spoken": self.head(states)}

    def _states(
        self, ticks: Ticks, reach: Any, caches: tuple[MixerState, ...] | None = None
    ) -> Float[Tensor, "B T D"]:
        """The tower over whole rows or a chunk: both are this one function."""
        spoken = self.embedding(ticks["spoken"][..., None])[:, :, 0]
        heard = self.hear(ticks["heard"])
        x = self.tower(spoken, reach, caches, side_inputs=[heard] * len(self.tower.layers))
        return self.norm(x)

    @property
    def window_ticks(self) -> int:
        return self.config.tower.window

    def initial_state(self, batch_size: int) -> InjectedState:
        none = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return InjectedState(none, self.tower.initial_state(batch_size))

    def read(
        self, ticks: Ticks, state: InjectedState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], InjectedState]:
        return in_chunks(self._read_chunk, self.tower.chunk_steps, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: InjectedState, lengths: Tensor | None
    ) -> tuple[Tensor, InjectedState]:
        num_ticks = ticks["spoken"].shape[1]
        reach = self.tower.streaming_reach(state.position, num_ticks, lengths)
        states = self._states(ticks, reach, state.caches)
        position = state.position + (num_ticks if lengths is None else lengths)
        return states, InjectedState(position, state.caches)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        return {"spoken": choose("spoken", 0, self.head(hidden))}

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        maps = self.hear.weight.numel() + self.head.weight.numel()
        return (self.tower.flops_per_step(num_ticks) + 2 * maps) * (3 if training else 1)
