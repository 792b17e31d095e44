"""Our two-stream language model: a thin part tower writes under the plan of a wide whole tower.

The part stream (bytes) has a step every tick, the whole stream a step for every block of ticks:

    part, lower layers  ->  compressor of the finished block  ->  whole tower
    part, upper layers  <-  plan of the newest whole state, and cross-attention to all whole states

Both towers are causal and explicit: the whole can be read, kept, edited and swapped while the model
generates. With ``lag_blocks >= 1`` a whole state is used only that many blocks later, so that the
whole tower can run at the same time as the part tower instead of before its next step.

Source: the project's own design. Related work: MegaByte (arXiv:2305.07185) for plans, SpaceByte
(arXiv:2404.14408) for blocks that end at spaces, DLCM (arXiv:2512.24617) for cross-attention to
concepts. Checked against the rule of visibility (`tests/systems/test_contract.py`).
"""

from collections.abc import Collection
from copy import deepcopy
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import ring_steps
from counterpoint.blocks.block_grid import is_in_block, spread_blocks
from counterpoint.blocks.boundaries import Boundaries
from counterpoint.blocks.chunk import straight_through
from counterpoint.blocks.compress import Unfold
from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.level import Level
from counterpoint.blocks.level_state import Start
from counterpoint.blocks.loss_sums import LossSums, stream_loss
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.notes import Notes, held_notes
from counterpoint.blocks.steering import Guidance, Published
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import first_visible, reach_ticks
from counterpoint.streams.spec import UNSET_ID, Role, Ticks
from counterpoint.systems.contract import Choose, Logits, State, System, in_chunks, map_state
from counterpoint.systems.two_stream_config import WHOLE_TEXT, BlockLengths, layout_of, levels_of
from counterpoint.systems.two_stream_config import TwoStreamConfig as TwoStreamConfig
from counterpoint.systems.two_stream_losses import (
    ChangeText,
    in_next_blocks,
    led_text,
    loss_factors,
    next_rows,
    obeyed,
    ratio_losses,
    text_loss,
)
from counterpoint.systems.two_stream_state import LowerStates, Reading, TwoStreamState
from counterpoint.tracing import is_traced

WORDS = (ord(" "), ord("\n"))  # bytes that end a word


def tiny() -> TwoStreamConfig:
    """Return a model of 2.6M parameters, which trains on a laptop in two minutes."""
    return TwoStreamConfig(
        part=TowerConfig(width=128, num_layers=4, num_heads=4, mlp_hidden=320, window=32),
        whole=TowerConfig(width=192, num_layers=3, num_heads=3, mlp_hidden=512, window=64),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
        whole_dropout=0.0,
    )


def small() -> TwoStreamConfig:
    """Return a model of about 30M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=384, num_layers=6, num_heads=6, mlp_hidden=1024, window=256),
        whole=TowerConfig(width=640, num_layers=3, num_heads=10, mlp_hidden=1712, window=512),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
    )


def base() -> TwoStreamConfig:
    """Return a model of about 149M parameters."""
    return TwoStreamConfig(
        part=TowerConfig(width=640, num_layers=8, num_heads=10, mlp_hidden=1712, window=256),
        whole=TowerConfig(width=1152, num_layers=6, num_heads=18, mlp_hidden=3072, window=1024),
        lower_layers=2,
        boundary_ids=WORDS,
        usual_block_ticks=4.6,
    )


class TwoStream(System, Level):
    """A part tower and a whole tower that run at two rates and guide each other.

    The class is itself the level of its whole, so that the names of its weights do not depend on
    the number of levels.
    """

    Config = TwoStreamConfig
    config: TwoStreamConfig
    free_fields = System.free_fields | {"ramp"}
    tick_stages: ClassVar[tuple[str, ...]] = ("read_lower", "read_whole_tower", "read_upper")

    def __init__(self, config: TwoStreamConfig) -> None:
        """Make random weights; the head starts at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = layout_of(config)
        self.step_lengths = config.lengths_at(config.block_ticks)  # in a step of a training
        width = config.part.width
        ticks = config.block_ticks
        ends_block = torch.zeros(config.vocab_size, dtype=torch.bool)
        ends_block[list(config.boundary_ids)] = True
        self.register_buffer("ends_block", ends_block, persistent=False)
        self.ends_block: Tensor
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.conv = CausalConvolution(width, config.conv_taps)
        self.part = Tower(config.part)
        shared = tuple(self.part.layers) if config.shared_layers else ()
        self.build_level(config.part, config, config.levels, shared)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        learned = config.learned_ends
        self.boundaries = None if learned is None else Boundaries(width, learned)
        self.notes = None if config.text is None else Notes(width, config.text)
        if config.reconstruct_weight:
            self.reconstructor = Unfold(config.coarse_width, width, ticks)
        if config.whole_control == "frozen":
            self.freeze()

    # Offline

    def forward(self, batch: Batch, whole: Float[Tensor, "B W D2"] | None = None) -> Logits:
        """Score the next element at every tick; see `System.forward`.

        Args:
            batch: Rows of ticks.
            whole: Whole states in place of the model's own, for example edited ones.
        """
        lower = self._read_rows(batch)
        if whole is None:
            whole, lower = self._read_whole(lower)
        else:
            num_rows, num_blocks = lower.cut.end_step.shape
            expected = (num_rows, num_blocks, self.config.coarse_width)
            got = tuple(whole.shape)
            if expected != got:
                raise UserError(f"`whole` must hold all blocks: expected {expected}, got {got}.")
        guidance = self._guidance(lower, self.steering.record(whole, lower.cut.end_step))
        hidden = self._write_part(lower, guidance)
        notes = (batch.elements or batch.targets).get(WHOLE_TEXT)
        if self.notes is None or notes is None:
            return {"part": self.head(hidden)}
        text = self.notes.scores(hidden, notes)
        followed = self.notes.follow(hidden, self._led_by(None)(notes))
        return {WHOLE_TEXT: text, "part": self.head(followed)}

    def read_whole(self, batch: Batch) -> Reading:
        """Return the whole states and how the part stream used them.

        Raises:
            UserError: The model has no links.
        """
        if not self.steering.links:
            raise UserError("Attention is shown by links: expected `num_links` >= 1, got 0.")
        lower = self._read_rows(batch)
        whole, lower = self._read_whole(lower)
        weights: list[Tensor] = []
        guidance = self._guidance(lower, self.steering.record(whole, lower.cut.end_step))
        self._write_part(lower, guidance, weights=weights)
        by_step = torch.stack(weights).mean((0, 2))
        by_block = by_step[..., 1:].unflatten(-1, (whole.shape[1], self.steps_a_block)).sum(-1)
        attention = torch.cat((by_step[..., :1], by_block), -1)
        return Reading(whole, attention, lower.cut.grid.finished)

    @torch.no_grad()
    def read_codes(self, batch: Batch) -> Int[Tensor, "B W S"]:
        """Return the codes of all blocks, one for each slot: all that the whole knows of the text.

        Raises:
            UserError: The whole has no `code_levels`.
        """
        return self.codes(self._read_rows(batch).cut)

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Return the loss sums of the targets and the whole's own losses; see `System.losses`."""
        ids = batch.ticks["part"]
        targets = batch.targets["part"]
        config = self.config
        keep = torch.rand(len(ids), 1, device=ids.device) >= config.whole_dropout
        kept = keep if self.training else None
        lower = self._read_rows(batch, kept)
        compressed = self.compress(lower.cut)
        own = self.read_blocks(compressed, lower.cut, None)
        whole, guided = self._shown(own, lower)
        published = self.steering.record(whole, guided.cut.end_step)
        guidance = self._guidance(guided, published, kept)
        hidden = self._write_part(lower, guidance)
        losses: dict[str, LossSums] = {}
        if self.notes is not None and WHOLE_TEXT in batch.targets:
            losses[WHOLE_TEXT], hidden = text_loss(
                self.notes, hidden, batch, config.block_ticks, self._led_by(kept)
            )
        losses["part"] = stream_loss(self.head(hidden), targets)
        weight = losses["part"].weight
        if config.predict_weight:
            planned = targets.masked_fill(~guidance.has_plan, UNSET_ID)
            predicted = stream_loss(self.head(self.norm(guidance.plan)), planned)
            losses["predict"] = predicted._replace(weight=weight)
        if config.reconstruct_weight:
            grid = lower.cut.grid
            written = ids.masked_fill(~is_in_block(grid, ids.shape[1]), UNSET_ID)
            source = own if config.reconstruct_from == "whole" else compressed
            rebuilt = spread_blocks(self.reconstructor(source), grid, ids.shape[1])
            rebuilding = stream_loss(self.head(self.norm(rebuilt)), written)
            losses["reconstruct"] = rebuilding._replace(weight=weight)
        learned = self._lengths(self.training).learned
        if lower.ends is not None and learned is not None:
            losses |= ratio_losses(lower.ends, learned.ratio, batch, weight)
        return losses

    def loss_factor(self, group: str) -> float:
        """Return the weights of the whole's own losses; see `System.loss_factor`."""
        return loss_factors(self.config).get(group, 1.0)

    def stages(self, num_steps: int) -> tuple[int, ...]:
        """Return where blocks become longer in a training; see `System.stages`."""
        return self.config.ramp.starts(self.config.block_ticks, num_steps)

    def at_step(self, step: int, num_steps: int) -> None:
        """Train with the blocks of a step; see `System.at_step`."""
        longest = self.config.ramp.ticks_at(self.config.block_ticks, step, num_steps)
        self.step_lengths = self.config.lengths_at(longest)

    def _lengths(self, training: bool) -> BlockLengths:
        """Return the lengths of blocks, in the current step of a training or afterwards."""
        return self.step_lengths if training else self.config.lengths_at(self.config.block_ticks)

    # The same code for whole rows and for chunks of sessions

    def _read_rows(self, batch: Batch, keep: Bool[Tensor, "B 1"] | None = None) -> LowerStates:
        """Run the lower part layers on whole rows; rows in which ``keep`` is False get no text."""
        ids = batch.ticks["part"]
        start = batch.document_start
        age = torch.arange(ids.shape[1], device=ids.device) - start
        x, _ = self.conv(self.embedding(ids), age=age)
        if self.notes is not None and WHOLE_TEXT in batch.ticks:
            notes = self._led_by(keep)(batch.ticks[WHOLE_TEXT])
            nothing = torch.full_like(notes[:, 0], UNSET_ID)
            x = x + self.notes.embed(held_notes(notes, nothing, start)[:, 1:])
        return self._read_part(ids, x, self.part.reach(start), Start(start, None, batch.lengths))

    def _read_part(
        self,
        ids: Int[Tensor, "B T"],
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        start: Start,
        state: TwoStreamState | None = None,
    ) -> LowerStates:
        """Run the lower part layers, and find the blocks that they finish."""
        states, level = (None, None) if state is None else (state.part, state.whole)
        x = self.part(x, reach, states, layers=range(self.config.lower_layers))
        most = self.config.graph_blocks if is_traced() and state is None else None
        lengths = self._lengths(self.training and state is None)
        ends = None
        early = self.ends_block[ids] if self.config.boundary_ids else None
        if self.boundaries is not None:
            newest = None
            found = None
            if state is not None:
                newest = state.whole.pending[:, -1]
                (found,) = state.ends
            ends, early = self.boundaries(x, start, newest, found, lengths.learned)
            if state is None:
                most = lengths.num_blocks(x.shape[1])
        cut = self.cut(x, early, start, level, most, lengths.longest)
        return LowerStates(x, reach, cut, cut.before, cut.finished, None, ends)

    def _led_by(self, keep: Bool[Tensor, "B 1"] | None) -> ChangeText:
        """Return the function from the rows' text to the text that guides them; see `led_text`."""
        shuffled = self.config.whole_control == "shuffled"
        return partial(led_text, keep=keep, shuffled=shuffled)

    def _read_whole(self, lower: LowerStates) -> tuple[Float[Tensor, "B W D2"], LowerStates]:
        """Return the whole states that guide each of the whole rows; see `_shown`."""
        return self._shown(self.read_blocks(self.compress(lower.cut), lower.cut, None), lower)

    def _shown(self, whole: State, lower: LowerStates) -> tuple[State, LowerStates]:
        """Return the whole that guides each row, given its own, and the rows in its blocks."""
        if self.config.whole_control != "shuffled":
            return whole, lower
        return map_state(next_rows, whole), in_next_blocks(lower)

    def _guidance(
        self, lower: LowerStates, published: Published, keep: Bool[Tensor, "B 1"] | None = None
    ) -> Guidance:
        """Return what every tick may use of the whole: nothing in rows where ``keep`` is False."""
        streaming = lower.after is not None
        guidance = self.guidance(published, lower.cut, lower.reach, streaming=streaming, keep=keep)
        if lower.ends is None or streaming:
            return guidance
        # The factor is 1; its gradient trains how confident the router is about the ends of blocks.
        sure = straight_through(lower.ends.confidence)[..., None].to(guidance.plan.dtype)
        return guidance._replace(plan=guidance.plan * sure)

    def _write_part(
        self,
        lower: LowerStates,
        guidance: Guidance,
        states: tuple[MixerState, ...] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the upper part layers and the norm; append the links' attention to ``weights``."""
        read = obeyed(guidance, self.config)
        return self.norm(self.write_upper(self.part, lower.x, lower.reach, read, states, weights))

    # Streaming

    @property
    def window_ticks(self) -> int:
        """Reach of the part tower or of a whole; see `System.window_ticks`."""
        streams = [stream for stream in self.layout.by_role(Role.WHOLE) if not stream.predicted]
        reached = [
            reach_ticks(stream, level.whole.reach_steps // level.steps_a_block)
            for stream, level in zip(streams, levels_of(self.config), strict=True)
        ]
        return max(self.config.part.window, *reached)

    @property
    def usable_blocks(self) -> int:
        """Number of blocks to be finished before one is read; see `HasWhole.usable_blocks`."""
        return first_visible(self.config.lag_blocks)

    def finished_blocks(self, state: TwoStreamState) -> Int[Tensor, " B"]:
        """Return the blocks that each session has finished; see `HasWhole.finished_blocks`."""
        return state.whole.finished

    def initial_state(self, batch_size: int) -> TwoStreamState:
        """Return the state before the first tick; see `System.initial_state`."""
        return TwoStreamState(
            position=self._zeros(batch_size),
            conv=self.conv.initial_state(batch_size),
            part=self.part.initial_state(batch_size),
            whole=self.initial_level(batch_size),
            text=() if self.notes is None else (self._zeros(batch_size, self.notes.depth),),
            ends=() if self.boundaries is None else (self._zeros(batch_size),),
        )

    def _zeros(self, *shape: int) -> Int[Tensor, "*B"]:
        return torch.zeros(*shape, dtype=torch.long, device=self.device)

    @property
    def chunk_ticks(self) -> int:
        """Largest number of ticks that the rings can take at once; `read` cuts longer calls."""
        return min(self.part.chunk_steps, self.chunk_blocks() * self.config.shortest_block)

    def read(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        """Read the next ticks; see `System.read`."""
        return in_chunks(self._read_chunk, self.chunk_ticks, ticks, state, lengths)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the text of the whole, if it is due, and the next tick; see `System.write`."""
        written: dict[str, Tensor] = {}
        if self.notes is not None:
            written[WHOLE_TEXT] = self.notes.write(hidden, partial(choose, WHOLE_TEXT))
            hidden = self.notes.follow(hidden, self._led_by(None)(written[WHOLE_TEXT]))
        written["part"] = choose("part", 0, self.head(hidden))
        return written

    def _read_chunk(
        self, ticks: Ticks, state: TwoStreamState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        lower = self.read_lower(ticks, state, lengths)
        on_host = lower.finished.device.type == "cpu" and not is_traced()
        if not on_host or lower.finished.any():
            self.read_whole_tower(lower, state)
        return self.read_upper(lower, state)

    def read_lower(
        self, ticks: Ticks, state: TwoStreamState, lengths: Int[Tensor, " B"] | None = None
    ) -> LowerStates:
        """Run the first third of `read`: the lower part layers, and the blocks that they finish.

        A chunk has at most `chunk_ticks`. With a lag, `read_whole_tower` may come after
        `read_upper`, or run in another thread during this and later chunks, in order. Only the
        blocks of each row that are visible after the chunk must be published before `read_upper`.
        """
        ids = ticks["part"]
        num_ticks = ids.shape[1]
        x, conv = self.conv(self.embedding(ids), state.conv, lengths=lengths)
        text = state.text
        if self.notes is not None:
            held = held_notes(ticks[WHOLE_TEXT], text[0] - 1)
            x = x + self.notes.embed(self._led_by(None)(held[:, 1:]))
            row = torch.arange(len(held), device=held.device)
            text = (held[row, -1 if lengths is None else lengths] + 1,)
        reach = self.part.streaming_reach(state.position, num_ticks, lengths)
        start = Start(step=state.position, lengths=lengths)
        lower = self._read_part(ids, x, reach, start, state)
        whole = state.whole._replace(
            pending=lower.cut.pending,
            place=lower.cut.place,
            finished=lower.before + lower.finished,
        )
        position = state.position + (num_ticks if lengths is None else lengths)
        ends = state.ends
        if lower.ends is not None:
            ends = (ends[0] + lower.ends.number,)
        return lower._replace(after=TwoStreamState(position, conv, state.part, whole, text, ends))

    def read_whole_tower(self, lower: LowerStates, state: TwoStreamState) -> None:
        """Run the second third of `read`, if blocks are finished: feed them to the whole tower."""
        whole = self.read_blocks(self.compress(lower.cut), lower.cut, state.whole)
        self.steering.publish(
            whole, lower.cut.end_step, lower.before, lower.finished, state.whole.published
        )

    def read_upper(
        self, lower: LowerStates, state: TwoStreamState
    ) -> tuple[Float[Tensor, "B T D"], TwoStreamState]:
        """Run the last third of `read`: the upper part layers, guided by the published whole."""
        if lower.after is None:
            raise AssertionError("`read_lower` of a session gives the state after it")
        published, guided = self._shown(state.whole.published, lower)
        return self._write_part(lower, self._guidance(guided, published), state.part), lower.after

    def kept_whole(self, state: TwoStreamState) -> tuple[Tensor, Tensor]:
        """Return the kept whole states (B, C, D2) and their blocks (B, C), < 0 in empty slots."""
        kept = state.whole.published.coarse[:, :-1]
        return kept, ring_steps(state.whole.finished, kept.shape[1], kept.shape[1])

    def edit(
        self, state: TwoStreamState, block: Int[Tensor, " B"], whole: Float[Tensor, "B D2"]
    ) -> None:
        """Replace the whole state of one block a row from now on; see `Steering.edit`."""
        self.steering.edit(state.whole.published, state.whole.finished, block, whole)

    def swap(self, state: TwoStreamState, donor: TwoStreamState) -> TwoStreamState:
        """Return the session ``state`` with a copy of the whole of ``donor`` in place of its own.

        A donor that has read as many ticks may have any number of blocks, except with recall, which
        reads the session's own ticks again. Others need as many as the session or more; see
        `Level.lent`. The donor's newest text replaces the session's as well.
        """
        stands = (state.position == donor.position) & (not state.whole.raw)
        lent = self.lent(state.whole, donor.whole, stands)
        return state._replace(whole=lent, text=deepcopy(donor.text))

    def tell(self, state: TwoStreamState, notes: Int[Tensor, "B K"]) -> None:
        """Replace the text of the whole that guides the part from now on.

        The new text holds until the next one is written. If all its ids are unset, no text holds.

        Raises:
            UserError: The whole is not written as text.
        """
        if not state.text:
            raise UserError("Only a whole that is written as `text` can be told one: it is not.")
        state.text[0].copy_(notes + 1)

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config = self.config
        lengths = self._lengths(training)
        num_blocks = lengths.num_blocks(num_ticks)
        forward = self.part.flops_per_step(num_ticks)
        if self.boundaries is not None:
            forward += 2 * self.boundaries.products()
        shortest = 1 if config.ends_early else lengths.longest
        forward += self.flops_per_fine_step(num_ticks, num_blocks, shortest)
        head = 2 * self.head.weight.numel()
        forward += head
        if self.notes is not None and (predicted is None or WHOLE_TEXT in predicted):
            # In training the text is scored and followed only at ticks where it may stand.
            share = num_blocks / num_ticks if training else 1.0
            forward += share * (self.notes.flops_to_write() + self.notes.flops_to_follow())
        if training and config.predict_weight:
            forward += head
        if training and config.reconstruct_weight:
            a_block = 2 * self.reconstructor.unfold.weight.numel()
            forward += head + a_block * num_blocks / num_ticks
        if training and config.whole_control == "frozen":
            # Frozen weights have no gradient of their own, but gradients flow through them.
            return 3 * forward - self.frozen_flops * num_blocks / num_ticks
        return forward * (3 if training else 1)
