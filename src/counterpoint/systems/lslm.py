"""LSLM: a model that speaks a given text while it listens, and stops when it is interrupted.

Source: Language Model Can Listen While Speaking (arXiv:2408.02622), sections 3 (the four sums of
probabilities), 4 (model, fusions, IRQ) and 5.1 (shape). A tower reads the text to speak and then
its own codes, one frame a tick; what is heard passes through a causal network and is fused with the
tower early, in the middle, late, or, beyond the paper, by cross-attention. The first codebook has
two more ids: EOS ends the speech, and IRQ ends it because somebody interrupts.

Deviations: codes may have several codebooks, and a depth decoder writes all but the first. The
listening network reads log-mels instead of being the encoder of vq-wav2vec. Positions are rotary,
and are not added again in every block. The paper does not define the operator of late fusion; here
the scores of both channels are added. While the text is read, nothing is heard (zeros).
Checked against: plain towers with sums written by hand, for each fusion
(`tests/systems/test_lslm.py`). There is no published code.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache, Reach, placed_reach, streaming_reach, write_ring
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach
from counterpoint.blocks.depth import CodebookEmbedding, DepthConfig, DepthDecoder, Past
from counterpoint.blocks.listening import Listener, ListenerConfig, ListenerState
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Role, Stream, Ticks
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    in_chunks,
)

Fusion = Literal["early", "middle", "late", "cross_attention"]
"""Where the tower hears: before it, before each layer, in the scores, or by attention."""

FIRST = "semantic"
"""Name of the stream of the first codebook."""

OTHERS = "acoustic"
"""Name of the stream of the other codebooks."""

TEXT = "text"
"""Name of the stream of the text to speak."""

HEARD = "heard"
"""Name of the stream of what is heard."""

_NUM_ENDS = 2  # EOS and IRQ


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class LSLMConfig(SystemConfig):
    """Shape of an `LSLM`.

    Attributes:
        tower: The transformer over frames; its window is the context in frames.
        listener: The network that hears.
        fusion: How the tower hears.
        codebook_sizes: Number of ids of each codebook of the codec.
        depth: The transformer over the codebooks of a frame; ``None`` for a single codebook.
        text_vocab_size: Number of ids of the text.
        text_padding_id: Text id of a frame without text.
        hearing_window: Number of most recent frames that cross-attention hears.
        tick_hz: Frames a second.
    """

    tower: TowerConfig
    listener: ListenerConfig
    fusion: Fusion = "middle"
    codebook_sizes: tuple[int, ...]
    depth: DepthConfig | None = None
    text_vocab_size: int
    text_padding_id: int = 3
    hearing_window: int = 25
    tick_hz: float

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise UserError(
                "`codebook_sizes` must be the number of ids of each codebook, all above 0: got "
                f"{self.codebook_sizes}."
            )
        if (len(self.codebook_sizes) > 1) != (self.depth is not None):
            raise UserError(
                "`depth` must be given if, and only if, there are several codebooks: got "
                f"{len(self.codebook_sizes)} codebooks and depth={self.depth}."
            )
        if not 0 <= self.text_padding_id < self.text_vocab_size:
            raise UserError(
                f"`text_padding_id` must be 0 to {self.text_vocab_size - 1}: got "
                f"{self.text_padding_id}."
            )
        if self.hearing_window < 1:
            raise UserError(f"`hearing_window` must be >= 1: got {self.hearing_window}.")

    @property
    def end_id(self) -> int:
        """Id of the first codebook that ends the speech: EOS."""
        return self.codebook_sizes[0]

    @property
    def interrupted_id(self) -> int:
        """Id of the first codebook that ends the speech because somebody interrupts: IRQ."""
        return self.codebook_sizes[0] + 1


def small(fusion: Fusion = "middle") -> LSLMConfig:
    """Return a model of 1.7M parameters on Codec2 700C and log-mels of 40 bands."""
    return LSLMConfig(
        tower=TowerConfig(width=128, num_layers=4, num_heads=2, mlp_hidden=344, window=256),
        listener=ListenerConfig(heard_width=160, width=64, mlp_hidden=128),
        fusion=fusion,
        codebook_sizes=(512, 512, 16, 64),
        depth=DepthConfig(width=64, num_layers=1, num_heads=2, mlp_hidden=172),
        text_vocab_size=400,
        tick_hz=25.0,
    )


def base(fusion: Fusion = "middle") -> LSLMConfig:
    """Return a model of 3.3M parameters on Codec2 700C and log-mels of 40 bands."""
    return LSLMConfig(
        tower=TowerConfig(width=192, num_layers=4, num_heads=3, mlp_hidden=512, window=256),
        listener=ListenerConfig(heard_width=160, width=96, mlp_hidden=192),
        fusion=fusion,
        codebook_sizes=(512, 512, 16, 64),
        depth=DepthConfig(width=96, num_layers=1, num_heads=2, mlp_hidden=256),
        text_vocab_size=512,
        tick_hz=25.0,
    )


def mimi(fusion: Fusion = "middle") -> LSLMConfig:
    """Return a model of 10M parameters on eight codebooks of Mimi, whose frames last 80 ms.

    Data for it name the file of Mimi's weights (``--data.codec``). Nothing was trained with it.
    """
    return LSLMConfig(
        tower=TowerConfig(width=192, num_layers=4, num_heads=3, mlp_hidden=512, window=128),
        listener=ListenerConfig(heard_width=320, width=96, mlp_hidden=192),
        fusion=fusion,
        codebook_sizes=(2048,) * 8,
        depth=DepthConfig(width=96, num_layers=2, num_heads=2, mlp_hidden=256),
        text_vocab_size=512,
        hearing_window=13,
        tick_hz=12.5,
    )


def paper(fusion: Fusion = "middle") -> LSLMConfig:
    """Return the published shape: 12 layers, 12 heads, width 768, one codebook at 100 Hz.

    It has 153M parameters, 32M of them in the listening network. The gated MLP has as many weights
    as the published one of 3072 features. The codebook is the product of vq-wav2vec's two groups as
    far as it occurs in LibriTTS.
    """
    return LSLMConfig(
        tower=TowerConfig(width=768, num_layers=12, num_heads=12, mlp_hidden=2048, window=3000),
        listener=ListenerConfig(heard_width=80, width=512, num_layers=20, mlp_hidden=1024),
        fusion=fusion,
        codebook_sizes=(23_600,),
        text_vocab_size=256,
        hearing_window=100,
        tick_hz=100.0,
    )


class LSLMState(NamedTuple):
    """State of a session.

    Attributes:
        position: Number of frames read.
        listener: State of the listening network.
        caches: Caches of the tower.
        hearing: Keys and values of what was heard, one ring a layer; none without cross-attention.
    """

    position: Int[Tensor, " B"]
    listener: ListenerState
    caches: tuple[MixerState, ...]
    hearing: tuple[Cache, ...]


class LSLM(System):
    """A speaker with a listening channel.

    The streams ``semantic`` (B, T, 1) and ``acoustic`` (B, T, K - 1) are said, ``text`` (B, T) and
    ``heard`` (B, T, heard_width) are given. A session begins with a prompt whose ticks hold the
    text to speak, one id a tick, with `UNSET_ID` as codes and zeros as sound.
    """

    Config = LSLMConfig
    absent: Bool[Tensor, "k V"]
    free_fields = System.free_fields | {"hearing_window"}

    def __init__(self, config: LSLMConfig) -> None:
        """Make random weights; the heads start at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = _layout(config)
        width = config.tower.width
        first_ids = self.layout[FIRST].vocab_size or 0
        self.num_others = len(config.codebook_sizes) - 1
        self.other_ids = max(config.codebook_sizes[1:], default=0)
        sizes = torch.tensor(config.codebook_sizes[1:], dtype=torch.long)
        ids = torch.arange(self.other_ids)
        # A buffer: a tensor made in `forward` would be a copy to the device within a CUDA graph.
        self.register_buffer("absent", ids >= sizes[:, None], persistent=False)
        self.text_embedding = CodebookEmbedding(1, config.text_vocab_size, width)
        self.first_embedding = CodebookEmbedding(1, first_ids + 1, width)
        self.other_embedding = None
        self.depth = None
        if config.depth is not None:
            self.other_embedding = CodebookEmbedding(self.num_others, self.other_ids + 1, width)
            self.depth = DepthDecoder(
                config.depth,
                context_width=width,
                num_steps=self.num_others,
                num_first_ids=first_ids + 1,
                vocab_size=self.other_ids,
            )
        self.listener = Listener(config.listener)
        self.tower = Tower(config.tower)
        self.norm = RMSNorm(width, config.tower.norm_epsilon)
        self.head = nn.Linear(width, first_ids, bias=False)
        nn.init.zeros_(self.head.weight)
        self.project = self.heard_head = None
        self.links: Any = ()
        heard_width = config.listener.width
        if config.fusion == "late":
            num_scores = first_ids + self.num_others * self.other_ids
            self.heard_head = nn.Linear(heard_width, num_scores, bias=False)
            nn.init.zeros_(self.heard_head.weight)
        elif config.fusion == "cross_attention":
            links = [
                CrossAttention(width, heard_width, config.tower.num_heads)
                for _ in range(config.tower.num_layers)
            ]
            self.links = nn.ModuleList(links)
        else:
            self.project = nn.Linear(heard_width, width)

    # Offline

    def forward(self, batch: Batch) -> Logits:
        """Score the next frame at every tick; see `System.forward`."""
        start = batch.document_start
        tick = torch.arange(start.shape[1], device=start.device).expand_as(start)
        heard, _ = self.listener(batch.ticks[HEARD], age=tick - start)
        hearing = None
        if self.links:
            window = self.config.hearing_window
            hearing = placed_reach(tick, tick, self._head_width, window, first=start)
        z = self._hidden(batch.ticks, heard, tick, self.tower.reach(start), hearing)
        scores = self._first_scores(z)
        logits = {FIRST: scores[:, :, None]}
        if self.depth is not None and OTHERS in batch.targets:
            elements = batch.elements or batch.targets
            previous = torch.cat((elements[FIRST], elements[OTHERS][..., :-1]), -1)
            flat = z.flatten(0, 1)
            others, _ = self.depth(self._spoken(flat), previous.flatten(0, 1))
            logits[OTHERS] = self._other_scores(others, flat, 0).unflatten(0, z.shape[:2])
        return logits

    @property
    def _head_width(self) -> int:
        return self.config.tower.width // self.config.tower.num_heads

    def _hidden(
        self,
        ticks: Ticks,
        heard: Float[Tensor, "B T _L"],
        tick: Int[Tensor, "B T"],
        reach: MixerReach,
        hearing: Reach | None,
        state: LSLMState | None = None,
    ) -> Float[Tensor, "B T _Z"]:
        """Return what `write` needs, for whole rows or for a chunk.

        With late fusion that is the state of the tower and, behind it, what is heard.

        Args:
            ticks: Elements of the frames.
            heard: What is heard in them.
            tick: Number of each frame within its row or session.
            reach: What the tower may read.
            hearing: What cross-attention may read; ``None`` for other fusions.
            state: State before a chunk; ``None`` for whole rows.
        """
        x = self.text_embedding(ticks[TEXT][..., None]).sum(-2)
        x = x + self.first_embedding(ticks[FIRST]).sum(-2)
        if self.other_embedding is not None:
            x = x + self.other_embedding(ticks[OTHERS]).sum(-2)
        side_inputs = None
        branches = {}
        if self.project is not None:
            side = self.project(heard)
            if self.config.fusion == "early":
                x = x + side
            else:
                side_inputs = [side] * self.config.tower.num_layers
        elif hearing is not None:
            branches = self._branches(heard, tick, hearing, state)
        caches = None if state is None else state.caches
        x = self.tower(x, reach, caches, side_inputs=side_inputs, before=branches)
        x = self.norm(x)
        return torch.cat((x, heard), -1) if self.heard_head is not None else x

    def _branches(
        self,
        heard: Float[Tensor, "B T _L"],
        tick: Int[Tensor, "B T"],
        hearing: Reach,
        state: LSLMState | None,
    ) -> dict[int, Any]:
        """Return the cross-attention of every layer to what is heard."""
        if hearing.bias is None:
            raise AssertionError("the reach of placed steps and of chunks has a bias")
        reach = CrossReach(hearing.cos, hearing.sin, F.pad(hearing.bias, (1, 0)))
        branches = {}
        for number, link in enumerate(self.links):
            memory = link.remember(heard, tick)
            if state is not None and hearing.slot is not None:
                write_ring(state.hearing[number], hearing.slot, memory)
                memory = state.hearing[number].narrow(3, 0, hearing.limit)
            branches[number] = partial(link, memory=memory, reach=reach)
        return branches

    def _spoken(self, hidden: Float[Tensor, "*B _Z"]) -> Float[Tensor, "*B D"]:
        return hidden[..., : self.config.tower.width]

    def _first_scores(self, hidden: Float[Tensor, "*B _Z"]) -> Float[Tensor, "*B V"]:
        scores = self.head(self._spoken(hidden))
        if self.heard_head is None:
            return scores
        weight = self.heard_head.weight[: scores.shape[-1]]
        return scores + F.linear(hidden[..., self.config.tower.width :], weight)

    def _other_scores(
        self, scores: Float[Tensor, "N k V"], hidden: Float[Tensor, "N _Z"], first: int
    ) -> Float[Tensor, "N k V"]:
        """Add what is heard to the scores of codebooks, and mask the ids that they do not have."""
        num = scores.shape[1]
        if self.heard_head is not None:
            start = self.head.out_features + first * self.other_ids
            weight = self.heard_head.weight[start : start + num * self.other_ids]
            added = F.linear(hidden[..., self.config.tower.width :], weight)
            scores = scores + added.unflatten(-1, (num, self.other_ids))
        sizes = self.config.codebook_sizes[1 + first : 1 + first + num]
        if min(sizes) == self.other_ids:
            return scores
        return scores.masked_fill(self.absent[first : first + num], -torch.inf)

    # Live

    @property
    def window_ticks(self) -> int:
        """The context in frames; see `System.window_ticks`."""
        return self.config.tower.window

    def initial_state(self, batch_size: int) -> LSLMState:
        """Return the state before the first frame; see `System.initial_state`."""
        none = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        num_heads = self.config.tower.num_heads
        shape = (batch_size, 2, num_heads, self._hearing_slots + 1, self._head_width)
        return LSLMState(
            none,
            self.listener.initial_state(batch_size),
            self.tower.initial_state(batch_size),
            tuple(self.head.weight.new_zeros(shape) for _ in self.links),
        )

    @property
    def _hearing_slots(self) -> int:
        """Number of frames in a ring of keys: a window for the first frame of a chunk."""
        return self.config.hearing_window + self.tower.chunk_steps - 1

    def read(
        self, ticks: Ticks, state: LSLMState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], LSLMState]:
        """Read the next frames, and what is heard with them; see `System.read`."""
        return in_chunks(self._read_chunk, self.tower.chunk_steps, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: LSLMState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], LSLMState]:
        num_ticks = ticks[TEXT].shape[1]
        heard, listener = self.listener(ticks[HEARD], state.listener, lengths=lengths)
        reach = self.tower.streaming_reach(state.position, num_ticks, lengths)
        hearing = None
        if self.links:
            window = self.config.hearing_window
            hearing = streaming_reach(
                state.position, num_ticks, lengths, self._head_width, window, self._hearing_slots
            )
        tick = state.position[:, None] + torch.arange(num_ticks, device=self.device)
        hidden = self._hidden(ticks, heard, tick, reach, hearing, state)
        position = state.position + (num_ticks if lengths is None else lengths)
        return hidden, LSLMState(position, listener, state.caches, state.hearing)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next frame, codebook by codebook; see `System.write`."""
        previous = choose(FIRST, 0, self._first_scores(hidden))
        frame = {FIRST: previous[:, None]}
        if self.depth is not None:
            past: tuple[Past, ...] | None = None
            codes = []
            for codebook in range(self.num_others):
                scores, past = self.depth(self._spoken(hidden), previous[:, None], past)
                scores = self._other_scores(scores, hidden, codebook)
                previous = choose(OTHERS, codebook, scores[:, 0])
                codes.append(previous)
            frame[OTHERS] = torch.stack(codes, -1)
        return frame

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the FLOPs a tick; see `System.flops_per_tick`."""
        width = self.config.tower.width
        forward = self.tower.flops_per_step(num_ticks) + self.listener.flops_per_step
        maps = [m for m in (self.head, self.project, self.heard_head) if m is not None]
        forward += 2 * sum(m.weight.numel() for m in maps)
        for link in self.links:
            linear = [m for m in link.modules() if isinstance(m, nn.Linear)]
            forward += 2 * sum(m.weight.numel() for m in linear) + 4 * width * (num_ticks + 1)
        if self.depth is not None and (predicted is None or OTHERS in predicted):
            forward += self.depth.flops_per_frame()
        return forward * (3 if training else 1)


def _layout(config: LSLMConfig) -> Layout:
    """Return the layout: what is said first, then what is given; initial ids are read alone."""
    first, *others = config.codebook_sizes
    streams = [
        Stream(
            name=FIRST,
            role=Role.SPOKEN,
            vocab_size=first + _NUM_ENDS,
            predicted=True,
            has_codebooks=True,
            initial_id=first + _NUM_ENDS,
        )
    ]
    if others:
        streams.append(
            Stream(
                name=OTHERS,
                role=Role.SPOKEN,
                vocab_size=max(others),
                depth=len(others),
                predicted=True,
                has_codebooks=True,
                initial_id=max(others),
                codebook_sizes=tuple(others),
            )
        )
    text = Stream(
        name=TEXT,
        role=Role.TEXT,
        vocab_size=config.text_vocab_size,
        padding_id=config.text_padding_id,
    )
    heard = Stream(name=HEARD, role=Role.HEARD, width=config.listener.heard_width)
    return Layout(streams=(*streams, text, heard), tick_hz=config.tick_hz)
