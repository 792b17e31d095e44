"""A session of a system that hears and writes, as something that thinks against a clock."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.clocked import Proposal
from counterpoint.streams.rounds import Marks
from counterpoint.streams.spec import UNSET_ID, Role
from counterpoint.systems.contract import System


@runtime_checkable
class Vocabulary(Protocol):
    """Turns text into ids and back; the texts of ids put together give the text."""

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text."""

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the text of ids."""


class _Likeliest:
    """Chooses the likeliest id, and keeps the scores from which it was chosen."""

    scores: Float[Tensor, "B V"]

    def __call__(
        self, stream: str, codebook: int, scores: Float[Tensor, "B V"]
    ) -> Int[Tensor, " B"]:
        self.scores = scores
        return scores.argmax(-1)


class SystemThinker:
    """One session of a system; it proposes the likeliest token; a `Thinker`.

    What is heard goes into the heard stream of the system, or into the one that it writes if it
    hears none.

    Args:
        system: System that writes one stream of ids, in evaluation mode.
        vocabulary: Its ids.
        marks: Marks of the sequence; that of an interruption must be one id.

    Raises:
        UserError: The mark of an interruption has several ids.
    """

    def __init__(self, system: System, vocabulary: Vocabulary, marks: Marks | None = None) -> None:
        self.system = system
        self.vocabulary = vocabulary
        (self._written,) = (stream.name for stream in system.layout.predicted)
        heard = system.layout.by_role(Role.HEARD)
        self._heard = next(iter(heard), None)
        interrupt = vocabulary.encode((marks or Marks()).interrupt)
        if len(interrupt) != 1:
            raise UserError(
                f"The mark of an interruption must be one id of the model: got {len(interrupt)}. "
                "Add it to the vocabulary."
            )
        self._interrupt = int(interrupt[0])
        self._state = system.initial_state(1)
        self._hidden: Tensor | None = None

    def hear(self, content: str | Float[Tensor, "n width"]) -> None:
        """Read words, or vectors of features; see `Thinker.hear`."""
        elements = self.ids(content) if isinstance(content, str) else content
        if self._heard is None:
            self.tick(elements, None)
        else:
            self.tick(None, elements)

    def read(self, text: str) -> None:
        """Read a text; see `Thinker.read`."""
        self.tick(self.ids(text), None)

    def tick(self, written: Tensor | None, heard: Tensor | None) -> None:
        """Read ticks: ids that are written, what is heard, or both side by side."""
        given = heard if written is None else written
        if given is None or not len(given):
            return
        ticks = {self._written: self._filled(written, len(given))}
        if self._heard is not None:
            if self._heard.is_discrete:
                ticks[self._heard.name] = self._filled(heard, len(given))
            else:
                width = self._heard.width or 0
                silence = torch.zeros(1, len(given), width, device=self.system.device)
                ticks[self._heard.name] = silence if heard is None else heard[None].to(silence)
        with torch.no_grad():
            hidden, self._state = self.system.read(ticks, self._state)
        self._hidden = hidden[:, -1]

    def propose(self) -> Proposal:
        """Return the likeliest token; see `Thinker.propose`.

        Raises:
            UserError: Nothing has been read.
        """
        if self._hidden is None:
            raise UserError("A model must have read something before it writes.")
        chosen = _Likeliest()
        with torch.no_grad():
            self.system.write(self._hidden, chosen, self._state)
        scores = chosen.scores[0].float()
        chance = float(scores.softmax(-1)[self._interrupt])
        text = self._text(int(scores.argmax()))
        scores[self._interrupt] = -torch.inf
        return Proposal(text, chance, self._text(int(scores.argmax())))

    def _filled(self, ids: Tensor | None, length: int) -> Int[Tensor, "1 n"]:
        if ids is None:
            ids = torch.full((length,), UNSET_ID)
        return ids[None].to(self.system.device)

    def ids(self, text: str) -> Int[Tensor, " n"]:
        """Return the ids of a text."""
        return torch.from_numpy(self.vocabulary.encode(text))

    def _text(self, number: int) -> str:
        return self.vocabulary.decode(np.array([number]))
