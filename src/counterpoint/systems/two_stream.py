"""Our two-stream language model: a thin part tower writes under the plan of a wide whole tower.

The part stream (bytes) runs at every tick, the whole stream once a block of ticks:

    part, lower layers  ->  compressor of the finished block  ->  whole tower
    part, upper layers  <-  plan of the newest whole, and cross-attention to all of them

Both towers are causal and explicit: the whole can be read, kept, edited and swapped while the model
generates. With ``lag_blocks >= 1`` a block is used only that many blocks later, so that the whole
tower can run beside the part tower instead of before its next step.

Source: the project's design. Relatives: MegaByte (arXiv:2305.07185) for plans, SpaceByte
(arXiv:2404.14408) for blocks that end at spaces, DLCM (arXiv:2512.24617) for cross-attention to
concepts. Checked against the rule of visibility (`tests/systems/test_contract.py`); there is no
published reference.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import Cache, Reach, ring_steps
from counterpoint.blocks.block_grid import BlockGrid, gather_blocks, lay_blocks, pending_steps
from counterpoint.blocks.compress import Kind, Unfold, build_compressor
from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.steering import Guidance, Published, Steering
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import Span, visible_finished
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import (
    Choose,
    Logits,
    LossSums,
    State,
    System,
    SystemConfig,
    in_chunks,
    stream_loss,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStreamConfig(SystemConfig):
    """Shape of a `TwoStream`.

    Attributes:
        part: Tower of the fine stream; its window is in ticks.
        whole: Tower of the coarse stream; its window is in blocks.
        lower_layers: Part layers below the compressor; the others read the whole.
        block_ticks: Ticks of a block; of the longest, where blocks may end early.
        boundary_ids: Ids after which a block ends early, such as a space.
        usual_block_ticks: Ticks of a block on the intended text, for counting FLOPs; ``None``:
            `block_ticks`.
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
    boundary_ids: tuple[int, ...] = ()
    usual_block_ticks: float | None = None
    lag_blocks: int = 0
    compressor: Kind = "wavelet"
    num_slots: int = 2
    num_links: int = 1
    whole_dropout: float = 0.1
    predict_weight: float = 0.3
    reconstruct_weight: float = 0.0
    vocab_size: int = 258
    conv_taps: int = 4

    def __post_init__(self) -> None:
        layers, lower = self.part.num_layers, self.lower_layers
        upper, usual, ids = layers - lower, self.usual_block_ticks, self.boundary_ids
        for holds, rule, got in (
            (self.block_ticks >= 1, "`block_ticks` must be >= 1", self.block_ticks),
            (self.lag_blocks >= 0, "`lag_blocks` must be >= 0", self.lag_blocks),
            (1 <= lower < layers, f"`lower_layers` must be 1 to {layers - 1}", lower),
            (0 <= self.num_links <= upper, f"`num_links` must be 0 to {upper}", self.num_links),
            (usual is None or usual >= 1, "`usual_block_ticks` must be >= 1 or None", usual),
            (all(0 <= i < self.vocab_size for i in ids), "`boundary_ids` must be ids", ids),
            (0 <= self.whole_dropout <= 1, "`whole_dropout` must be 0 to 1", self.whole_dropout),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"{rule}; got {got}.")


WORDS = (ord(" "), ord("\n"))  # bytes after which a word has ended


def tiny() -> TwoStreamConfig:
    """2.6M parameters: trains on a laptop in two minutes."""
    return TwoStreamConfig(
        part=TowerConfig(width=128, num_layers=4, num_heads=4, mlp_hidden=320, window=32),
        whole=TowerConfig(width=192, num_layers=3, num_heads=3, mlp_hidden=512, window=64),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
        whole_dropout=0.0,
    )


def small() -> TwoStreamConfig:
    """About 30M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=384, num_layers=6, num_heads=6, mlp_hidden=1024, window=256),
        whole=TowerConfig(width=640, num_layers=3, num_heads=10, mlp_hidden=1712, window=512),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
    )


def base() -> TwoStreamConfig:
    """About 150M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=640, num_layers=8, num_heads=10, mlp_hidden=1712, window=256),
        whole=TowerConfig(width=1152, num_layers=6, num_heads=18, mlp_hidden=3072, window=1024),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
    )


class TwoStreamState(NamedTuple):
    """What a session carries.

    Attributes:
        position: Ticks read.
        conv: Last steps of the convolution.
        part: Caches of the part tower.
        pending: Lower states of the block that is not finished yet, oldest first.
        place: How many of them there are.
        finished: Blocks finished.
        tower: Caches of the whole tower.
        published: What the part tower reads of the whole.
    """

    position: Int[Tensor, " B"]
    conv: Float[Tensor, "B C D"]
    part: tuple[Cache, ...]
    pending: Float[Tensor, "B R D"]
    place: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    tower: tuple[Cache, ...]
    published: Published


class Reading(NamedTuple):
    """What `TwoStream.read_whole` shows.

    Attributes:
        whole: Whole states.
        attention: Mean attention over links and heads of every tick on the null key (first) and on
            every block.
        finished: Blocks finished at or before every tick.
    """

    whole: Float[Tensor, "B W D2"]
    attention: Float[Tensor, "B T W1"]
    finished: Int[Tensor, "B T"]


class _LowerRows(NamedTuple):
    """Whole rows below the upper part layers, with what the whole tower took and gave."""

    x: Float[Tensor, "B T D"]
    reach: Reach
    grid: BlockGrid
    first_block: Int[Tensor, "B T"]
    compressed: Float[Tensor, "B W D2"]
    whole: Float[Tensor, "B W D2"]


class LowerStates(NamedTuple):
    """A chunk between the lower and the upper part layers.

    Attributes:
        x: Lower part states.
        reach: What they may read of the part stream.
        grid: Blocks that the chunk finished, and the place of its ticks.
        blocks: Their lower states.
        end_tick: Absolute tick at which each was finished.
        before: Blocks finished before the chunk.
        finished: Blocks that the chunk finished.
        after: The state after the chunk (its rings are shared with the state before).
    """

    x: Float[Tensor, "B T D"]
    reach: Reach
    grid: BlockGrid
    blocks: Float[Tensor, "B W R D"]
    end_tick: Int[Tensor, "B W"]
    before: Int[Tensor, " B"]
    finished: Int[Tensor, " B"]
    after: TwoStreamState


class TwoStream(System):
    """A part tower and a whole tower that run at two rates and steer each other."""

    Config = TwoStreamConfig
    tick_stages: ClassVar[tuple[str, ...]] = ("read_lower", "read_whole_tower", "read_upper")

    def __init__(self, config: TwoStreamConfig) -> None:
        """Random weights; the head starts at zero, so the first loss is that of a fair die."""
        super().__init__()
        self.config = config
        width, whole_width, ticks = config.part.width, config.whole.width, config.block_ticks
        part = Stream(name="part", role=Role.PART, vocab_size=config.vocab_size, predicted=True)
        whole = Stream(
            name="whole",
            role=Role.WHOLE,
            width=whole_width,
            period_ticks=ticks,
            delay_ticks=config.lag_blocks * ticks,
            irregular=bool(config.boundary_ids),
        )
        self.layout = Layout(streams=(part, whole))
        ends_block = torch.zeros(config.vocab_size, dtype=torch.bool)
        ends_block[list(config.boundary_ids)] = True
        self.register_buffer("ends_block", ends_block, persistent=False)
        self.ends_block: Tensor
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
        lower = self._read_part(batch)
        if whole is not None:
            expected, got = tuple(lower.whole.shape), tuple(whole.shape)
            if expected != got:
                raise ValueError(f"`whole` must hold all blocks: expected {expected}, got {got}.")
            lower = lower._replace(whole=whole)
        hidden = self._write_part(lower.x, lower.reach, self._guidance(lower))
        return {"part": self.head(hidden)}

    def read_whole(self, batch: Batch) -> Reading:
        """The whole states and how the part stream used them; needs a link."""
        if not self.steering.links:
            raise ValueError("Only links show attention: expected `num_links` >= 1, got 0.")
        lower = self._read_part(batch)
        weights: list[Tensor] = []
        self._write_part(lower.x, lower.reach, self._guidance(lower), weights=weights)
        attention = torch.stack(weights).mean((0, 2))
        return Reading(lower.whole, attention, lower.grid.finished)

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Cross-entropy of the targets and the whole's own losses; see `System.losses`."""
        ids, targets, config = batch.ticks["part"], batch.targets["part"], self.config
        lower = self._read_part(batch)
        keep = torch.rand(len(ids), 1, device=ids.device) >= config.whole_dropout
        guidance = self._guidance(lower, keep if self.training else None)
        hidden = self._write_part(lower.x, lower.reach, guidance)
        losses = {"part": stream_loss(self.head(hidden), targets)}
        weight = losses["part"].weight
        if config.predict_weight:
            planned = targets.masked_fill(~guidance.has_plan, UNSET_ID)
            predicted = stream_loss(self.head(self.norm(guidance.plan)), planned)
            losses["predict"] = predicted._replace(weight=weight)
        if config.reconstruct_weight:
            grid = lower.grid
            written = ids.gather(1, grid.step.flatten(1).clamp(min=0)).view(grid.step.shape)
            written = written.masked_fill(~grid.real, UNSET_ID)
            rebuilt = self.head(self.norm(self.reconstructor(lower.compressed)))
            losses["reconstruct"] = stream_loss(rebuilt, written)._replace(weight=weight)
        return losses

    def loss_factor(self, group: str) -> float:
        """Weights of the whole's own losses; see `System.loss_factor`."""
        factors = {
            "predict": self.config.predict_weight,
            "reconstruct": self.config.reconstruct_weight,
        }
        return factors.get(group, 1.0)

    def _read_part(self, batch: Batch) -> _LowerRows:
        """Whole rows through the lower part layers and the whole tower."""
        ids, start, ticks = batch.ticks["part"], batch.document_start, self.config.block_ticks
        num_rows, num_ticks = ids.shape
        age = torch.arange(num_ticks, device=ids.device) - start
        x, _ = self.conv(self.embedding(ids), age=age)
        reach = self.part.reach(start)
        for layer in self.part.layers[: self.config.lower_layers]:
            x = layer(x, reach)
        grid = lay_blocks(self._ends_block(ids), start, ticks)
        none = x.new_zeros(num_rows, ticks, x.shape[-1])
        blocks = gather_blocks(self.block_norm(x), grid, none, torch.zeros_like(start[:, 0]))
        first_block = F.pad(grid.finished, (1, 0)).gather(1, start)
        compressed = self.merge(self.compressor(blocks, grid.real).flatten(-2))
        whole = self.whole(compressed, self.whole.reach(first_block.gather(1, grid.end)))
        return _LowerRows(x, reach, grid, first_block, compressed, self.whole_norm(whole))

    def _ends_block(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"] | None:
        """Ticks that end a block early; ``None`` where none can."""
        return self.ends_block[ids] if self.config.boundary_ids else None

    def _guidance(self, lower: _LowerRows, keep: Bool[Tensor, "B 1"] | None = None) -> Guidance:
        """What every tick of whole rows may use of the whole; nothing in rows that do not keep."""
        span = self._whole_span(lower.grid.finished, lower.first_block)
        if keep is not None:
            span = Span(span.start, span.stop * keep)
        grid = lower.grid
        return self.steering.offline(lower.whole, grid.end, grid.place, span, lower.reach)

    def _whole_span(
        self, finished: Int[Tensor, "B T"], first_block: Int[Tensor, "B T"] | int
    ) -> Span:
        """Blocks that the upper part layers at each tick, which produce the next one, may read."""
        stop = visible_finished(finished, self.config.lag_blocks)
        start = (stop - self.config.whole.window).clamp(min=first_block)
        return Span(start, stop)

    def _write_part(
        self,
        x: Float[Tensor, "B T D"],
        reach: Reach,
        guidance: Guidance,
        caches: tuple[Cache, ...] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Upper part layers and norm; appends each link's attention to ``weights`` if given."""
        x = self.steering.add_plan(x, guidance)
        for i in range(self.config.lower_layers, self.config.part.num_layers):
            number = i - self.config.lower_layers
            if number < len(self.steering.links):
                link, memory = self.steering.links[number], guidance.memories[number]
                if weights is not None:
                    weights.append(link.weights(x, memory, guidance.reach))
                x = x + link(x, memory, guidance.reach)
            x = self.part.layers[i](x, reach, None if caches is None else caches[i])
        return self.norm(x)

    # Streaming

    @property
    def window_ticks(self) -> int:
        """What the part tower or the whole reaches; see `System.window_ticks`."""
        blocks = self.config.whole.window + self.config.lag_blocks
        return max(self.config.part.window, blocks * self.config.block_ticks)

    @property
    def usable_blocks(self) -> int:
        """Blocks that must be finished before any is read; see `HasWhole.usable_blocks`."""
        return self.config.lag_blocks + 1

    def finished_blocks(self, state: TwoStreamState) -> Int[Tensor, " B"]:
        """Blocks that each session has finished; see `HasWhole.finished_blocks`."""
        return state.finished

    def initial_state(self, batch_size: int) -> TwoStreamState:
        """State before the first tick; see `System.initial_state`."""
        config = self.config
        none = torch.zeros(batch_size, dtype=torch.long, device=self.head.weight.device)
        # Plans of the blocks of a chunk and of those that the lag holds back; and whole states for
        # a window behind the first tick of such a chunk.
        num_plans = config.lag_blocks + self.whole.chunk_steps + 1
        num_blocks = config.whole.window + num_plans
        return TwoStreamState(
            position=none,
            conv=self.conv.initial_state(batch_size),
            part=self.part.initial_state(batch_size),
            pending=self.head.weight.new_zeros(batch_size, config.block_ticks, config.part.width),
            place=none.clone(),
            finished=none.clone(),
            tower=self.whole.initial_state(batch_size),
            published=self.steering.initial_state(batch_size, num_blocks, num_plans),
        )

    @property
    def chunk_ticks(self) -> int:
        """Most ticks that the rings can take at once; `read` cuts what is longer."""
        shortest = 1 if self.config.boundary_ids else self.config.block_ticks
        return min(self.part.chunk_steps, self.whole.chunk_steps * shortest)

    def read(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        """Read some more ticks; see `System.read`."""
        return in_chunks(self._read_chunk, self.chunk_ticks, ticks, state, lengths)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        """Write the next tick; see `System.write`."""
        return {"part": choose("part", 0, self.head(hidden))}

    def _read_chunk(
        self, ticks: Ticks, state: TwoStreamState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        lower = self.read_lower(ticks, state, lengths)
        on_host = lower.finished.device.type == "cpu" and not torch.compiler.is_compiling()
        if not on_host or lower.finished.any():
            self.read_whole_tower(lower, state)
        return self.read_upper(lower, state)

    def read_lower(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> LowerStates:
        """First third of `read`: the lower part layers, and the blocks that they finish.

        At most `chunk_ticks`. With a lag, `read_whole_tower` may come after `read_upper`, or run
        beside it and beside later chunks, in order: only the blocks of each row below
        ``after.finished - lag_blocks`` must be published before `read_upper`.
        """
        ids = ticks["part"]
        num_ticks = ids.shape[1]
        x, conv = self.conv(self.embedding(ids), state.conv, lengths=lengths)
        reach = self.part.streaming_reach(state.position, num_ticks, lengths)
        for i in range(self.config.lower_layers):
            x = self.part.layers[i](x, reach, state.part[i])
        start = -state.place[:, None].expand_as(ids)
        grid = lay_blocks(
            self._ends_block(ids),
            start,
            self.config.block_ticks,
            lengths=lengths,
            counted=len(ids) == 1,  # or a row would feel how many blocks the others finish
        )
        blocks = gather_blocks(x, grid, state.pending, state.place)
        read = torch.full_like(state.place, num_ticks) if lengths is None else lengths
        # Where a row reads nothing, its place stays and it finishes nothing.
        place = torch.cat((state.place[:, None], grid.place), 1).gather(1, read[:, None])[:, 0]
        finished = F.pad(grid.finished, (1, 0)).gather(1, read[:, None])[:, 0]
        after = state._replace(
            position=state.position + read,
            conv=conv,
            pending=pending_steps(x, state.pending, state.place, read, place),
            place=place,
            finished=state.finished + finished,
        )
        end_tick = state.position[:, None] + grid.end
        return LowerStates(x, reach, grid, blocks, end_tick, state.finished, finished, after)

    def read_whole_tower(self, lower: LowerStates, state: TwoStreamState) -> None:
        """Second third of `read`, if blocks are finished: the whole tower takes them."""
        num_blocks = lower.blocks.shape[1]
        reach = self.whole.streaming_reach(lower.before, num_blocks, lower.finished)
        compressed = self.compressor(self.block_norm(lower.blocks), lower.grid.real).flatten(-2)
        whole = self.whole_norm(self.whole(self.merge(compressed), reach, state.tower))
        self.steering.publish(whole, lower.end_tick, lower.before, lower.finished, state.published)

    def read_upper(
        self, lower: LowerStates, state: TwoStreamState
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        """Last third of `read`: the upper part layers write under the published whole."""
        span = self._whole_span(lower.before[:, None] + lower.grid.finished, 0)
        guidance = self.steering.streaming(
            state.published, lower.after.finished, lower.grid.place, span, lower.reach
        )
        return self._write_part(lower.x, lower.reach, guidance, state.part), lower.after

    def kept_whole(self, state: TwoStreamState) -> tuple[Tensor, Tensor]:
        """Kept whole states (B, C, D2) and the block of each (B, C), negative in empty slots."""
        kept = state.published.coarse[:, :-1]
        return kept, ring_steps(state.finished, kept.shape[1], kept.shape[1])

    def edit(
        self, state: TwoStreamState, block: Int[Tensor, " B"], whole: Float[Tensor, "B D2"]
    ) -> None:
        """Replace the whole state of one block a row from now on; see `Steering.edit`."""
        self.steering.edit(state.published, state.finished, block, whole)

    def swap(self, state: TwoStreamState, donor: TwoStreamState) -> TwoStreamState:
        """The session of ``state`` going on with a copy of the whole of ``donor``.

        The donor must have at least as many finished blocks; its newer ones are left behind. Each
        block stands where the session's own ended. See `Steering.lend` for the errors.
        """
        published = self.steering.lend(
            donor.published, donor.finished, state.published, state.finished, self.whole.capacity
        )
        tower = tuple(cache.clone() for cache in donor.tower)
        return state._replace(tower=tower, published=published)

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config, ticks = self.config, self.config.block_ticks
        usual = config.usual_block_ticks
        num_blocks = round(num_ticks / usual) if usual else num_ticks // ticks
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

    def shard_units(self) -> list[nn.Module]:
        """Modules that distributed training shards one by one."""
        return [*self.part.layers, *self.whole.layers]
