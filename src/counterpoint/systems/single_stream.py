"""The plain control: one stream, one causal transformer with full or windowed attention.

It is a pre-norm transformer in the shape of Llama (arXiv:2302.13971), with rotary positions, SwiGLU
and no biases. Like every system here it has a short causal convolution after the embedding.
Checked against: Hugging Face `LlamaForCausalLM` with the same weights and a convolution of zeros
(`tests/systems/test_single_stream.py`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.convolution import CausalConvolution, check_taps
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Role, Stream, Ticks
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    check_same_tick,
    in_chunks,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleStreamConfig(SystemConfig):
    """Shape of a `SingleStream`.

    Attributes:
        tower: The transformer; its window is the context in ticks.
        vocab_size: Number of ids of the stream.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
        tied_head: Whether scores are computed with the embedding's own table instead of a head.
    """

    tower: TowerConfig
    vocab_size: int = 258
    conv_taps: int = 4
    tied_head: bool = False

    @property
    def num_summaries(self) -> int:
        """Number of summary steps that the tower's mixer needs after each block."""
        mixer = self.tower.mixer
        return mixer.num_summaries if isinstance(mixer, FarAttentionConfig) else 0

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise UserError(f"`vocab_size` must be >= 1: got {self.vocab_size}.")
        check_taps(self.conv_taps)


def tiny() -> SingleStreamConfig:
    """Return a model of 1.4M parameters, which trains on a laptop in two minutes."""
    return SingleStreamConfig(
        tower=TowerConfig(width=144, num_layers=5, num_heads=3, mlp_hidden=400, window=32)
    )


def small() -> SingleStreamConfig:
    """Return a model of about 26M parameters."""
    return SingleStreamConfig(
        tower=TowerConfig(width=512, num_layers=8, num_heads=8, mlp_hidden=1376, window=1024)
    )


def base() -> SingleStreamConfig:
    """Return a model of about 152M parameters."""
    return SingleStreamConfig(
        tower=TowerConfig(width=1024, num_layers=12, num_heads=16, mlp_hidden=2752, window=2048)
    )


class SingleStreamState(NamedTuple):
    """State of a session: ticks read, the last steps of the convolution, and the caches."""

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    caches: tuple[MixerState, ...]


class SingleStream(System):
    """A causal language model over one stream named ``part``."""

    Config = SingleStreamConfig
    tick_stages: ClassVar[tuple[str, ...]] = ("read",)

    def __init__(self, config: SingleStreamConfig) -> None:
        """Make random weights; all scores start at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        part = Stream(name="part", role=Role.PART, vocab_size=config.vocab_size, predicted=True)
        self.layout = Layout(streams=(part,))
        width = config.tower.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.conv = CausalConvolution(width, config.conv_taps) if config.conv_taps else None
        self.tower = Tower(config.tower)
        self.summary = None
        if config.num_summaries:
            self.summary = nn.Parameter(torch.randn(config.num_summaries, width))
        self.norm = RMSNorm(width, config.tower.norm_epsilon)
        if config.tied_head:
            self.head = None
            nn.init.zeros_(self.norm.weight)
        else:
            self.head = nn.Linear(width, config.vocab_size, bias=False)
            nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick; see `System.forward`."""
        ids = batch.ticks["part"]
        start = batch.document_start
        x = self.embedding(ids)
        if self.conv is not None:
            age = torch.arange(ids.shape[1], device=ids.device) - start
            x, _ = self.conv(x, age=age)
        x = self._mixed(x, self.tower.reach(start))
        return {"part": self._scores(self.norm(x))}

    def _mixed(
        self,
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        caches: tuple[MixerState, ...] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the tower over ticks, and over the summary steps of blocks if its mixer has any."""
        if self.summary is None:
            return self.tower(x, reach, caches)
        summaries = self.summary.to(x.dtype).repeat(reach.num_blocks, 1)
        both = torch.cat((x, summaries.expand(len(x), -1, -1)), 1)
        return self.tower(both, reach, caches)[:, : x.shape[1]]

    def _scores(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        if self.head is None:
            return F.linear(hidden, self.embedding.weight)
        return self.head(hidden)

    @property
    def window_ticks(self) -> int:
        """The context in ticks; see `System.window_ticks`."""
        return self.config.tower.reach_steps

    def initial_state(self, batch_size: int) -> SingleStreamState:
        """Return the state before the first tick; see `System.initial_state`."""
        none = self.embedding.weight.new_zeros(batch_size, 0, self.config.tower.width)
        return SingleStreamState(
            torch.zeros(batch_size, dtype=torch.long, device=self.embedding.weight.device),
            none if self.conv is None else self.conv.initial_state(batch_size),
            self.tower.initial_state(batch_size),
        )

    def read(
        self, ticks: Ticks, state: SingleStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], SingleStreamState]:
        """Read the next ticks; see `System.read`."""
        return in_chunks(self._read_chunk, self.tower.chunk_steps, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: SingleStreamState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], SingleStreamState]:
        ids = ticks["part"]
        num_ticks = ids.shape[1]
        x = self.embedding(ids)
        conv = state.conv
        if self.conv is not None:
            x, conv = self.conv(x, conv, lengths=lengths)
        reach = self.tower.streaming_reach(state.position, num_ticks, lengths)
        x = self._mixed(x, reach, state.caches)
        position = state.position + (num_ticks if lengths is None else lengths)
        return self.norm(x), SingleStreamState(position, conv, state.caches)

    def swap(self, state: SingleStreamState, donor: SingleStreamState) -> SingleStreamState:
        """Exchange the keys and values of old blocks, if the mixer keeps any; see `System.swap`."""
        if not isinstance(self.config.tower.mixer, FarAttentionConfig):
            return cast("SingleStreamState", super().swap(state, donor))
        check_same_tick(state.position, donor.position)
        caches = tuple(
            mine._replace(far=theirs.far.clone())
            for mine, theirs in zip(state.caches, donor.caches, strict=True)
        )
        return state._replace(caches=caches)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        """Write the next tick; see `System.write`."""
        return {"part": choose("part", 0, self._scores(hidden))}

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        forward = self.tower.flops_per_step(num_ticks) + 2 * self.embedding.weight.numel()
        mixer = self.config.tower.mixer
        if isinstance(mixer, FarAttentionConfig):
            forward += self.tower.weight_flops * mixer.summary_steps(num_ticks) / num_ticks
        return forward * (3 if training else 1)
