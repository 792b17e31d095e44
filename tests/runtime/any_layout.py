"""A system over any layout: it reads all that stands in a column, and writes element by element."""

from collections.abc import Collection

import torch
from torch import Tensor

from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Stream, Ticks
from counterpoint.systems.contract import Choose, Logits, State, System

WIDTH = 8


class AnyLayout(System):
    """States are decaying sums of what was read; an element sees those before it in its column."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        drawn = torch.Generator().manual_seed(5)
        self.tables = {}
        self.heads = {}
        for stream in (*layout.predicted, *layout.heard):
            num_inputs = (stream.vocab_size or 0) + 2 if stream.is_discrete else stream.width or 0
            table = torch.randn(stream.depth, num_inputs, WIDTH, generator=drawn)
            if stream.is_discrete:
                table[:, -1] = 0  # `UNSET_ID` is nothing
            self.tables[stream.name] = table
            if stream.predicted:
                shape = (stream.depth, WIDTH, stream.vocab_size or 0)
                self.heads[stream.name] = torch.randn(shape, generator=drawn)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def embedded(self, stream: Stream, values: Tensor) -> Tensor:
        table = self.tables[stream.name]
        if not stream.is_discrete:
            return values @ table[0]
        codes = values if stream.has_codebooks else values[..., None]
        return torch.stack([table[k][codes[..., k]] for k in range(stream.depth)]).sum(0)

    def forward(self, batch: Batch) -> Logits:
        none = self.initial_state(len(batch.document_start))
        hidden, _ = self.read(batch.ticks, none)
        scores: dict[str, list[Tensor]] = {stream.name: [] for stream in self.layout.predicted}

        def choose(name: str, codebook: int, logits: Tensor) -> Tensor:
            scores[name].append(logits)
            ids = batch.elements[name]
            return ids[..., codebook] if self.layout[name].has_codebooks else ids

        self.write(hidden, choose)
        return {
            name: torch.stack(own, -2) if self.layout[name].has_codebooks else own[0]
            for name, own in scores.items()
        }

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, WIDTH),)

    def read(
        self, ticks: Ticks, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        streams = (*self.layout.predicted, *self.layout.heard)
        x = sum(self.embedded(s, ticks[s.name]) for s in streams if s.name in ticks)
        assert isinstance(x, Tensor)
        (h,) = state
        states = []
        for tick in range(x.shape[1]):
            new = 0.8 * h + x[:, tick]
            h = new if lengths is None else torch.where(lengths[:, None] > tick, new, h)
            states.append(h)
        return torch.stack(states, 1).tanh(), (h,)

    def write(
        self, hidden: Tensor, choose: Choose, state: State | None = None
    ) -> dict[str, Tensor]:
        frame = {}
        for stream in self.layout.predicted:
            codes = []
            for codebook in range(stream.depth):
                ids = choose(stream.name, codebook, hidden @ self.heads[stream.name][codebook])
                hidden = hidden + self.tables[stream.name][codebook][ids]
                codes.append(ids)
            frame[stream.name] = torch.stack(codes, -1) if stream.has_codebooks else codes[0]
        return frame

    @property
    def window_ticks(self) -> int:
        return 1000

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        return 0.0
