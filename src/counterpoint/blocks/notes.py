"""Notes: a few ids that a tower writes from time to time; each note holds until the next one.

Notes are an inner monologue at a slower rate than the sequence that they accompany. The ids of a
note are scored one after another from the vector of a step; the output of that step follows the
note; and every later step receives the newest note. Notes can therefore be read, forced and edited.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.blocks.depth import CodebookEmbedding
from counterpoint.blocks.mlp import GatedMLP
from counterpoint.blocks.norm import RMSNorm
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID

ChooseId = Callable[[int, Float[Tensor, "B V"]], Int[Tensor, " B"]]
"""Function that chooses an id of a note from its place and its scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotesConfig:
    """Shape of `Notes`.

    Attributes:
        depth: Number of ids of a note.
        vocab_size: Number of ids.
        padding_id: Id that fills up shorter notes; ``None`` if they end in unset ids, which carry
            no loss.
        loss_weight: Weight of the nats of notes relative to those of the sequence.
    """

    depth: int
    vocab_size: int = 258
    padding_id: int | None = None
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.vocab_size < 1:
            raise UserError(
                f"Notes must have `depth` and `vocab_size` >= 1: got {self.depth} and "
                f"{self.vocab_size}."
            )
        if self.padding_id is not None and not 0 <= self.padding_id < self.vocab_size:
            raise UserError(
                f"`padding_id` of notes must be an id, 0 to {self.vocab_size - 1}, or None: got "
                f"{self.padding_id}."
            )


class Notes(nn.Module):
    """Embedding and scores of notes."""

    def __init__(self, width: int, config: NotesConfig) -> None:
        super().__init__()
        self.depth = config.depth
        self.embedding = CodebookEmbedding(config.depth, config.vocab_size, width)
        nn.init.normal_(self.embedding.table.weight, std=config.depth**-0.5)
        self.place = nn.Parameter(torch.zeros(config.depth, width))
        self.write_norm = RMSNorm(width)
        self.write_mlp = GatedMLP(width, 2 * width)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.follow_norm = RMSNorm(width)
        self.follow_mlp = GatedMLP(width, 2 * width)
        for mlp in (self.write_mlp, self.follow_mlp):
            for linear in (mlp.gate_up, mlp.down):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.head.weight)

    def embed(self, notes: Int[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        """Return the vectors that steps receive of notes; zeros for unset notes."""
        return self.embedding(notes).sum(-2)

    def scores(
        self, hidden: Float[Tensor, "*B D"], notes: Int[Tensor, "*B K"]
    ) -> Float[Tensor, "*B K V"]:
        """Return the scores of every id of a note, given the ids before it."""
        before = F.pad(self.embedding(notes)[..., :-1, :].cumsum(-2), (0, 0, 1, 0))
        return self._scores(hidden[..., None, :] + before, self.place)

    def write(self, hidden: Float[Tensor, "B D"], choose: ChooseId) -> Int[Tensor, "B K"]:
        """Write a note id by id."""
        ids: list[Tensor] = []
        for place in range(self.depth):
            found = choose(place, self._scores(hidden, self.place[place]))
            ids.append(found)
            hidden = hidden + self.embedding(found[:, None], place)[:, 0]
        return torch.stack(ids, 1)

    def follow(
        self, hidden: Float[Tensor, "*B D"], notes: Int[Tensor, "*B K"]
    ) -> Float[Tensor, "*B D"]:
        """Return the vector of a step after its note; it is unchanged if there is no note."""
        told = self.follow_norm(hidden + self.embed(notes).to(hidden.dtype))
        return hidden + self.follow_mlp(told) * is_set(notes)[..., None]

    def _scores(self, x: Float[Tensor, "*B D"], place: Tensor) -> Float[Tensor, "*B V"]:
        x = x + place
        x = x + self.write_mlp(self.write_norm(x))
        scores: Tensor = self.head(self.norm(x))
        return scores

    def flops_to_write(self) -> int:
        """Return the FLOPs of the scores of a note."""
        maps = (self.write_mlp.gate_up, self.write_mlp.down, self.head)
        return 2 * self.depth * sum(linear.weight.numel() for linear in maps)

    def flops_to_follow(self) -> int:
        """Return the FLOPs of following a note."""
        return 2 * (self.follow_mlp.gate_up.weight.numel() + self.follow_mlp.down.weight.numel())


def is_set(notes: Int[Tensor, "*B K"]) -> Bool[Tensor, "*B"]:
    """Return True for each note of which any id is set."""
    return (notes != UNSET_ID).any(-1)


def held_notes(
    notes: Int[Tensor, "B T K"],
    before: Int[Tensor, "B K"],
    document_start: Int[Tensor, "B T"] | None = None,
) -> Int[Tensor, "B T1 K"]:
    """Return the note that holds before a chunk and after each of its steps: the newest one.

    Args:
        notes: Notes of the chunk; unset at steps without a note.
        before: The note that holds before the chunk.
        document_start: First step of each step's document; notes of other documents do not hold.
            ``None`` if the chunk continues a session.
    """
    every = torch.cat((before[:, None], notes), 1)
    step = torch.arange(every.shape[1], device=notes.device)
    newest = torch.where(is_set(every), step, 0).cummax(1).values
    if document_start is not None:
        own = newest > F.pad(document_start, (1, 0))
        newest = newest * own
    return every.gather(1, newest[..., None].expand(-1, -1, every.shape[2]))
