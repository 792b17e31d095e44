"""Turns: one stream speaks now and then between the elements of another, in one sequence.

The steady stream has an element at every tick. A turn of the speaker stands before the element of
its tick: up to ``depth`` elements of the speaker, and then the handover, a place without content
that tells the turn's end.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.interleave import Interleaving, interleave
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.tracing import is_traced

HANDOVER = "handover"
"""Name of the handover in a sequence with turns."""

Elements = Mapping[str, Int[Tensor, "B T _k"]]
"""Ids of what may stand in each tick, by stream and the handover; `UNSET_ID` takes no place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """How the sequence of a steady stream and a speaker is laid out.

    Attributes:
        speaker: Name of the stream that speaks in turns; it has a codebook axis.
        steady: Name of the stream that has an element at every tick.
        padding_id: Id of the speaker that is read as nothing.
        turn_ticks: Rows have room for one turn in so many ticks, and one more.
    """

    speaker: str
    steady: str
    padding_id: int
    turn_ticks: int

    def elements(self, ticks: Ticks) -> dict[str, Int[Tensor, "B T _k"]]:
        """What stands in each tick, in the order of the sequence, of the streams that are given."""
        elements = {}
        if self.speaker in ticks:
            said = ticks[self.speaker]
            said = said.masked_fill(said == self.padding_id, UNSET_ID)
            speaks = (said != UNSET_ID).any(-1, keepdim=True)
            elements = {self.speaker: said, HANDOVER: torch.where(speaks, 0, UNSET_ID)}
        if self.steady in ticks:
            elements[self.steady] = ticks[self.steady][..., None]
        return elements

    def order(
        self,
        names: Collection[str],
        elements: Elements,
        *,
        behind: Elements | None = None,
        num_read: Int[Tensor, " B"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
        document_start: Int[Tensor, "B T"] | None = None,
    ) -> Interleaving:
        """The sequence of some of the elements; its length does not depend on what they are.

        Args:
            names: Which of the streams and the handover have places in it.
            elements: What stands in each tick; names that are not there have no places.
            behind: What is written behind each tick.
            num_read: As in `interleave`; ``None`` for whole rows.
            lengths: As in `interleave`.
            document_start: As in `interleave`.
        """
        order = [n for n in (self.speaker, HANDOVER, self.steady) if n in names and n in elements]
        streams = (Stream(name=name, role=Role.PART, vocab_size=1) for name in order)
        behind = {} if behind is None else behind
        own = {name: elements[name] for name in order}
        return interleave(
            Layout(streams=tuple(streams)),
            own,
            num_read=num_read,
            lengths=lengths,
            document_start=document_start,
            behind={name: behind[name] for name in order if name in behind},
            num_places=self._num_places(own, live=num_read is not None),
        )

    def num_turns(self, num_ticks: int, *, live: bool = False) -> int:
        """Most turns in so many ticks; whole rows may have one behind the last."""
        turns = num_ticks // self.turn_ticks + 1
        return min(turns, num_ticks) if live else turns

    def most_ticks(self, num_places: int, turn_places: int) -> int:
        """Ticks of a session that fit so many places, where a turn has ``turn_places`` of them."""
        return max(
            num_ticks
            for num_ticks in range(1, num_places + 1)
            if num_ticks + turn_places * self.num_turns(num_ticks, live=True) <= num_places
        )

    def _num_places(self, elements: Elements, *, live: bool) -> int:
        """Places of a sequence: every tick has its steady element, and few have a turn."""
        ids = next(iter(elements.values()))
        num_rows, num_ticks = ids.shape[:2]
        if live and num_rows == 1 and ids.device.type == "cpu" and not is_traced():
            # A single session is worth the host read, which spares most places of most ticks.
            # With other rows shapes stay fixed, so that no row feels what others have.
            return sum(int((own != UNSET_ID).sum()) for own in elements.values())
        num_turns = self.num_turns(num_ticks, live=live)
        return sum(
            own.shape[2] * (num_ticks if name == self.steady else num_turns)
            for name, own in elements.items()
        )
