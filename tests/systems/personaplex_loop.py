"""The loop of PersonaPlex's published code, stated again in few lines, on one of our models.

Written from its description: a ring of the longest delay and three more slots, in which what is
given and what is said stands where it is due; a call reads the column before and writes its own;
the first call reads nothing. Nothing is cached: every call runs the transformer over all columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoint.systems.moshi import Moshi

PAD, PAUSE = 3, 6


class PublishedLoop:
    """Greedy; for a model that predicts both speakers."""

    def __init__(self, model: Moshi) -> None:
        self.model = model
        streams = model.layout.streams
        self.delays = [s.delay_ticks for s in streams for _ in range(s.depth)]
        self.initial = torch.tensor([s.vocab_size or 0 for s in streams for _ in range(s.depth)])
        size = max(self.delays) + 3
        self.ring = torch.full((len(self.delays), size), -2)
        self.given = torch.zeros(len(self.delays), size, dtype=torch.bool)
        self.offset = 0
        self.read: list[Tensor] = []

    def embedded(self, column: Tensor) -> Tensor:
        """The sum of the embeddings of a column: (1, 1, D), as a voice keeps it."""
        pieces = column.split([stream.depth for stream in self.model.layout.streams])
        frame = {
            stream.name: ids[None] if stream.name == "text" else ids[None, None]
            for stream, ids in zip(self.model.layout.streams, pieces, strict=True)
        }
        return self.model.embed(frame)

    def place(self, ids: Sequence[int | None]) -> bool:
        """Put what is given where it is due; whether there is something to read yet."""
        size, now = self.ring.shape[1], self.offset % self.ring.shape[1]
        for k, (found, delay) in enumerate(zip(ids, self.delays, strict=True)):
            if found is not None:
                self.ring[k, (self.offset + delay) % size] = found
                self.given[k, (self.offset + delay) % size] = True
            if self.offset <= delay:
                self.ring[k, now], self.given[k, now] = self.initial[k], True
        if self.offset == 0:
            self.ring[:, 0] = self.initial
            self.offset = 1
            return False
        return True

    def call(self, ids: Sequence[int | None]) -> list[int] | None:
        """One call with what is given of a frame; ``None`` where nothing is complete."""
        if not self.place(ids):
            return None
        return self.advance(self.embedded(self.ring[:, (self.offset - 1) % self.ring.shape[1]]))

    @torch.no_grad()
    def advance(self, embedding: Tensor) -> list[int] | None:
        """Read an embedding and write the column of this call."""
        self.read.append(embedding)
        x, size = torch.cat(self.read, 1), self.ring.shape[1]
        reach = self.model.temporal.reach(torch.zeros(1, x.shape[1], dtype=torch.long))
        z = self.model.norm(self.model.temporal(x, reach))[:, -1]
        now, written = self.offset % size, list[int]()

        def choose(stream: str, codebook: int, logits: Tensor) -> Tensor:
            k = len(written)
            is_given = bool(self.given[k, now])
            written.append(int(self.ring[k, now] if is_given else logits.argmax()))
            return torch.tensor(written[-1:])

        self.model.write(z, choose)
        self.given[:, (self.offset - 1) % size] = False
        self.ring[:, now] = torch.tensor(written)
        due, self.offset = self.offset - max(self.delays), self.offset + 1
        if due <= 0:
            return None
        return [int(self.ring[k, (due + delay) % size]) for k, delay in enumerate(self.delays)]

    def hear_sample(self, agent: Tensor, user: Sequence[int]) -> dict[str, Tensor]:
        """Hear the codes of a recorded voice; gives what the published code saves of it."""
        for codes in agent.tolist():
            self.call([PAD, *codes, *user])
        return {"embeddings": torch.stack(self.read), "cache": self.ring[None].clone()}

    def replay(self, saved: dict[str, Tensor]) -> None:
        """Hear a saved voice: its embeddings behind ids of no meaning, then its ring."""
        nothing = [PAD, *self.initial[1:].tolist()]
        for embedding in saved["embeddings"]:
            while not self.place(nothing):
                pass
            self.advance(embedding.to(self.model.head.weight))
        self.ring.copy_(saved["cache"][0])

    def hear_role(self, role: Sequence[int], agent: Sequence[int], user: Sequence[int]) -> None:
        """Pause, role, pause."""
        for text in (*[PAD] * PAUSE, *role, *[PAD] * PAUSE):
            self.call([text, *agent, *user])

    def converse(self, user: Tensor) -> list[list[int]]:
        """What text and agent say to a user; it comes a call later than it could."""
        num_codebooks = len(self.delays) // 2
        said = [self.call([None] * (1 + num_codebooks) + frame) for frame in user.tolist()]
        return [frame[: 1 + num_codebooks] for frame in said[1:] if frame]
