"""SHANKS, "Simultaneous Hearing and Thinking with Chunked Input Speech" (arXiv:2510.06917).

A language model hears the user's speech and writes thoughts and answers. There are two arrangements
of the same core, which differ in their rows and in one option:

- *Interleaved*, as published: one tower reads one sequence, in which each place holds either what
  is heard (a projected vector of features, or a word) or an id that was written or given. The
  sequence is made of rounds (`counterpoint.streams.rounds`) and written against a clock
  (`counterpoint.runtime.clocked`): a thought about chunk i is written while chunk i + 1 is heard.
- *Parallel*, our own: both streams go on tick by tick of one clock. A listening tower reads what is
  heard; its states are added before every layer of the thinking tower, which reads what was
  thought. So a thought lags one tick behind what is heard, not one chunk.

Source: sections 2.1 and 2.2, figure 2, appendix A. Deviations: the backbone may be any tower; the
features may come from any encoder (`counterpoint.speech.listening`), which is not trained; with
words instead of features it is the language model of the published cascade; the short convolution
of every system may be used.
Checked against: `SingleStream` with the same weights (`tests/systems/test_shanks.py`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.convolution import CausalConvolution, check_taps
from counterpoint.blocks.mixer import MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import RopeConfig
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.backbone import OnBackbone, Weights
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    in_chunks,
)

THOUGHT = "thought"
HEARD = "heard"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShanksConfig(SystemConfig):
    """Shape of a `Shanks`.

    Attributes:
        tower: The thinking tower; its window is the context in ticks, which are places of the
            sequence if it is interleaved.
        vocab_size: Number of ids that are written; if words are heard, they are the same ids.
        heard_width: Number of features of what is heard; 0 if words are heard.
        listener: The listening tower of the parallel arrangement, of the same width; ``None`` for
            the interleaved one.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
        tied_head: Whether scores are computed with the embedding's own table instead of a head.
        new_ids: Number of last ids with tables of their own, so that they can be learned while
            those of a backbone, which does not know these ids, stay as they are.
    """

    tower: TowerConfig
    vocab_size: int
    heard_width: int = 0
    listener: TowerConfig | None = None
    conv_taps: int = 4
    tied_head: bool = False
    new_ids: int = 0

    def __post_init__(self) -> None:
        check_taps(self.conv_taps)
        if self.vocab_size < 1 or self.heard_width < 0:
            raise UserError(
                "`vocab_size` must be >= 1 and `heard_width` >= 0: got "
                f"{self.vocab_size} and {self.heard_width}."
            )
        if not 0 <= self.new_ids < self.vocab_size:
            raise UserError(
                f"`new_ids` must be at least 0 and below `vocab_size`: got {self.new_ids} and "
                f"{self.vocab_size}."
            )
        if self.listener is None:
            return
        if self.listener.width != self.tower.width or not self.conv_taps:
            raise UserError(
                f"A listening tower must be as wide as the thinking tower, {self.tower.width}, and "
                f"both have a convolution: got a width of {self.listener.width} and `conv_taps` "
                f"{self.conv_taps}."
            )


def tiny() -> ShanksConfig:
    """Return an interleaved model of words of 0.36M parameters, for spoken maths."""
    return ShanksConfig(tower=_tower(3), vocab_size=124)


def tiny_parallel() -> ShanksConfig:
    """Return the same in the parallel arrangement, two towers, 0.37M parameters."""
    return ShanksConfig(tower=_tower(2), listener=_tower(1), vocab_size=124)


def small() -> ShanksConfig:
    """Return an interleaved model of words of 0.81M parameters, for spoken maths on a GPU."""
    return ShanksConfig(tower=_tower(4, width=128), vocab_size=124)


def small_parallel() -> ShanksConfig:
    """Return the same in the parallel arrangement, two towers, 0.83M parameters."""
    return ShanksConfig(tower=_tower(3, width=128), listener=_tower(1, width=128), vocab_size=124)


def small_sound() -> ShanksConfig:
    """Return `small` for sound, 0.85M parameters: it hears 320 features of log-mels every 80 ms."""
    return ShanksConfig(tower=_tower(4, width=128), vocab_size=124, heard_width=320)


def smollm() -> ShanksConfig:
    """Return the shape of SmolLM2-135M, 135M parameters, which hears features of Whisper tiny."""
    return ShanksConfig(
        tower=TowerConfig(
            width=576,
            num_layers=30,
            num_heads=9,
            mlp_hidden=1536,
            window=2048,
            norm_epsilon=1e-5,
            mixer=AttentionConfig(num_kv_heads=3, rope=RopeConfig(base=100_000.0)),
        ),
        vocab_size=49_160,
        heard_width=384,
        conv_taps=0,
        tied_head=True,
        new_ids=8,
    )


def smollm_words() -> ShanksConfig:
    """Return the same shape, 135M parameters, for words, heard in the tokens that are written."""
    return replace(smollm(), heard_width=0)


def _tower(num_layers: int, width: int = 96) -> TowerConfig:
    return TowerConfig(
        width=width,
        num_layers=num_layers,
        num_heads=width // 32,
        mlp_hidden=width * 8 // 3 // 8 * 8,
        window=512,
    )


class ReaderState(NamedTuple):
    """State of a `Reader`: the last steps of its convolution, and the caches of its tower."""

    conv: Float[Tensor, "B C D"]
    caches: tuple[MixerState, ...]


class Where(NamedTuple):
    """Where the steps stand that towers read: whole rows, or the next steps of sessions.

    Attributes:
        start: First step of the document of each step, for whole rows.
        position: Where that each session has read.
        lengths: Number of real steps of each session; ``None`` means all.
    """

    start: Int[Tensor, "B T"] | None = None
    position: Int[Tensor, " B"] | None = None
    lengths: Int[Tensor, " B"] | None = None


class Reader(nn.Module):
    """A convolution, a tower and a norm: it reads a stream, whole rows and sessions alike."""

    def __init__(self, config: TowerConfig, conv_taps: int) -> None:
        """Make random weights; without taps there is no convolution."""
        super().__init__()
        self.conv = CausalConvolution(config.width, conv_taps) if conv_taps else None
        self.tower = Tower(config)
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def initial_state(self, batch_size: int) -> ReaderState:
        """Return the state before the first step."""
        none = self.norm.weight.new_zeros(batch_size, 0, len(self.norm.weight))
        conv = none if self.conv is None else self.conv.initial_state(batch_size)
        return ReaderState(conv, self.tower.initial_state(batch_size))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        where: Where,
        state: ReaderState | None = None,
        added: Float[Tensor, "B T D"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ReaderState | None]:
        """Return the states after every step, and the new state of the sessions.

        Args:
            x: Where of a chunk, or of whole rows.
            where: Where they stand.
            state: State of the sessions; ``None`` for whole rows.
            added: What is added before every layer.
        """
        num_steps = x.shape[1]
        conv = None if state is None else state.conv
        if where.start is not None:
            age = torch.arange(num_steps, device=x.device) - where.start
            reach = self.tower.reach(where.start)
        elif where.position is not None:
            age = None
            reach = self.tower.streaming_reach(where.position, num_steps, where.lengths)
        if self.conv is not None:
            x, conv = self.conv(x, conv, age=age, lengths=where.lengths)
        caches = None if state is None else state.caches
        side = None if added is None else [added] * len(self.tower.layers)
        x = self.norm(self.tower(x, reach, caches, side_inputs=side))
        if state is None or conv is None:
            return x, None
        return x, ReaderState(conv, state.caches)


class ShanksState(NamedTuple):
    """State of a session: ticks read, and what each tower has read; `()` without a listener."""

    position: Int[Tensor, " B"]
    thinker: ReaderState
    listener: ReaderState | tuple[()]


class Shanks(System):
    """A causal language model that hears a stream while it writes another."""

    Config = ShanksConfig
    config: ShanksConfig
    tick_stages: ClassVar[tuple[str, ...]] = ("read",)
    # A model of words may go on with sound: then only its ears are new.
    fresh_weights: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "heard_width": ("project.", "heard_mark")
    }
    backbones: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "SingleStream": ("tower", "conv_taps", "tied_head")
    }

    def __init__(self, config: ShanksConfig) -> None:
        """Make random weights; all scores start at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = _layout(config)
        width = config.tower.width
        self.num_old = config.vocab_size - config.new_ids
        self.embedding = nn.Embedding(self.num_old, width)
        self.new_embedding = nn.Embedding(config.new_ids, width) if config.new_ids else None
        self.project: nn.Linear | None = None
        if config.heard_width:
            self.project = nn.Linear(config.heard_width, width, bias=False)
        else:  # words that are heard have the embeddings of those that are written, and this mark
            self.heard_mark = nn.Parameter(torch.randn(width))
        self.thinker = Reader(config.tower, config.conv_taps)
        self.listener: Reader | None = None
        if config.listener is not None:
            self.listener = Reader(config.listener, config.conv_taps)
            self.listened = nn.Linear(width, width, bias=False)
        self.head: nn.Linear | None = None
        self.new_head: nn.Linear | None = None
        if config.tied_head:
            nn.init.zeros_(self.thinker.norm.weight)
        else:
            self.head = nn.Linear(width, self.num_old, bias=False)
            nn.init.zeros_(self.head.weight)
            if config.new_ids:
                self.new_head = nn.Linear(width, config.new_ids, bias=False)
                nn.init.zeros_(self.new_head.weight)

    @classmethod
    def on_backbone(cls, weights: Weights, random: Weights) -> OnBackbone:
        """Take the tower and the tables of a language model; see `System.on_backbone`.

        New ids begin near the mean of the old ones, features about as large as their embeddings,
        and a word that is heard as one that is read.
        """
        inner = ("conv.", "tower.", "norm.")
        taken = {
            f"thinker.{name}" if name.startswith(inner) else name: weight
            for name, weight in weights.items()
        }
        fresh = {name: weight for name, weight in random.items() if name not in taken}
        table = weights["embedding.weight"].float()
        spread = table.std(0)
        if "new_embedding.weight" in fresh:
            fresh["new_embedding.weight"] = table.mean(0) + spread * random["new_embedding.weight"]
        if "project.weight" in fresh:
            fresh["project.weight"] = spread[:, None] * random["project.weight"]
        if "heard_mark" in fresh:
            fresh["heard_mark"] = torch.zeros_like(spread)
        return OnBackbone(taken, fresh)

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick; see `System.forward`."""
        states, _ = self._run(batch.ticks, Where(start=batch.document_start))
        return {THOUGHT: self._scores(states)}

    def _run(
        self, ticks: Ticks, where: Where, state: ShanksState | None = None
    ) -> tuple[Float[Tensor, "B T D"], ShanksState | None]:
        """Run the towers over whole rows, or over the next ticks of sessions."""
        ids = ticks[THOUGHT]
        thought = self._embed(ids) * (ids != UNSET_ID)[..., None]
        heard = self._hear(ticks[HEARD])
        if self.listener is None:
            x, thinking = self.thinker(thought + heard, where, state and state.thinker)
            listening = ()
        else:
            heard, listening = self.listener(heard, where, state and state.listener)
            added = self.listened(heard)
            x, thinking = self.thinker(thought, where, state and state.thinker, added)
        if state is None:
            return x, None
        position = state.position + (ids.shape[1] if where.lengths is None else where.lengths)
        return x, ShanksState(position, thinking, listening)

    def _hear(self, heard: Shaped[Tensor, "B T ..."]) -> Float[Tensor, "B T D"]:
        """Return the input of what is heard; zeros where nothing is."""
        if self.project is not None:
            return self.project(heard.to(self.project.weight.dtype))
        words = self._embed(heard) + self.heard_mark
        return words * (heard != UNSET_ID)[..., None]

    def _embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the embeddings of ids; those of unset ones mean nothing."""
        old = self.embedding(ids.clamp(0, self.num_old - 1))
        if self.new_embedding is None:
            return old
        new = self.new_embedding((ids - self.num_old).clamp(min=0))
        return torch.where((ids >= self.num_old)[..., None], new, old)

    def _scores(self, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        scores = _scored(states, self.embedding, self.head)
        if self.new_embedding is None:
            return scores
        new = _scored(states, self.new_embedding, self.new_head)
        return torch.cat((scores, new.to(scores)), -1)

    @property
    def window_ticks(self) -> int:
        """The longest context of a tower, in ticks; see `System.window_ticks`."""
        return max(reader.tower.config.reach_steps for reader in self._readers)

    @property
    def _readers(self) -> list[Reader]:
        return [self.thinker] if self.listener is None else [self.thinker, self.listener]

    def initial_state(self, batch_size: int) -> ShanksState:
        """Return the state before the first tick; see `System.initial_state`."""
        return ShanksState(
            torch.zeros(batch_size, dtype=torch.long, device=self.device),
            self.thinker.initial_state(batch_size),
            () if self.listener is None else self.listener.initial_state(batch_size),
        )

    def read(
        self, ticks: Ticks, state: ShanksState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], ShanksState]:
        """Read the next ticks; see `System.read`."""
        most_ticks = min(reader.tower.chunk_steps for reader in self._readers)
        return in_chunks(self._read_chunk, most_ticks, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: ShanksState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        return self._run(ticks, Where(position=state.position, lengths=lengths), state)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        """Write the next tick; see `System.write`."""
        return {THOUGHT: choose(THOUGHT, 0, self._scores(hidden))}

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        maps = self.config.vocab_size * self.config.tower.width
        maps += 0 if self.project is None else self.project.weight.numel()
        maps += 0 if self.listener is None else self.listened.weight.numel()
        towers = sum(reader.tower.flops_per_step(num_ticks) for reader in self._readers)
        return (towers + 2 * maps) * (3 if training else 1)


def _scored(
    states: Float[Tensor, "*B D"], table: nn.Embedding, head: nn.Module | None
) -> Float[Tensor, "*B _V"]:
    """Return the scores of the ids of a table, computed with it if there is no head."""
    if head is None:
        return F.linear(states.to(table.weight.dtype), table.weight)
    scores: Tensor = head(states)
    return scores


def _layout(config: ShanksConfig) -> Layout:
    """Return the stream that is written, and the one that is heard after it in a tick."""
    thought = Stream(name=THOUGHT, role=Role.THOUGHT, vocab_size=config.vocab_size, predicted=True)
    is_words = not config.heard_width
    heard = Stream(
        name=HEARD,
        role=Role.HEARD,
        vocab_size=config.vocab_size if is_words else None,
        width=config.heard_width or None,
    )
    return Layout(streams=(thought, heard))
