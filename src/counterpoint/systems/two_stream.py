"""Our two-stream language model: a thin part tower writes under the plan of a wide whole tower.

The part stream (bytes) runs at every tick, the whole stream once a block of ticks:

    part, lower layers  ->  compressor of the finished block  ->  whole tower
    part, upper layers  <-  plan of the newest whole, and cross-attention to all of them

Both towers are causal and explicit: the whole can be read, kept, edited and swapped while the model
generates. With ``lag_blocks >= 1`` a block is used only that many blocks later, so that the whole
tower can run beside the part tower instead of before its next step.

Source: the project's design. Relatives: MegaByte (arXiv:2305.07185) for the plan of a block,
AU-Net (arXiv:2506.14761), DLCM (arXiv:2512.24617) for cross-attention to concepts, SlowFast
(arXiv:1812.03982) for thin and wide towers. Checked against: the rule of visibility
(`tests/systems/test_contract.py`); there is no published reference.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache, Reach, ring_steps
from counterpoint.blocks.compress import Kind, Unfold, build_compressor, finish_blocks
from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.steering import Guidance, Published, Steering
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import Span, available_at, visible_stop
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Logits, Loss, cross_entropy, in_chunks, state_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStreamConfig:
    """Shape of a `TwoStream`.

    Attributes:
        part: Tower of the fine stream; its window is in ticks.
        whole: Tower of the coarse stream; its window is in blocks.
        lower_layers: Part layers below the compressor; the others read the whole.
        block_ticks: Ticks of a block.
        lag_blocks: Blocks by which the whole is used later than it could be.
        compressor: How a finished block becomes slots; `counterpoint.blocks.compress`.
        num_slots: Slots a block (compressors with a free number).
        num_links: Upper part layers, from the first, that also read the whole by cross-attention.
        whole_dropout: Share of training rows that have to do without the whole.
        predict_weight: Weight of the loss that each plan has as a prediction of its own.
        reconstruct_weight: Weight of rebuilding each block from its compressed form.
        vocab_size: Ids of the part stream.
        conv_taps: Taps of the convolution behind the embedding.
    """

    part: TowerConfig
    whole: TowerConfig
    lower_layers: int
    block_ticks: int = 8
    lag_blocks: int = 0
    compressor: Kind = "wavelet"
    num_slots: int = 2
    num_links: int = 1
    whole_dropout: float = 0.1
    predict_weight: float = 0.1
    reconstruct_weight: float = 0.0
    vocab_size: int = 258
    conv_taps: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.lower_layers < self.part.num_layers:
            raise ValueError(
                f"`lower_layers` must leave part layers on both sides of the whole: expected 1 to "
                f"{self.part.num_layers - 1}, got {self.lower_layers}."
            )
        if not 0 <= self.num_links <= self.part.num_layers - self.lower_layers:
            raise ValueError(
                f"`num_links` must be 0 to the number of upper part layers, "
                f"{self.part.num_layers - self.lower_layers}: got {self.num_links}."
            )


def tiny() -> TwoStreamConfig:
    """About 2.5M parameters: trains on a laptop in two minutes."""
    return TwoStreamConfig(
        part=TowerConfig(width=128, num_layers=4, num_heads=2, mlp_hidden=336, window=64),
        whole=TowerConfig(width=192, num_layers=3, num_heads=3, mlp_hidden=512, window=256),
        lower_layers=1,
        block_ticks=4,
    )


def small() -> TwoStreamConfig:
    """About 30M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=384, num_layers=6, num_heads=6, mlp_hidden=1024, window=256),
        whole=TowerConfig(width=640, num_layers=3, num_heads=10, mlp_hidden=1712, window=512),
        lower_layers=2,
    )


def base() -> TwoStreamConfig:
    """About 150M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=640, num_layers=8, num_heads=10, mlp_hidden=1712, window=256),
        whole=TowerConfig(width=1152, num_layers=6, num_heads=18, mlp_hidden=3072, window=1024),
        lower_layers=2,
    )


class TwoStreamState(NamedTuple):
    """What a session carries.

    Attributes:
        position: Ticks read.
        conv: Last steps of the convolution.
        part: Caches of the part tower.
        pending: Lower states of the block that is not finished yet, oldest first.
        tower: Caches of the whole tower.
        published: What the part tower reads of the whole.
    """

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    part: tuple[Cache, ...]
    pending: Float[Tensor, "B R D"]
    tower: tuple[Cache, ...]
    published: Published


class Reading(NamedTuple):
    """What `TwoStream.read` shows.

    Attributes:
        whole: Whole states.
        attention: Mean attention over links and heads of every tick on the null key (first) and on
            every block.
    """

    whole: Float[Tensor, "B W D2"]
    attention: Float[Tensor, "B T W1"]


class LowerStates(NamedTuple):
    """A chunk between the lower and the upper part layers.

    Attributes:
        x: Lower part states.
        tick: Absolute tick of each.
        reach: What they may read of the part stream.
        blocks: Blocks that the chunk may have finished, the first ``finished`` of them real.
        first_block: Number of the first of these blocks.
        finished: Blocks that the chunk finished.
        after: The state after the chunk (its rings are shared with the state before).
    """

    x: Float[Tensor, "B T D"]
    tick: Int[Tensor, "B T"]
    reach: Reach
    blocks: Float[Tensor, "B W R D"]
    first_block: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: TwoStreamState


class TwoStream(nn.Module):
    """A part tower and a whole tower that run at two rates and steer each other."""

    Config = TwoStreamConfig

    def __init__(self, config: TwoStreamConfig) -> None:
        """Random weights; the head starts at zero, so the first loss is that of a fair die."""
        super().__init__()
        self.config = config
        width, whole_width, ticks = config.part.width, config.whole.width, config.block_ticks
        self.layout = Layout(
            streams=(
                Stream(name="part", role=Role.PART, vocab_size=config.vocab_size),
                Stream(
                    name="whole",
                    role=Role.WHOLE,
                    width=whole_width,
                    period_ticks=ticks,
                    delay_ticks=config.lag_blocks * ticks,
                ),
            )
        )
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.conv = CausalConvolution(width, config.conv_taps)
        self.part = Tower(config.part)
        self.block_norm = RMSNorm(width)
        self.compressor = build_compressor(config.compressor, width, ticks, config.num_slots)
        self.merge = nn.Linear(self.compressor.num_slots * width, whole_width, bias=False)
        nn.init.normal_(self.merge.weight, std=self.merge.in_features**-0.5)
        self.whole = Tower(config.whole)
        self.whole_norm = RMSNorm(whole_width)
        self.steering = Steering(width, whole_width, config.part.num_heads, config.num_links, ticks)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        if config.reconstruct_weight:
            self.reconstructor = Unfold(whole_width, width, ticks)

    # Offline

    def forward(self, batch: Batch, whole: Float[Tensor, "B W D2"] | None = None) -> Logits:
        """Score the next element at every tick; see `System.forward`.

        Args:
            batch: Rows of ticks.
            whole: Whole states to use in place of the model's own: edited, or another text's.
        """
        x, reach, own, _ = self._read_part(batch)
        if whole is not None and whole.shape != own.shape:
            raise ValueError(
                f"`whole` must hold one state for each finished block: expected "
                f"{tuple(own.shape)}, got {tuple(whole.shape)}."
            )
        guidance = self._guidance(own if whole is None else whole, batch.document_start, reach)
        return {"part": self._write_part(x, reach, guidance)}

    def read(self, batch: Batch) -> Reading:
        """The whole states and how the part stream used them.

        Raises:
            ValueError: The model has no cross-attention links.
        """
        if not self.config.num_links:
            raise ValueError("Only links show attention: expected `num_links` >= 1, got 0.")
        x, reach, whole, _ = self._read_part(batch)
        guidance = self._guidance(whole, batch.document_start, reach)
        weights: list[Tensor] = []
        self._write_part(x, reach, guidance, weights=weights)
        return Reading(whole, torch.stack(weights).mean((0, 2)))

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the targets plus the whole's own losses; see `System.loss`."""
        ids, targets = batch.ticks["part"], batch.targets["part"]
        x, reach, whole, compressed = self._read_part(batch)
        keep = torch.rand(len(ids), 1, device=ids.device) >= self.config.whole_dropout
        guidance = self._guidance(
            whole, batch.document_start, reach, keep=keep if self.training else None
        )
        nats = cross_entropy(self._write_part(x, reach, guidance), targets)
        total, terms = nats / targets.numel(), {}
        if self.config.predict_weight:
            planned = targets.masked_fill(~guidance.has_plan, UNSET_ID)
            predict = cross_entropy(self.head(self.norm(guidance.plan)), planned) / targets.numel()
            total, terms["predict"] = total + self.config.predict_weight * predict, predict.detach()
        if self.config.reconstruct_weight:
            rebuilt = self.head(self.norm(self.reconstructor(compressed)))
            written = ids[:, : rebuilt.shape[1] * rebuilt.shape[2]].view(rebuilt.shape[:3])
            rebuild = cross_entropy(rebuilt, written) / targets.numel()
            total = total + self.config.reconstruct_weight * rebuild
            terms["reconstruct"] = rebuild.detach()
        return Loss(total=total, nats=nats, terms=terms)

    def _read_part(self, batch: Batch) -> tuple[Tensor, Reach, Tensor, Tensor]:
        """Lower part states, their reach, the whole states, and what the whole tower was given."""
        ids, start, ticks = batch.ticks["part"], batch.document_start, self.config.block_ticks
        age = torch.arange(ids.shape[1], device=ids.device) - start
        x, _ = self.conv(self.embedding(ids), age=age)
        reach = self.part.reach(start)
        for layer in self.part.layers[: self.config.lower_layers]:
            x = layer(x, reach)
        num_blocks = ids.shape[1] // ticks
        blocks = x[:, : num_blocks * ticks].unflatten(1, (num_blocks, ticks))
        compressed = self._compress(blocks)
        whole_reach = self.whole.reach(start[:, : num_blocks * ticks : ticks] // ticks)
        return x, reach, self.whole_norm(self.whole(compressed, whole_reach)), compressed

    def _compress(self, blocks: Float[Tensor, "B W R D"]) -> Float[Tensor, "B W D2"]:
        return self.merge(self.compressor(self.block_norm(blocks)).flatten(-2))

    def _guidance(
        self,
        whole: Float[Tensor, "B W D2"],
        document_start: Int[Tensor, "B T"],
        reach: Reach,
        keep: Bool[Tensor, "B 1"] | None = None,
    ) -> Guidance:
        """What every tick of whole rows may use of the whole; nothing in rows that do not keep."""
        num_rows, num_ticks = document_start.shape
        tick = torch.arange(num_ticks, device=whole.device).expand(num_rows, -1)
        span = self._whole_span(tick, document_start // self.config.block_ticks)
        if keep is not None:
            span = Span(span.start, span.stop * keep)
        first = available_at(self.layout, "whole", 0).tick
        return self.steering.offline(whole, span, first, reach)

    def _whole_span(self, tick: Int[Tensor, "B T"], first_block: Int[Tensor, "B T"] | int) -> Span:
        """Blocks that the upper part layers at each tick, which produce the next one, may read."""
        stop = visible_stop(self.layout, "part", tick + 1, "whole")
        start = (stop - self.config.whole.window).clamp(min=first_block)
        return Span(start, stop)

    def _write_part(
        self,
        x: Float[Tensor, "B T D"],
        reach: Reach,
        guidance: Guidance,
        caches: tuple[Cache, ...] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Upper part layers and head; appends each link's attention to ``weights`` if given."""
        x = self.steering.add_plan(x, guidance)
        for i in range(self.config.lower_layers, self.config.part.num_layers):
            number = i - self.config.lower_layers
            if number < len(self.steering.links):
                link, memory = self.steering.links[number], guidance.memories[number]
                if weights is not None:
                    weights.append(link.weights(x, memory, guidance.reach))
                x = x + link(x, memory, guidance.reach)
            x = self.part.layers[i](x, reach, None if caches is None else caches[i])
        return self.head(self.norm(x))

    # Streaming

    def initial_state(self, batch_size: int) -> TwoStreamState:
        """State before the first tick; see `System.initial_state`."""
        config, device = self.config, self.head.weight.device
        # Plans of the blocks of a chunk and of those that the lag holds back; and whole states for
        # a window behind the first tick of such a chunk.
        num_plans = config.lag_blocks + self.whole.chunk_steps + 1
        num_blocks = config.whole.window + num_plans
        return TwoStreamState(
            position=torch.zeros(batch_size, dtype=torch.long, device=device),
            conv=self.conv.initial_state(batch_size),
            part=self.part.initial_state(batch_size),
            pending=self.head.weight.new_zeros(batch_size, config.block_ticks, config.part.width),
            tower=self.whole.initial_state(batch_size),
            published=self.steering.initial_state(batch_size, num_blocks, num_plans),
        )

    def extend(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Logits, TwoStreamState]:
        """Read some more ticks; see `System.extend`."""
        most = min(self.part.chunk_steps, self.whole.chunk_steps * self.config.block_ticks)
        return in_chunks(self._extend_chunk, most, ticks, state, lengths)

    def _extend_chunk(
        self, ticks: Ticks, state: TwoStreamState, lengths: Tensor | None
    ) -> tuple[Logits, TwoStreamState]:
        lower = self.extend_lower(ticks, state, lengths)
        self.extend_whole(lower, state)
        return self.extend_upper(lower, state)

    def extend_lower(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> LowerStates:
        """First third of `extend`: the lower part layers, and the blocks that they finish.

        With a lag, `extend_upper` may come before `extend_whole`, or run beside it, as long as a
        chunk finishes at most ``lag_blocks`` blocks and one chunk's whole is done before the next
        block is finished.
        """
        ids = ticks["part"]
        num_ticks = ids.shape[1]
        tick = state.position[:, None] + torch.arange(num_ticks, device=ids.device)
        x, conv = self.conv(self.embedding(ids), state.conv, lengths=lengths)
        reach = self.part.streaming_reach(state.position, num_ticks, lengths)
        for i in range(self.config.lower_layers):
            x = self.part.layers[i](x, reach, state.part[i])
        blocks, finished, pending = finish_blocks(state.pending, x, state.position, lengths)
        read = torch.full_like(finished, num_ticks) if lengths is None else lengths
        after = state._replace(position=state.position + read, conv=conv, pending=pending)
        first_block = state.position // self.config.block_ticks
        return LowerStates(x, tick, reach, blocks, first_block, finished, after)

    def extend_whole(self, lower: LowerStates, state: TwoStreamState) -> None:
        """Second third of `extend`: the whole tower takes the finished blocks, if there are any."""
        on_host = lower.finished.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_host and not lower.finished.any():
            return
        num_blocks = lower.blocks.shape[1]
        reach = self.whole.streaming_reach(lower.first_block, num_blocks, lower.finished)
        whole = self.whole(self._compress(lower.blocks), reach, state.tower)
        whole = self.whole_norm(whole)
        self.steering.publish(whole, lower.first_block, lower.finished, state.published)

    def extend_upper(
        self, lower: LowerStates, state: TwoStreamState
    ) -> tuple[Logits, TwoStreamState]:
        """Last third of `extend`: the upper part layers write under the published whole."""
        end = lower.after.position // self.config.block_ticks
        span = self._whole_span(lower.tick, 0)
        guidance = self.steering.streaming(state.published, end, lower.tick, span, lower.reach)
        logits = self._write_part(lower.x, lower.reach, guidance, state.part)
        return {"part": logits}, lower.after

    def kept_whole(self, state: TwoStreamState) -> tuple[Tensor, Tensor]:
        """Whole states that a session keeps, and the block of each.

        Returns:
            States (B, C, D2) and block numbers (B, C), negative where a slot is empty.
        """
        kept = state.published.coarse[:, :-1]
        end = state.position // self.config.block_ticks
        return kept, ring_steps(end, kept.shape[1], kept.shape[1])

    def edit(
        self, state: TwoStreamState, block: Int[Tensor, " B"], whole: Float[Tensor, "B D2"]
    ) -> None:
        """Replace the whole state of one block a row by another vector, from now on.

        Raises:
            ValueError: A block is not finished, or no longer kept.
        """
        end = state.position // self.config.block_ticks
        if (
            (block < 0) | (block >= end) | (block < end - state.published.coarse.shape[1] + 1)
        ).any():
            raise ValueError(
                f"Only finished blocks that are still kept can be edited: expected blocks below "
                f"{end.tolist()}, got {block.tolist()}."
            )
        one = torch.ones_like(block)
        plans = state.published.plan
        before, over = plans.clone(), block < end - plans.shape[1] + 1
        self.steering.publish(whole[:, None], block, one, state.published)
        plans[over] = before[over]  # an old block's slot holds the plan of a newer one

    def swap(self, state: TwoStreamState, donor: TwoStreamState) -> TwoStreamState:
        """The session of ``state`` going on with the whole of ``donor``.

        Raises:
            ValueError: The sessions have not finished the same number of blocks.
        """
        ticks = self.config.block_ticks
        mine, theirs = state.position // ticks, donor.position // ticks
        if not torch.equal(mine, theirs):
            raise ValueError(
                f"A whole can be swapped between sessions with equally many finished blocks: "
                f"got {mine.tolist()} and {theirs.tolist()}. Feed both prompts of one length."
            )
        return state._replace(tower=donor.tower, published=donor.published)

    # Costs

    def flops_per_tick(self, num_ticks: int, *, training: bool = False) -> float:
        """Forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config, ticks = self.config, self.config.block_ticks
        num_blocks = num_ticks // ticks
        share = num_blocks / num_ticks
        forward = self.part.flops_per_step(num_ticks)
        forward += share * self.whole.flops_per_step(max(num_blocks, 1))
        a_block, a_tick = self.steering.products(num_blocks)
        a_block += self.merge.weight.numel() + self.compressor.products_per_block()
        a_tick += self.head.weight.numel()
        if training and config.predict_weight:
            a_tick += self.head.weight.numel()
        if training and config.reconstruct_weight:
            a_block += self.reconstructor.unfold.weight.numel() + ticks * self.head.weight.numel()
        forward += 2 * (a_tick + share * a_block)
        return forward * (3 if training else 1)

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """State bytes a tick; see `System.state_bytes_per_tick`."""
        return state_bytes(self.initial_state(1)) / num_ticks

    def shard_units(self) -> list[nn.Module]:
        """Modules that distributed training shards one by one."""
        return [*self.part.layers, *self.whole.layers]
