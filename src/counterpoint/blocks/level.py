"""A level: a coarse tower over the blocks of a finer tower, which it guides.

The layers of the finer tower are split in two. The states of the lower layers of a finished block
go up to the coarse tower. The upper layers are guided by what comes down from it. A level may
itself be guided by a level above it, whose blocks consist of its own steps. Whole rows and chunks
of sessions go through the same functions; they differ only in where a row begins and where its past
is kept.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.block_grid import BlockGrid, gather_blocks, lay_blocks, newest_steps
from counterpoint.blocks.compress import Coded, Compressor, build_compressor
from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.level_state import Cut, LevelState, Start, count_behind
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.recall import Raw, Recall
from counterpoint.blocks.steering import Guidance, Published, Steering, each_step, ring_slots
from counterpoint.blocks.transformer import Branch, Layer, Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.clock import Span, finished_span, first_visible
from counterpoint.tracing import is_traced


class Level(nn.Module):
    """The coarse tower, its compressor, and the links through which it guides the finer tower."""

    config: LevelConfig
    above: "Level | None"
    compressor: Compressor

    def build_level(
        self,
        fine: TowerConfig,
        config: LevelConfig,
        above: tuple[LevelConfig, ...],
        shared: Sequence[Layer] = (),
    ) -> None:
        """Make the modules with random weights.

        Args:
            fine: Shape of the finer tower.
            config: Shape of this level.
            above: Shapes of the levels above it, from the lowest.
            shared: Layers that the coarse towers of all levels use in place of their own.
        """
        width = fine.width
        whole_width = config.whole.width
        self.steps_a_block = config.steps_a_block
        self.block_norm = RMSNorm(width)
        self.compressor = build_compressor(
            config.compressor, width, config.block_ticks, config.num_slots, config.code_levels
        )
        if config.slots_apart:
            self.merge = nn.Linear(width, whole_width, bias=False)
            self.slot = nn.Parameter(torch.zeros(self.steps_a_block, whole_width))
        else:
            self.merge = nn.Linear(self.compressor.num_slots * width, whole_width, bias=False)
        nn.init.normal_(self.merge.weight, std=self.merge.in_features**-0.5)
        self.whole = Tower(config.whole, shared)
        self._own_chunk_blocks = min(
            self.whole.chunk_steps // self.steps_a_block,
            -(-fine.chunk_steps // config.shortest_block),
        )
        self.whole_norm = RMSNorm(whole_width)
        self.steering = Steering(
            fine,
            config,
            self._build_recall(fine, config),
        )
        self.above = None
        if above:
            self.above = Level()
            self.above.config = above[0]
            self.above.build_level(config.whole, above[0], above[1:], shared)

    def _build_recall(self, fine: TowerConfig, config: LevelConfig) -> Recall | None:
        if config.recall is None:
            return None
        shape = config.recall.beneath(config.window_blocks)
        # Besides the kept blocks a session holds those that the lag hides, the unfinished one,
        # and what a chunk has written when its first step reads.
        num_blocks = (shape.kept_blocks or 0) + first_visible(config.lag_blocks)
        self.num_raw_steps = num_blocks * config.block_ticks + fine.chunk_steps
        return Recall(
            fine.width,
            config.coarse_width,
            fine.num_heads,
            shape,
            config.block_ticks,
            config.rope_of(fine),
        )

    def freeze(self) -> None:
        """Keep the weights of the compressor and the coarse tower as they are."""
        for module in (self.block_norm, self.compressor, self.merge, self.whole, self.whole_norm):
            module.requires_grad_(False)
        if self.config.slots_apart:
            self.slot.requires_grad_(False)

    def initial_level(self, batch_size: int) -> LevelState:
        """Return the state before the first step."""
        config = self.config
        like = self.steering.no_plan
        none = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        # The rings hold the plans of the blocks of a chunk and of the blocks that the lag hides,
        # and whole states for a window before the first step of such a chunk.
        num_plans = first_visible(config.lag_blocks) + self._own_chunk_blocks
        num_blocks = config.window_blocks + num_plans
        recall = self.steering.recall
        return LevelState(
            pending=like.new_zeros(batch_size, config.block_ticks, len(like)),
            place=none,
            finished=none.clone(),
            tower=self.whole.initial_state(batch_size),
            published=self.steering.initial_state(batch_size, num_blocks, num_plans),
            above=() if self.above is None else (self.above.initial_level(batch_size),),
            raw=()
            if recall is None
            else (recall.initial_state(batch_size, self.num_raw_steps, num_blocks),),
        )

    def chunk_blocks(self) -> int:
        """Return the largest number of blocks that all rings can take from one chunk."""
        most = self._own_chunk_blocks
        if self.above is not None:
            most_steps = self.above.chunk_blocks() * self.above.config.block_ticks
            most = min(most, most_steps // self.steps_a_block)
        return most

    # Up

    def cut(
        self,
        x: Float[Tensor, "B T D"],
        ends_early: Bool[Tensor, "B T"] | None,
        start: Start,
        state: LevelState | None,
        most: int | None = None,
        longest: int | None = None,
    ) -> Cut:
        """Find the blocks that end within a chunk, and gather their steps.

        Args:
            x: States of the lower layers of the finer tower.
            ends_early: True at steps whose content ends a block; ``None`` if content never ends
                one.
            start: Where the rows begin.
            state: State before the chunk; ``None`` for whole rows.
            most: See `lay_blocks`.
            longest: See `lay_blocks`.
        """
        num_rows, num_steps = x.shape[:2]
        size = self.config.block_ticks
        if state is None:
            pending = x.new_zeros(num_rows, size, x.shape[2])
            place = torch.zeros(num_rows, dtype=torch.long, device=x.device)
            before = place
        else:
            pending = state.pending
            place = state.place
            before = state.finished
        document = -place[:, None].expand(-1, num_steps)
        if start.document is not None:
            document = start.document
        lengths = start.lengths
        grid = lay_blocks(
            ends_early,
            document,
            size,
            lengths=lengths,
            # A session does not count its blocks, or its shapes would depend on the other rows.
            counted=state is None or num_rows == 1,
            most=most,
            longest=longest,
        )
        steps = torch.cat((pending.to(x.dtype), x), 1)
        # The counts start before the chunk, so that a row without real steps keeps its place.
        finished = F.pad(grid.finished, (1, 0))
        places = torch.cat((place[:, None], grid.place), 1)
        count = count_behind(finished, lengths)
        return Cut(
            grid,
            steps,
            end_step=grid.end if start.step is None else start.step[:, None] + grid.end,
            first_block=finished.gather(1, document) if state is None else document.new_zeros(1, 1),
            before=before,
            finished=count,
            pending=newest_steps(steps, size, lengths),
            place=count_behind(places, lengths),
            raw=self._raw(x, grid, count, start, state),
        )

    def _raw(
        self,
        x: Float[Tensor, "B T D"],
        grid: BlockGrid,
        count: Int[Tensor, " B"],
        start: Start,
        state: LevelState | None,
    ) -> Raw | None:
        """Fine steps that may be read again; those of a chunk are written into the rings.

        ``count`` tells how many blocks each row has finished in it.
        """
        recall = self.steering.recall
        if recall is None:
            return None
        x = self.block_norm(x)
        step = torch.arange(x.shape[1], device=x.device)
        size = grid.real.sum(-1)
        if state is None or start.step is None:
            return Raw(recall.reader.remember(x, step[None]), size)
        (raw,) = state.raw
        lengths = start.lengths
        real = None if lengths is None else step < lengths[:, None]
        recall.write(x, start.step[:, None] + step, real, raw)
        capacity = raw.size.shape[1] - 1
        slot = ring_slots(state.finished, count, size.shape[1], capacity)
        raw.size.scatter_(1, slot, size)
        return raw

    def compress(self, cut: Cut) -> Float[Tensor, "B W D2"]:
        """Return the input of the coarse tower for each block, that of all its steps together."""
        slots = self.compressor(*self._blocks(cut))
        if self.config.slots_apart:
            return (self.merge(slots) + self.slot).flatten(-2)
        return self.merge(slots.flatten(-2))

    def codes(self, cut: Cut) -> Int[Tensor, "B W S"]:
        """Return the codes of the slots of each block.

        Raises:
            UserError: Its slots are continuous.
        """
        if not isinstance(self.compressor, Coded):
            raise UserError("Only slots with `code_levels` have codes: this level has none.")
        return self.compressor.codes(*self._blocks(cut))

    def _blocks(self, cut: Cut) -> tuple[Float[Tensor, "B W R D"], Bool[Tensor, "B W R"]]:
        return gather_blocks(self.block_norm(cut.steps), cut.grid), cut.grid.real

    def read_blocks(
        self, compressed: Float[Tensor, "B W D2"], cut: Cut, state: LevelState | None
    ) -> Float[Tensor, "B W D2"]:
        """Return the states of the coarse tower by block, guided by the level above.

        If a block has several steps, their states follow each other.

        Args:
            compressed: Inputs of the coarse tower for each block, from `compress`.
            cut: The blocks that the fine steps are cut into.
            state: State of a session, which is written in place; ``None`` for whole rows.
        """
        num_blocks = compressed.shape[1]
        each = self.steps_a_block
        steps = compressed.unflatten(-1, (each, -1)).flatten(1, 2)
        states = None if state is None else state.tower
        document = None
        before = cut.before * each
        finished = cut.finished * each
        if state is None:
            document = each_step(cut.first_block.gather(1, cut.grid.end) * each, each)
            reach = self.whole.reach(document)
        else:
            reach = self.whole.streaming_reach(before, steps.shape[1], finished)
        if self.above is None or not num_blocks:
            read = self.whole(steps, reach, states)
        else:
            start = Start(document, before, finished)
            over = None if state is None else state.above[0]
            read = self.above.lead(self.whole, steps, reach, states, start, over)
        return self.whole_norm(read).unflatten(1, (num_blocks, each)).flatten(2)

    def lent(self, mine: LevelState, theirs: LevelState, stands: Bool[Tensor, " B"]) -> LevelState:
        """Return the state ``mine`` with a copy of the coarse steps of ``theirs``.

        A donor may have finished more blocks; its newer ones are left out, and each block stands at
        the tick at which the session's own block ended. If there is a level above, both must then
        have finished the same number of blocks. See `Steering.lend` for the other errors.

        Args:
            mine: State of sessions.
            theirs: State of their donors.
            stands: Rows in which both have read equally many ticks. If the numbers of their blocks
                differ, the donor's blocks are taken as they are and stand at their own ticks; the
                unfinished block remains that of the session.
        """
        differs = stands & (theirs.finished != mine.finished)
        finished = torch.where(differs, theirs.finished, mine.finished)
        if self.above is not None and (theirs.finished != finished).any():
            raise UserError(
                "With levels above the whole, a donor must have as many blocks as the session: it "
                f"has {mine.finished.tolist()}, the donor {theirs.finished.tolist()}."
            )
        ends = (theirs.published.end_tick, mine.published.end_tick)
        published = self.steering.lend(
            theirs.published,
            theirs.finished,
            mine.published._replace(end_tick=torch.where(differs[:, None], *ends)),
            finished,
            min(self.whole.capacity // self.steps_a_block, theirs.published.coarse.shape[1] - 1),
        )
        tower, above = deepcopy((theirs.tower, theirs.above))
        return mine._replace(finished=finished, tower=tower, published=published, above=above)

    def advance(self, cut: Cut, state: LevelState) -> None:
        """Feed finished blocks of a session to the coarse tower, if there are any."""
        on_host = cut.finished.device.type == "cpu" and not is_traced()
        if on_host and not cut.finished.any():
            return
        whole = self.read_blocks(self.compress(cut), cut, state)
        self.steering.publish(whole, cut.end_step, cut.before, cut.finished, state.published)

    # Down

    def guidance(
        self,
        published: Published,
        cut: Cut,
        reach: MixerReach,
        *,
        streaming: bool,
        keep: Bool[Tensor, "B 1"] | None = None,
    ) -> Guidance:
        """Return what each fine step may use of the coarse steps.

        Args:
            published: Coarse states of whole rows, or the rings of a session.
            cut: The blocks that the fine steps are cut into.
            reach: What the fine steps may read of their own stream.
            streaming: Whether ``published`` holds rings.
            keep: Rows in which it is False get nothing; ``None`` means all rows get what they may
                use.
        """
        finished = cut.before[:, None] + cut.grid.finished
        readable = finished_span(
            finished, self.config.lag_blocks, cut.first_block, self.config.window_blocks
        )
        if keep is not None:
            readable = Span(readable.start, readable.stop * keep)
        ends = cut.before + cut.finished if streaming else None
        return self.steering.guide(published, readable, cut.grid, reach, ends, cut.raw)

    def write_upper(
        self,
        fine: Tower,
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        guidance: Guidance,
        states: tuple[MixerState, ...] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Apply the upper layers of the finer tower.

        Args:
            fine: The finer tower.
            x: Result of its lower layers.
            reach: What its steps may read of their own stream.
            guidance: What they may use of this level.
            states: States of all layers in a session, which are written in place; ``None`` for
                whole rows.
            weights: List to which the attention weights of each link are appended.
        """
        x = self.steering.add_plan(x, guidance)
        first = self.config.lower_layers
        num_links = len(self.steering.links)
        before: dict[int, Branch] = {
            first + number: partial(self._follow, number, guidance, weights)
            for number in range(num_links)
        }
        if self.steering.recall is not None:
            # Behind the last link, so that what the coarse steps say tells where to look.
            last = first + max(num_links, 1) - 1
            before[last] = partial(self._recall, before.get(last), guidance)
        return fine(x, reach, states, layers=range(first, fine.config.num_layers), before=before)

    def _follow(
        self,
        number: int,
        guidance: Guidance,
        weights: list[Tensor] | None,
        x: Float[Tensor, "B T D"],
    ) -> Float[Tensor, "B T D"]:
        link = self.steering.links[number]
        memory = guidance.memories[number]
        if weights is not None:
            weights.append(link.weights(x, memory, guidance.reach))
        read: Tensor = link(x, memory, guidance.reach)
        return read

    def _recall(
        self, link: Branch | None, guidance: Guidance, x: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Return what the link reads, if there is one, plus what recall reads after it."""
        recall = self.steering.recall
        if recall is None or guidance.recall is None:
            raise AssertionError("recall reads where the level has it")
        if link is None:
            return recall(x, guidance.recall)
        read = link(x)
        return read + recall(x + read, guidance.recall)

    def lead(
        self,
        fine: Tower,
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        states: tuple[MixerState, ...] | None,
        start: Start,
        state: LevelState | None,
    ) -> Float[Tensor, "B T D"]:
        """Apply all layers of a finer tower, guided by this level; states are written in place.

        Args:
            fine: The finer tower.
            x: Its inputs.
            reach: What its steps may read of their own stream.
            states: States of its layers in a session; ``None`` for whole rows.
            start: Where documents and chunks begin.
            state: State of this level in a session; ``None`` for whole rows.
        """
        x = fine(x, reach, states, layers=range(self.config.lower_layers))
        cut = self.cut(x, None, start, state)
        if state is None:
            whole = self.read_blocks(self.compress(cut), cut, None)
            published = self.steering.record(whole, cut.end_step)
        else:
            self.advance(cut, state)
            published = state.published
        guidance = self.guidance(published, cut, reach, streaming=state is not None)
        if state is not None:
            state.pending.copy_(cut.pending)
            state.place.copy_(cut.place)
            state.finished.copy_(cut.before + cut.finished)
        return self.write_upper(fine, x, reach, guidance, states)

    # Costs

    def flops_per_fine_step(self, num_steps: int, num_blocks: int, shortest: int) -> float:
        """Return the forward FLOPs a fine step of this level and of those above it.

        They are those of whole rows as they are computed, masked entries included.

        Args:
            num_steps: Number of fine steps of a row.
            num_blocks: Number of blocks that end in the row.
            shortest: Smallest number of fine steps of a block.
        """
        share = num_blocks / num_steps
        a_block, a_step = self.steering.products(num_steps, num_blocks, shortest)
        a_block += self.steps_a_block * self.merge.weight.numel()
        a_block += self.compressor.products_per_block()
        flops = 2 * (a_step + share * a_block)
        coarse_steps = num_blocks * self.steps_a_block
        a_coarse_step = 0.0
        if num_blocks:
            a_coarse_step += self.whole.flops_per_step(coarse_steps)
        if num_blocks and self.above is not None:
            size = self.above.config.block_ticks
            above = coarse_steps // size
            a_coarse_step += self.above.flops_per_fine_step(coarse_steps, above, size)
        return flops + coarse_steps / num_steps * a_coarse_step

    @property
    def frozen_flops(self) -> float:
        """Forward FLOPs a block of the products with the weights that `freeze` keeps."""
        a_step = 2 * self.merge.weight.numel() + self.whole.weight_flops
        return 2 * self.compressor.products_per_block() + self.steps_a_block * a_step
