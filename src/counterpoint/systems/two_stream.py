"""Our two-stream language model: a thin part tower that writes under the plan of a wide whole tower.

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
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache, Reach, filled_slots, ring_steps, write_ring
from counterpoint.blocks.compress import Kind, build_compressor
from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.cross_attention import CrossAttention, CrossReach, Memory, cross_reach
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import Span, available_at, visible_stop
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Logits, Loss, cross_entropy, in_chunks


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
        read_every: Every how many upper layers one has a cross-attention link; 0 means none.
        whole_dropout: Share of training rows that have to do without the whole.
        predict_weight: Weight of the whole's own prediction of the block it plans.
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
    read_every: int = 1
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


class TwoStreamState(NamedTuple):
    """What a session carries.

    Attributes:
        position: Ticks read.
        conv: Last steps of the convolution.
        part: Caches of the part tower.
        pending: Lower states of the block that is not finished yet, oldest first.
        tower: Caches of the whole tower.
        whole: Ring of whole states, the latest ``whole.window`` blocks and more.
        plan: Ring of the latest plans, a vector for every tick of a block.
        memories: Rings of keys and values of whole states, one a link.
    """

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    part: tuple[Cache, ...]
    pending: Float[Tensor, "B R D"]
    tower: tuple[Cache, ...]
    whole: Float[Tensor, "B W D2"]
    plan: Float[Tensor, "B P R D"]
    memories: tuple[Memory, ...]


class Available(NamedTuple):
    """What of the whole the ticks of a chunk may use.

    Attributes:
        plan: The planned vector for the next element at each tick.
        has_plan: Where that plan exists.
        memories: Keys and values of whole states, one a link.
        reach: Which of them each tick may read.
    """

    plan: Float[Tensor, "B T D"]
    has_plan: Bool[Tensor, "B T"]
    memories: tuple[Memory, ...]
    reach: CrossReach


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


class BlockDecoder(nn.Module):
    """A weak decoder: one linear map from a block's vector to a state for each of its ticks."""

    def __init__(self, width: int, part_width: int, block_ticks: int) -> None:
        """From ``width`` features to ``block_ticks`` states of ``part_width``."""
        super().__init__()
        self.block_ticks = block_ticks
        self.unfold = nn.Linear(width, block_ticks * part_width, bias=False)
        nn.init.normal_(self.unfold.weight, std=width**-0.5)

    def forward(self, x: Float[Tensor, "B W D2"]) -> Float[Tensor, "B W R D"]:
        """One state for each tick of the block."""
        return self.unfold(x).unflatten(-1, (self.block_ticks, -1))


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
        self.plan = BlockDecoder(whole_width, width, ticks)
        self.no_plan = nn.Parameter(torch.zeros(width))
        num_upper = config.part.num_layers - config.lower_layers
        self.links = nn.ModuleDict()
        for i in range(num_upper):
            if config.read_every and i % config.read_every == 0:
                link = CrossAttention(width, whole_width, config.part.num_heads)
                self.links[str(config.lower_layers + i)] = nn.ModuleList((RMSNorm(width), link))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        if config.predict_weight:
            self.predictor = BlockDecoder(whole_width, width, ticks)
        if config.reconstruct_weight:
            self.reconstructor = BlockDecoder(whole_width, width, ticks)

    # Offline

    def forward(self, batch: Batch, whole: Float[Tensor, "B W D2"] | None = None) -> Logits:
        """Score the next element at every tick; see `System.forward`.

        Args:
            batch: Rows of ticks.
            whole: Whole states to use in place of the model's own: edited, or another text's.
        """
        x, reach, own, _ = self._read_part(batch)
        available = self._available(own if whole is None else whole, batch.document_start, reach)
        return {"part": self._write_part(x, reach, available)}

    def read(self, batch: Batch) -> Reading:
        """The whole states and how the part stream used them."""
        x, reach, whole, _ = self._read_part(batch)
        available = self._available(whole, batch.document_start, reach)
        weights: list[Tensor] = []
        self._write_part(x, reach, available, weights=weights)
        return Reading(whole, torch.stack(weights).mean((0, 2)))

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the targets plus the whole's own losses; see `System.loss`."""
        ids, targets = batch.ticks["part"], batch.targets["part"]
        x, reach, whole, compressed = self._read_part(batch)
        keep = torch.rand(len(ids), 1, device=ids.device) >= self.config.whole_dropout
        available = self._available(
            whole, batch.document_start, reach, keep=keep if self.training else None
        )
        nats = cross_entropy(self._write_part(x, reach, available), targets)
        total, terms = nats / targets.numel(), {}
        for name, value in self._block_losses(batch, whole, compressed).items():
            terms[name] = value.detach() / targets.numel()
            weight = getattr(self.config, f"{name}_weight")
            total = total + weight * value / targets.numel()
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

    def _available(
        self,
        whole: Float[Tensor, "B W D2"],
        document_start: Int[Tensor, "B T"],
        reach: Reach,
        keep: Bool[Tensor, "B 1"] | None = None,
    ) -> Available:
        """What every tick of whole rows may use of the whole."""
        num_rows, num_ticks = document_start.shape
        num_blocks, ticks = whole.shape[1], self.config.block_ticks
        tick = torch.arange(num_ticks, device=whole.device)
        span = self._whole_span(tick.expand(num_rows, -1), document_start // ticks)
        if keep is not None:
            span = Span(span.start, span.stop * keep)
        # The plan of block j is for the ticks that follow the moment at which j is available.
        first = available_at(self.layout, "whole", 0).tick
        plan = self.plan(whole).flatten(1, 2)
        plan = F.pad(plan, (0, 0, first, 0))[:, :num_ticks]
        plan = F.pad(plan, (0, 0, 0, num_ticks - plan.shape[1]))
        block = torch.arange(num_blocks, device=whole.device)[None]
        last_tick = (block + 1) * ticks - 1
        memories = tuple(link.remember(whole, last_tick) for _, link in self.links.values())
        return Available(
            plan,
            span.stop > span.start,
            memories,
            cross_reach(reach.cos, reach.sin, span, block),
        )

    def _whole_span(self, tick: Int[Tensor, "B T"], first_block: Int[Tensor, "B T"] | int) -> Span:
        """Blocks that the upper part layers at each tick, which produce the next one, may read."""
        stop = visible_stop(self.layout, "part", tick + 1, "whole")
        start = (stop - self.config.whole.window).clamp(min=first_block)
        return Span(start, stop)

    def _write_part(
        self,
        x: Float[Tensor, "B T D"],
        reach: Reach,
        available: Available,
        caches: tuple[Cache, ...] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Upper part layers and head; appends each link's attention to ``weights`` if given."""
        plan = torch.where(available.has_plan[..., None], available.plan, self.no_plan)
        x = x + plan.to(x.dtype)
        memories = iter(available.memories)
        for i in range(self.config.lower_layers, self.config.part.num_layers):
            if str(i) in self.links:
                norm, link = self.links[str(i)]
                memory, normed = next(memories), norm(x)
                if weights is not None:
                    weights.append(link.weights(normed, memory, available.reach))
                x = x + link(normed, memory, available.reach)
            x = self.part.layers[i](x, reach, None if caches is None else caches[i])
        return self.head(self.norm(x))

    def _block_losses(
        self, batch: Batch, whole: Float[Tensor, "B W D2"], compressed: Float[Tensor, "B W D2"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Summed nats of the auxiliary losses that are switched on."""
        config, losses = self.config, {}
        num_blocks, ticks = whole.shape[1], config.block_ticks
        ids = batch.ticks["part"][:, : num_blocks * ticks].unflatten(1, (num_blocks, ticks))
        if config.predict_weight:
            # The whole of block j plans block j + 1 + lag, which is where it is used first.
            ahead = 1 + config.lag_blocks
            document = batch.document_start[:, : num_blocks * ticks : ticks]
            age = torch.arange(num_blocks, device=ids.device) - document // ticks
            planned = ids[:, ahead:].masked_fill((age[:, ahead:] < ahead)[..., None], UNSET_ID)
            states = self.predictor(whole[:, : max(num_blocks - ahead, 0)])
            losses["predict"] = cross_entropy(self.head(self.norm(states)), planned)
        if config.reconstruct_weight:
            states = self.reconstructor(compressed)
            losses["reconstruct"] = cross_entropy(self.head(self.norm(states)), ids)
        return losses

    # Streaming

    @property
    def _ring_plans(self) -> int:
        """Plans kept: those of the blocks of a chunk, and those that the lag still holds back."""
        return self.config.lag_blocks + self.whole.chunk_steps + 1

    @property
    def _ring_blocks(self) -> int:
        """Whole states kept: a window for the first tick of the longest chunk."""
        return self.config.whole.window + self._ring_plans

    def initial_state(self, batch_size: int) -> TwoStreamState:
        """State before the first tick; see `System.initial_state`."""
        config, new = self.config, self.head.weight.new_zeros
        blocks, plans = self._ring_blocks + 1, self._ring_plans + 1
        head_width = config.part.width // config.part.num_heads
        memory = (batch_size, 2, config.part.num_heads, blocks, head_width)
        return TwoStreamState(
            position=torch.zeros(batch_size, dtype=torch.long, device=self.head.weight.device),
            conv=self.conv.initial_state(batch_size),
            part=self.part.initial_state(batch_size),
            pending=new(batch_size, config.block_ticks, config.part.width),
            tower=self.whole.initial_state(batch_size),
            whole=new(batch_size, blocks, config.whole.width),
            plan=new(batch_size, plans, config.block_ticks, config.part.width),
            memories=tuple(new(memory) for _ in self.links),
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
        ids, block_ticks = ticks["part"], self.config.block_ticks
        num_rows, num_ticks = ids.shape
        offset = torch.arange(num_ticks, device=ids.device)
        tick = state.position[:, None] + offset
        x, conv = self.conv(self.embedding(ids), state.conv, age=tick, lengths=lengths)
        reach = self.part.streaming_reach(state.position, num_ticks, lengths)
        for i in range(self.config.lower_layers):
            x = self.part.layers[i](x, reach, state.part[i])
        # Lay the chunk behind the pending steps, aligned to the row's own grid of blocks.
        phase = state.position % block_ticks
        most_blocks = (block_ticks - 1 + num_ticks) // block_ticks
        steps = x.new_zeros(num_rows, (most_blocks + 1) * block_ticks, x.shape[-1])
        steps[:, :block_ticks] = state.pending
        place = (phase[:, None] + offset)[..., None].expand_as(x)
        blocks = steps.scatter(1, place, x).unflatten(1, (-1, block_ticks))
        read = torch.full_like(phase, num_ticks) if lengths is None else lengths
        finished = (phase + read) // block_ticks
        row = torch.arange(num_rows, device=ids.device)
        after = state._replace(
            position=state.position + read, conv=conv, pending=blocks[row, finished]
        )
        return LowerStates(
            x, tick, reach, blocks[:, :-1], state.position // block_ticks, finished, after
        )

    def extend_whole(self, lower: LowerStates, state: TwoStreamState) -> None:
        """Second third of `extend`: the whole tower takes the finished blocks, if there are any."""
        on_host = lower.finished.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_host and not lower.finished.any():
            return
        num_blocks = lower.blocks.shape[1]
        reach = self.whole.streaming_reach(lower.first_block, num_blocks, lower.finished)
        whole = self.whole(self._compress(lower.blocks), reach, state.tower)
        self._publish(self.whole_norm(whole), lower.first_block, lower.finished, state)

    def extend_upper(
        self, lower: LowerStates, state: TwoStreamState
    ) -> tuple[Logits, TwoStreamState]:
        """Last third of `extend`: the upper part layers write under what the whole has published."""
        after, block_ticks = lower.after, self.config.block_ticks
        capacity = state.whole.shape[1] - 1
        end = after.position // block_ticks
        limit = filled_slots(end, capacity)
        span = self._whole_span(lower.tick, 0)
        row = torch.arange(len(end), device=end.device)[:, None]
        slot = (span.stop - 1) % (state.plan.shape[1] - 1)
        available = Available(
            state.plan[row, slot, (lower.tick + 1) % block_ticks],
            span.stop > span.start,
            tuple(memory[:, :, :, :limit] for memory in state.memories),
            cross_reach(lower.reach.cos, lower.reach.sin, span, ring_steps(end, capacity, limit)),
        )
        logits = self._write_part(lower.x, lower.reach, available, state.part)
        return {"part": logits}, after

    def _publish(
        self,
        whole: Float[Tensor, "B W D2"],
        first_block: Int[Tensor, " B"],
        count: Int[Tensor, " B"],
        state: TwoStreamState,
    ) -> None:
        """Write whole states, and all that the part tower reads of them, into the rings."""
        offset = torch.arange(whole.shape[1], device=whole.device)
        block = first_block[:, None] + offset
        real = offset < count[:, None]
        row = torch.arange(len(whole), device=whole.device)[:, None]

        def slot(size: int) -> Tensor:  # the last slot swallows what is not real
            return torch.where(real, block % (size - 1), size - 1)

        state.whole[row, slot(state.whole.shape[1])] = whole.to(state.whole.dtype)
        plan = self.plan(whole).to(state.plan.dtype)
        state.plan[row, slot(state.plan.shape[1])] = plan
        last_tick = (block + 1) * self.config.block_ticks - 1
        for memory, (_, link) in zip(state.memories, self.links.values(), strict=True):
            write_ring(memory, slot(memory.shape[3]), link.remember(whole, last_tick))

    def kept_whole(self, state: TwoStreamState) -> tuple[Tensor, Tensor]:
        """Whole states that a session keeps, and the block of each.

        Returns:
            States (B, C, D2) and block numbers (B, C), negative where a slot is empty.
        """
        capacity = state.whole.shape[1] - 1
        end = state.position // self.config.block_ticks
        return state.whole[:, :-1], ring_steps(end, capacity, capacity)

    def edit(
        self, state: TwoStreamState, block: Int[Tensor, " B"], whole: Float[Tensor, "B D2"]
    ) -> None:
        """Replace the whole state of one block a row by another vector, from now on.

        Raises:
            ValueError: A block is not finished, or no longer kept.
        """
        end = state.position // self.config.block_ticks
        if ((block < 0) | (block >= end) | (block < end - state.whole.shape[1] + 1)).any():
            raise ValueError(
                f"Only finished blocks that are still kept can be edited: expected blocks below "
                f"{end.tolist()}, got {block.tolist()}."
            )
        self._publish(whole[:, None], block, torch.ones_like(block), state)

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
        return state._replace(
            tower=donor.tower, whole=donor.whole, plan=donor.plan, memories=donor.memories
        )

    # Costs

    def flops_per_tick(self, num_ticks: int, *, training: bool = False) -> float:
        """Forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config, ticks = self.config, self.config.block_ticks
        num_blocks = num_ticks // ticks
        share = num_blocks / num_ticks
        forward = self.part.flops_per_step(num_ticks)
        forward += share * self.whole.flops_per_step(max(num_blocks, 1))
        a_block = self.merge.weight.numel() + self.plan.unfold.weight.numel()
        a_block += self.compressor.products_per_block()
        a_tick = self.head.weight.numel()
        for _, link in self.links.values():
            a_block += link.key_value.weight.numel()
            a_tick += sum(m.weight.numel() for m in (link.query, link.gate, link.out))
            a_tick += 2 * config.part.width * (num_blocks + 1)
        if training:
            decode = ticks * self.head.weight.numel()
            for name, blocks in (
                ("predictor", num_blocks - 1 - config.lag_blocks),
                ("reconstructor", num_blocks),
            ):
                if hasattr(self, name):
                    decoder = getattr(self, name)
                    a_block += (
                        (decoder.unfold.weight.numel() + decode) * max(blocks, 0) / num_blocks
                    )
        forward += 2 * (a_tick + share * a_block)
        return forward * (3 if training else 1)

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """State bytes a tick; see `System.state_bytes_per_tick`."""
        config = self.config
        element_bytes = self.head.weight.element_size()
        blocks = self._ring_blocks + 1
        elements = blocks * (config.whole.width + 2 * config.part.width * len(self.links))
        elements += (self._ring_plans + 1 + 1) * config.block_ticks * config.part.width
        conv = self.conv.initial_state(1)
        towers = self.part.state_bytes() + self.whole.state_bytes()
        return (towers + conv.nbytes + elements * element_bytes + 8) / num_ticks

    def shard_units(self) -> list[nn.Module]:
        """Modules that distributed training shards one by one."""
        return [*self.part.layers, *self.whole.layers]
