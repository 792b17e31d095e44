"""One causal tower over interleaved chunks of what is thought, spoken and heard.

The shape of SHANKS (arXiv:2510.06917), section 2.1: a tick is a chunk, and thought and speech come
one tick late, while the next chunk is heard. The padding id fills chunks up and takes no place.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from counterpoint.blocks.depth import CodebookEmbedding
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.streams.interleave import interleave
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Choose, Logits, System, SystemConfig, in_chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class InterleavedConfig(SystemConfig):
    tower: TowerConfig
    vocab_size: int
    depths: tuple[int, int, int]  # most elements of a chunk that is thought, spoken, heard


class InterleavedState(NamedTuple):
    position: Tensor  # elements read: (B,)
    hidden: Tensor  # the newest state: (B, D)
    caches: tuple[Any, ...]


class Interleaved(System):
    Config = InterleavedConfig
    NOTHING = 0  # padding id of every stream
    writes_with_tower = True

    def __init__(self, config: InterleavedConfig) -> None:
        super().__init__()
        size, width = config.vocab_size, config.tower.width
        every: dict[str, Any] = {"vocab_size": size, "padding_id": self.NOTHING}
        late: dict[str, Any] = {**every, "delay_ticks": 1, "predicted": True}
        of_thought, of_spoken, of_heard = config.depths
        thought = Stream(name="thought", role=Role.THOUGHT, depth=of_thought, **late)
        spoken = Stream(name="spoken", role=Role.SPOKEN, depth=of_spoken, **late)
        heard = Stream(name="heard", role=Role.HEARD, depth=of_heard, initial_id=size, **every)
        self.config, self.layout = config, Layout(streams=(thought, spoken, heard))
        # Elements of a frame before those of each stream.
        self.first = {"thought": 0, "spoken": of_thought, "heard": of_thought + of_spoken}
        self.num_elements = sum(config.depths)
        self.table = CodebookEmbedding(self.num_elements, size + 1, width)
        self.tower, self.norm = Tower(config.tower), RMSNorm(width)
        self.turns = nn.Parameter(torch.zeros(self.first["heard"], width))  # which element is due
        self.head = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.head.weight)

    def embed(self, ticks: Ticks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Ids of what stands in the chunks, and their embeddings."""
        ids = {name: ids.masked_fill(ids == self.NOTHING, UNSET_ID) for name, ids in ticks.items()}
        return ids, {name: self.table(ids[name], self.first[name]) for name in ids}

    def forward(self, batch: Batch) -> Logits:
        ids, embedded = self.embed(batch.ticks)
        written, behind = self.embed(batch.elements or batch.targets)
        order = interleave(self.layout, ids, document_start=batch.document_start, behind=written)
        x = self.tower(order.merge(embedded, behind), self.tower.reach(order.document_start))
        before = order.states_before(self.norm(x), written)
        return {name: self.score(x, self.first[name]) for name, x in before.items()}

    def score(self, states: Tensor, first: int) -> Tensor:
        """Scores of the elements ``first, first + 1, ...`` of a frame."""
        return self.head(states + self.turns[first : first + states.shape[-2]])

    def initial_state(self, batch_size: int) -> InterleavedState:
        hidden = self.turns.new_zeros(batch_size, self.config.tower.width)
        return InterleavedState(hidden[:, 0].long(), hidden, self.tower.initial_state(batch_size))

    def read(self, ticks: Ticks, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        most_ticks = self.tower.chunk_steps // self.num_elements
        return in_chunks(self.read_chunk, most_ticks, ticks, state, lengths)

    def read_chunk(self, ticks: Ticks, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        ids, embedded = self.embed(ticks)
        order = interleave(self.layout, ids, num_read=state.position, lengths=lengths)
        x = order.merge(embedded)
        reach = self.tower.streaming_reach(state.position, x.shape[1], order.lengths)
        x = self.norm(self.tower(x, reach, state.caches))
        hidden = order.states_at_ticks(x, state.hidden)
        newest = hidden[:, -1] if hidden.shape[1] else state.hidden
        return hidden, InterleavedState(state.position + order.lengths, newest, state.caches)

    def write(self, hidden: Tensor, choose: Choose, state: Any = None) -> dict[str, Tensor]:
        """The caches behind what was read are scratch: `read` writes the same into them again."""
        frame, x = {}, hidden[:, None]
        num_written = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        for stream in self.layout.predicted:
            chosen = []
            for element in range(stream.depth):
                place = self.first[stream.name] + element
                ids = choose(stream.name, element, self.score(x, place)[:, 0])
                stands = ids > self.NOTHING  # neither padding nor `UNSET_ID`
                reach = self.tower.streaming_reach(state.position + num_written, 1, stands.long())
                new = self.tower(self.table(ids[:, None, None], place)[:, 0], reach, state.caches)
                x = torch.where(stands[:, None, None], self.norm(new), x)
                num_written = num_written + stands
                chosen.append(ids)
            frame[stream.name] = torch.stack(chosen, -1)
        return frame

    @property
    def window_ticks(self) -> int:
        return self.config.tower.window // self.num_elements

    def flops_per_tick(self, num_ticks: int, training: Any = False, predicted: Any = None) -> float:
        tower = self.num_elements * self.tower.flops_per_step(self.num_elements * num_ticks)
        return (tower + 2 * len(self.turns) * self.head.weight.numel()) * (3 if training else 1)
