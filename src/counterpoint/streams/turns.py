"""Turns: one stream speaks from time to time between the elements of another, in one sequence.

The steady stream has an element at every tick. A turn of the speaker stands before the element of
its tick: up to ``depth`` elements of the speaker, and then the handover, a place without content
that marks the end of the turn.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.interleave import Interleaving, NoRoomError, interleave
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.tracing import is_traced

HANDOVER = "handover"
"""Name of the handover in a sequence with turns."""

Elements = Mapping[str, Int[Tensor, "B T _k"]]
"""Ids of the elements of each tick, by stream and handover; `UNSET_ID` takes no place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Layout of the sequence of a steady stream and a speaker.

    Attributes:
        speaker: Name of the stream that speaks in turns; it has a codebook axis.
        steady: Name of the stream that has an element at every tick.
        padding_id: Id of the speaker that is read as no element.
        turn_ticks: Rows have room for one turn in every ``turn_ticks`` ticks, and one more.
    """

    speaker: str
    steady: str
    padding_id: int
    turn_ticks: int

    def elements(self, ticks: Ticks) -> dict[str, Int[Tensor, "B T _k"]]:
        """Return the elements of each tick, in the order of the sequence, for the given streams."""
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
        """Return the sequence of some of the elements; its length does not depend on their values.

        Args:
            names: Streams (and the handover) that have places in the sequence.
            elements: The elements of each tick; names that are missing have no places.
            behind: The elements written after each tick.
            num_read: As in `interleave`; ``None`` for whole rows.
            lengths: As in `interleave`.
            document_start: As in `interleave`.

        Raises:
            UserError: A row has more turns than it has room for.
        """
        order = [n for n in (self.speaker, HANDOVER, self.steady) if n in names and n in elements]
        streams = (Stream(name=name, role=Role.PART, vocab_size=1) for name in order)
        behind = {} if behind is None else behind
        own = {name: elements[name] for name in order}
        try:
            return interleave(
                Layout(streams=tuple(streams)),
                own,
                num_read=num_read,
                lengths=lengths,
                document_start=document_start,
                behind={name: behind[name] for name in order if name in behind},
                num_places=self._num_places(own, live=num_read is not None),
            )
        except NoRoomError as error:
            raise UserError(
                f"{error} There is room for one turn in every `turn_ticks` = {self.turn_ticks} "
                "ticks: make it smaller, or the turns fewer."
            ) from None

    def num_turns(self, num_ticks: int, *, live: bool = False) -> int:
        """Return the largest number of turns in so many ticks; whole rows may end with one more."""
        turns = num_ticks // self.turn_ticks + 1
        return min(turns, num_ticks) if live else turns

    def most_ticks(self, num_places: int, turn_places: int) -> int:
        """Return the ticks of a session that fit ``num_places``, with ``turn_places`` a turn."""
        return max(
            num_ticks
            for num_ticks in range(1, num_places + 1)
            if num_ticks + turn_places * self.num_turns(num_ticks, live=True) <= num_places
        )

    def _num_places(self, elements: Elements, *, live: bool) -> int:
        """Return the places of a sequence: one steady element for every tick, and a few turns."""
        ids = next(iter(elements.values()))
        num_rows, num_ticks = ids.shape[:2]
        if live and num_rows == 1 and ids.device.type == "cpu" and not is_traced():
            # For a single session a read on the host is worth its cost: most ticks need few places.
            # With other rows shapes stay fixed, so that no row depends on the contents of others.
            return sum(int((own != UNSET_ID).sum()) for own in elements.values())
        num_turns = self.num_turns(num_ticks, live=live)
        return sum(
            own.shape[2] * (num_ticks if name == self.steady else num_turns)
            for name, own in elements.items()
        )
