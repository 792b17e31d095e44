"""Hierarchical Resolution Transformer (arXiv:2509.20581), in a declared causal variant.

One text is read at several resolutions. Level 0 is the part, with one step a tick; a step of a
higher level stands for a block of the level below. Every level has its own layers. A round goes up
and down once:
    up:    a coarse step reads its own finished block of the level below
    down:  a step reads the newest finished steps of every coarser level, through a learned gate

The paper shows no mask, and its tables could not be retrieved. This file decides what it leaves
open:

1. A step of a level depends on the ticks up to the end of its block, and is read from that tick on.
2. Blocks are aligned to the start of their document; an unfinished block is never read. Those of
   ticks may end early, at given ids or where a router finds an end, which is our addition.
3. A block goes up as the approximation of a lifting wavelet with learned factors, whose inverse is
   exact; the details stay in the level below. ``compressor`` names other ways.
4. Strides are free; (4, 4, 4) is meant for bytes.
5. Every level attends to itself within its own window.
6. On the way down a step reads the ``num_keys`` newest steps of each coarser level, or a null key.
   The mix is ``a y + (1 - a) x``; the learned gate ``a`` of each feature starts near 0.
7. On the way up, from the second round on, a coarse step attends to the states of its own block.
8. There are ``num_rounds`` rounds, each with its own layers: going up and down keeps rule 1.
9. The state at tick t predicts tick t + 1, so a block that ends at t can be read at t.
10. The reconstruction loss rebuilds the ticks of finished blocks, by one linear map a level.
11. Each document of a row starts new blocks on all levels.
12. A coarse level is computed once a block; sessions keep windows and coarse keys in rings.
13. The states of every level are normalised before another level reads them.

Source: arXiv:2509.20581, as reported elsewhere (levels with their own blocks, attention between
neighbouring resolutions, gated fusion, reconstruction). Deviations: all of the above, and reading
from *every* coarser level. Checked against the rule of visibility, the exact inverse of the wavelet
and counted costs (`tests/systems/test_contract.py`, `test_hrt.py`); there is no published code.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.block_grid import is_in_block, spread_blocks
from counterpoint.blocks.boundaries import Boundaries
from counterpoint.blocks.chunk import straight_through
from counterpoint.blocks.compress import Unfold
from counterpoint.blocks.convolution import CausalConvolution
from counterpoint.blocks.cross_attention import Memory
from counterpoint.blocks.level_state import Start
from counterpoint.blocks.loss_sums import LossSums, stream_loss
from counterpoint.blocks.mixer import MixerReach
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.pyramid import (
    Blocks,
    Counts,
    Link,
    Rise,
    fuse,
    keys_scored,
    lay_levels,
    level_views,
)
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.clock import reach_ticks
from counterpoint.streams.spec import UNSET_ID, Role, Ticks
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    check_same_tick,
    in_chunks,
    map_state,
)
from counterpoint.systems.hrt_config import HRTConfig as HRTConfig
from counterpoint.systems.hrt_config import layout_of
from counterpoint.systems.hrt_state import HRTState, Laid
from counterpoint.systems.two_stream_losses import ratio_losses
from counterpoint.tracing import is_traced


def tiny() -> HRTConfig:
    """Return a model of 2.8M parameters, which trains on a laptop in two minutes."""
    return HRTConfig(
        levels=(
            TowerConfig(width=112, num_layers=4, num_heads=4, mlp_hidden=304, window=32),
            TowerConfig(width=160, num_layers=2, num_heads=4, mlp_hidden=432, window=64),
            TowerConfig(width=160, num_layers=2, num_heads=4, mlp_hidden=432, window=64),
        ),
        strides=(4, 4),
        num_rounds=2,
    )


def small() -> HRTConfig:
    """Return a model of about 47M parameters."""
    return HRTConfig(
        levels=(
            TowerConfig(width=384, num_layers=6, num_heads=6, mlp_hidden=1024, window=256),
            TowerConfig(width=512, num_layers=2, num_heads=8, mlp_hidden=1376, window=256),
            TowerConfig(width=512, num_layers=2, num_heads=8, mlp_hidden=1376, window=256),
            TowerConfig(width=512, num_layers=2, num_heads=8, mlp_hidden=1376, window=256),
        ),
        num_rounds=2,
    )


def levels_for(num_ticks: int, window: int, stride: int) -> int:
    """Return the number of levels whose windows together cover rows of ``num_ticks`` ticks.

    ``window`` counts steps of each level, and a step covers ``stride`` steps of the level below.
    The number, and with it the cost of a tick, grows with the logarithm of the length of a row:
    O(n log n) a row.
    """
    levels = 1
    while window * stride ** (levels - 1) < num_ticks:
        levels += 1
    return levels


class HRT(System):
    """A causal language model of one text at several resolutions."""

    Config = HRTConfig
    config: HRTConfig

    def __init__(self, config: HRTConfig) -> None:
        """Make random weights; the head starts at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = layout_of(config)
        fine = config.levels[0]
        rounds = range(config.num_rounds)
        ends_block = torch.zeros(config.vocab_size, dtype=torch.bool)
        ends_block[list(config.boundary_ids)] = True
        self.register_buffer("ends_block", ends_block, persistent=False)
        self.ends_block: Tensor
        self.embedding = nn.Embedding(config.vocab_size, fine.width)
        self.conv = CausalConvolution(fine.width, config.conv_taps)
        self.towers = _modules(Tower(level) for level in config.levels)
        pairs = list(zip(config.levels, config.levels[1:], config.strides, strict=False))
        self.rises = _modules(
            Rise(below, level, stride, config.compressor, config.num_rounds)
            for below, level, stride in pairs
        )
        links = nn.ModuleDict(
            {
                _link(number, reader, source): Link(config.levels[reader], config.levels[source])
                for number in rounds
                for reader in range(len(config.levels))
                for source in range(reader + 1, len(config.levels))
            }
        )
        self.links = cast("Mapping[str, Link]", links)
        self.norm = RMSNorm(fine.width)
        self.head = nn.Linear(fine.width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        learned = config.learned_ends
        self.boundaries = None if learned is None else Boundaries(fine.width, learned)
        if config.reconstruct_weight:
            self.unfolds = _modules(
                Unfold(level.width, below.width, stride) for below, level, stride in pairs
            )

    # Offline

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick; see `System.forward`."""
        levels, _ = self._read_rows(batch)
        return {"part": self.head(self.norm(levels[0]))}

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Return the loss sums of the targets and of the rebuilt blocks; see `System.losses`."""
        levels, laid = self._read_rows(batch)
        losses = {"part": stream_loss(self.head(self.norm(levels[0])), batch.targets["part"])}
        weight = losses["part"].weight
        if self.config.reconstruct_weight and len(levels) > 1:
            ids = batch.ticks["part"]
            written = ids.masked_fill(~is_in_block(laid.blocks[0].grid, ids.shape[1]), UNSET_ID)
            rebuilt = self.head(self.norm(self._rebuilt(levels, laid.blocks)))
            losses["reconstruct"] = stream_loss(rebuilt, written)._replace(weight=weight)
        if laid.ends is not None and self.config.learned_ends is not None:
            losses |= ratio_losses(laid.ends, self.config.learned_ends.ratio, batch, weight)
        return losses

    def loss_factor(self, group: str) -> float:
        """Return the weights of rebuilding and of the ratio; see `System.loss_factor`."""
        learned = self.config.learned_ends
        factors = {
            "reconstruct": self.config.reconstruct_weight,
            "ratio": 0.0 if learned is None else learned.loss_weight,
            "share": 0.0,
        }
        return factors.get(group, 1.0)

    def _rebuilt(self, levels: list[Tensor], blocks: list[Blocks]) -> Float[Tensor, "B T D"]:
        """Return rebuilt states of the ticks of finished blocks, from the coarsest level down."""
        state = levels[-1]
        for level in range(len(levels) - 1, 0, -1):
            below = levels[level - 1]
            unfolded = self.unfolds[level - 1](state).to(below.dtype)
            state = spread_blocks(unfolded, blocks[level - 1].grid, below.shape[1])
            # A step whose block is not finished gets nothing from the levels above.
            state = state + below if level > 1 else state
        return state

    # The same code for whole rows and for chunks of sessions

    def _read_rows(self, batch: Batch) -> tuple[list[Tensor], Laid]:
        """Return the states of all levels that have steps, and the blocks."""
        ids = batch.ticks["part"]
        start = batch.document_start
        age = torch.arange(ids.shape[1], device=ids.device) - start
        x, _ = self.conv(self.embedding(ids), age=age)
        reaches = [self.towers[0].reach(start)]
        laid = self._lay(ids, x, reaches[0], Start(document=start, lengths=batch.lengths), None)
        for blocks, tower in zip(laid.blocks, self.towers[1:], strict=False):
            if blocks.has_steps:
                reaches.append(tower.reach(blocks.first.gather(1, blocks.grid.end)))
        levels, _ = self._rounds(laid, reaches, None)
        return levels, laid

    def _lay(
        self,
        ids: Int[Tensor, "B T"],
        x: Float[Tensor, "B T D"],
        reach: MixerReach,
        start: Start,
        state: HRTState | None,
    ) -> Laid:
        """Run the first layers of the finest level, and find the blocks that end."""
        config = self.config
        tower = self.towers[0]
        size = tower.config.num_layers // config.num_rounds
        x = tower(x, reach, None if state is None else state.towers[0], layers=range(size))
        early = self.ends_block[ids] if config.boundary_ids else None
        ends = None
        most = config.graph_blocks if is_traced() and state is None else None
        if self.boundaries is not None:
            newest = None if state is None else state.pending[0][0][:, -1]
            found = None if state is None else state.ends[0]
            ends, early = self.boundaries(self.rises[0].norms[0](x), start, newest, found)
            if state is None:
                most = self.boundaries.config.most_blocks(x.shape[1], config.strides[0])
        counts = self._counts(len(x)) if state is None else state.counts
        shape = (x.shape[0], x.shape[1])
        blocks = lay_levels(
            shape, config.strides, start.document, start.lengths, counts, early, most
        )
        return Laid(x, blocks, ends)

    def _rounds(
        self, laid: Laid, reaches: list[MixerReach], state: HRTState | None
    ) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        """Run all rounds, but for the first layers, over the levels that have steps in the chunk.

        ``reaches`` has one entry for each of these levels. The coarse keys of a session are updated
        in place.

        Returns:
            The states of these levels, and the pending states of each such level by round.
        """
        config = self.config
        x, blocks, _ = laid
        views = level_views(
            blocks,
            reaches,
            self._counts(len(x)) if state is None else state.counts,
            config.num_keys,
            None if state is None else self._capacities(),
        )
        memories = self._memories(len(x), state)
        pending: list[tuple[Tensor, ...]] = [() for _ in blocks]
        gathered: list[Tensor] = [x] * len(blocks)
        levels = [x]
        # A factor of 1 at level 0, whose gradient trains the router's confidence.
        sure = [self._sure(laid, state), *[1.0] * len(self.config.strides)]
        for number in range(config.num_rounds):
            for level, (reach, tower) in enumerate(zip(reaches, self.towers, strict=False)):
                if level:
                    rise = self.rises[level - 1]
                    taken = (gathered[level - 1], blocks[level - 1].grid.real)
                    if number:
                        levels[level] = rise.gather(number, levels[level], *taken)
                    else:
                        levels.append(rise.compress(*taken))
                if level or number:  # `_lay` has run the first layers
                    size = tower.config.num_layers // config.num_rounds
                    own = range(number * size, (number + 1) * size)
                    states = None if state is None else state.towers[level]
                    levels[level] = tower(levels[level], reach, states, layers=own)
                if level < len(blocks):
                    kept = self._kept(x, level, number, state)
                    fine = self.rises[level].norms[number](levels[level])
                    gathered[level], left = blocks[level].take(fine, kept)
                    pending[level] = (*pending[level], left)
            for level in reversed(range(len(reaches))):
                for source in reversed(range(level + 1, len(self.towers))):
                    key = _link(number, level, source)
                    link = self.links[key]
                    read = link.attention(levels[level], memories[key], views[level, source].reach)
                    levels[level] = fuse(levels[level], read * sure[level], link.gate)
                for reader in range(level):
                    key = _link(number, reader, level)
                    memory = self.links[key].remember(levels[level], views[reader, level].end)
                    memories[key] = views[reader, level].keep(memory, memories[key])
        return levels, pending

    def _sure(self, laid: Laid, state: HRTState | None) -> Tensor | float:
        """Return ones whose gradient goes to the confidence about the ends of blocks."""
        if laid.ends is None or state is not None:
            return 1.0
        return straight_through(laid.ends.confidence)[..., None]

    def _kept(self, x: Tensor, level: int, number: int, state: HRTState | None) -> Tensor:
        """Return the newest states of a level before the chunk; its unfinished block is last."""
        if state is not None:
            return state.pending[level][number]
        return x.new_zeros(len(x), self.config.strides[level], self.config.levels[level].width)

    def _memories(self, num_rows: int, state: HRTState | None) -> dict[str, Memory]:
        """Return the keys of coarse steps before the chunk; for whole rows only the unread slot."""
        if state is not None:
            return dict(zip(self.links, state.memories, strict=True))
        return {key: link.no_memory(num_rows) for key, link in self.links.items()}

    # Streaming

    @property
    def chunk_ticks(self) -> int:
        """Largest number of ticks that the rings can take at once; `read` cuts longer calls."""
        periods = (self.config.least_ticks(level) for level in range(len(self.towers)))
        return min(t.chunk_steps * p for t, p in zip(self.towers, periods, strict=True))

    def _capacities(self) -> tuple[int, ...]:
        """Return how many steps of each coarse level are kept: of a chunk, and read before it."""
        chunk = self.chunk_ticks
        periods = (self.config.least_ticks(level) for level in range(1, len(self.towers)))
        return tuple(self.config.num_keys + chunk // period + 1 for period in periods)

    def _counts(self, num_rows: int) -> Counts:
        """Return the counts before the first tick."""
        none = torch.zeros(num_rows, dtype=torch.long, device=self.device)
        coarse = range(len(self.config.strides))
        zeros = tuple(none.clone() for _ in coarse)
        return Counts(none, zeros, tuple(none.clone() for _ in coarse))

    @property
    def window_ticks(self) -> int:
        """Reach of the level that reaches furthest; see `System.window_ticks`."""
        streams = (*self.layout.predicted, *self.layout.by_role(Role.WHOLE))
        towers = zip(streams, self.config.levels, strict=True)
        return max(
            reach_ticks(stream, max(tower.window, self.config.num_keys)) for stream, tower in towers
        )

    def initial_state(self, batch_size: int) -> HRTState:
        """Return the state before the first tick; see `System.initial_state`."""
        config = self.config
        capacities = self._capacities()
        new = self.embedding.weight.new_zeros
        memories = (
            link.no_memory(batch_size, capacities[_source(key) - 1])
            for key, link in self.links.items()
        )
        return HRTState(
            counts=self._counts(batch_size),
            conv=self.conv.initial_state(batch_size),
            towers=tuple(tower.initial_state(batch_size) for tower in self.towers),
            pending=tuple(
                tuple(new(batch_size, stride, below.width) for _ in range(config.num_rounds))
                for stride, below in zip(config.strides, config.levels, strict=False)
            ),
            memories=tuple(memories),
            ends=() if self.boundaries is None else (self._counts(batch_size).position,),
        )

    def read(
        self, ticks: Ticks, state: HRTState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], HRTState]:
        """Read the next ticks; see `System.read`."""
        return in_chunks(self._read_chunk, self.chunk_ticks, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: HRTState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D"], HRTState]:
        ids = ticks["part"]
        x, conv = self.conv(self.embedding(ids), state.conv, lengths=lengths)
        counts = state.counts
        reaches = [self.towers[0].streaming_reach(counts.position, x.shape[1], lengths)]
        start = Start(step=counts.position, lengths=lengths)
        laid = self._lay(ids, x, reaches[0], start, state)
        for blocks, tower in zip(laid.blocks, self.towers[1:], strict=False):
            if blocks.has_steps:
                width = blocks.grid.end.shape[1]
                reaches.append(tower.streaming_reach(blocks.before, width, blocks.finished))
        levels, pending = self._rounds(laid, reaches, state)
        num_ticks = x.shape[1] if lengths is None else lengths
        after = state._replace(
            counts=counts.after(laid.blocks, num_ticks),
            conv=conv,
            pending=(*pending, *state.pending[len(laid.blocks) :]),
            ends=() if laid.ends is None else (state.ends[0] + laid.ends.number,),
        )
        return self.norm(levels[0]), after

    def swap(self, state: HRTState, donor: HRTState) -> HRTState:
        """Exchange everything above level 0; see `System.swap`.

        Level 0 keeps its own window and its unfinished block.
        """
        check_same_tick(state.counts.position, donor.counts.position)
        theirs = map_state(torch.Tensor.clone, donor)
        place = (state.counts.place[0], *theirs.counts.place[1:])
        return state._replace(
            counts=state.counts._replace(finished=theirs.counts.finished, place=place),
            towers=(state.towers[0], *theirs.towers[1:]),
            pending=(state.pending[0], *theirs.pending[1:]),
            memories=theirs.memories,
        )

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, " B"]]:
        """Write the next tick; see `System.write`."""
        return {"part": choose("part", 0, self.head(hidden))}

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config = self.config
        rebuilds = training and config.reconstruct_weight
        head = 2 * self.head.weight.numel()
        total = head * num_ticks
        by_level = self._steps(num_ticks)
        if self.boundaries is not None:
            total += 2 * self.boundaries.products() * num_ticks
        if rebuilds and by_level[1]:
            total += head * num_ticks
        for level, (steps, tower) in enumerate(zip(by_level, self.towers, strict=True)):
            if not steps:
                break
            total += steps * tower.flops_per_step(steps)
            for key, link in self.links.items():
                if _reader(key) == level:
                    source = _source(key)
                    shortest = config.least_ticks(source) // config.least_ticks(level)
                    read = keys_scored(steps, by_level[source], config.num_keys, shortest)
                    total += steps * link.flops_per_step(read)
                if _source(key) == level:
                    total += steps * 2 * link.attention.key_value.weight.numel()
            if level:
                total += steps * self.rises[level - 1].flops_per_step()
            if level and rebuilds:
                total += steps * 2 * self.unfolds[level - 1].unfold.weight.numel()
        return total / num_ticks * (3 if training else 1)

    def _steps(self, num_ticks: int) -> list[int]:
        """Return the number of steps of every level in rows of ``num_ticks`` usual ticks."""
        config = self.config
        steps = num_ticks // config.strides[0]
        if self.boundaries is not None:  # as many as there is room for
            steps = self.boundaries.config.most_blocks(num_ticks, config.strides[0])
        elif config.usual_block_ticks:
            steps = round(num_ticks / config.usual_block_ticks)
        found = [num_ticks, steps]
        for stride in config.strides[1:]:
            found.append(found[-1] // stride)
        return found


def _link(number: int, reader: int, source: int) -> str:
    """Return the name of the link through which a level reads a coarser level in a round."""
    return f"round{number}_level{reader}_reads{source}"


def _reader(key: str) -> int:
    return int(key.split("_level")[1].split("_")[0])


def _source(key: str) -> int:
    return int(key.split("_reads")[1])


def _modules(modules: Iterable[nn.Module]) -> Any:
    """Return a `nn.ModuleList`, typed so that its items are not plain modules."""
    return nn.ModuleList(modules)
