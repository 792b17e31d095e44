"""Rounds: a model hears or is told something, and then writes; all of it in one sequence.

A round holds, in this order, what each of `ROUND` names: a response of a tool, a chunk of what is
heard, the mark that ends the chunk, and what the model writes, a thought and perhaps an answer.
Rounds follow each other in one sequence, whose order is that of `counterpoint.streams.interleave`.
The three layouts of SHANKS are sequences of rounds:

    basic      heard mark thought | heard mark thought | ... | heard mark thought answer
    interrupt  the same, cut after the thought that interrupts, and followed by the answer
    tool call  heard mark thought | response thought | heard mark thought | ... | thought answer

Source: SHANKS (arXiv:2510.06917), section 2.1 and figure 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.interleave import interleave
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream

RESPONSE = "response"
HEARD = "heard"
MARK = "mark"
THOUGHT = "thought"
ANSWER = "answer"

CANCEL = "<tool_cancel/>"
"""Written in a thought to take the newest call back; a mark of models that learned it."""

ROUND = {
    RESPONSE: Role.TEXT,
    HEARD: Role.HEARD,
    MARK: Role.TEXT,
    THOUGHT: Role.THOUGHT,
    ANSWER: Role.SPOKEN,
}
"""Parts of a round in their order, with their roles."""

WRITTEN = (THOUGHT, ANSWER)
"""Parts that the model writes itself; only they are trained."""

Round = Mapping[str, Shaped[Tensor, "_n ..."]]
"""Ids of each part of a round, by the names of `ROUND`; what is heard may be vectors of floats.

Parts that are missing are empty.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """Texts that structure the sequence, each one token of the model if possible.

    Attributes:
        part: After a chunk that is not the last.
        last: After the last chunk.
        close: Ends a thought.
        interrupt: Before ``close`` in a thought that interrupts the user.
        stop: Ends an answer.
        call: Begins a call of a tool in a thought; empty if there are no tools.
        call_end: Ends a call.
        response: Begins the response of a tool.
        response_end: Ends the response.
    """

    part: str = "[EOPA]"
    last: str = "[EOA]"
    close: str = "</think>"
    interrupt: str = "[INTERRUPT]"
    stop: str = "[STOP]"
    call: str = "<tool_call>"
    call_end: str = "</tool_call>"
    response: str = "<tool_response>"
    response_end: str = "</tool_response>"


class Places(NamedTuple):
    """Sequences of rounds.

    Attributes:
        ids: Ids at every place; `UNSET_ID` where something is heard and after the end of a row.
        heard: What is heard: ids, with `UNSET_ID` elsewhere, or vectors, with zeros elsewhere.
        trained: True where the model writes.
        lengths: Number of places of each row.
    """

    ids: Int[Tensor, "B N"]
    heard: Shaped[Tensor, "B N ..."]
    trained: Bool[Tensor, "B N"]
    lengths: Int[Tensor, " B"]


def lay_out_rounds(rows: Sequence[Sequence[Round]]) -> Places:
    """Lay out the rounds of every row as a sequence.

    Args:
        rows: Rounds in the order of time, at least one in some row. All rows hear either ids or
            vectors of the same width.

    Raises:
        UserError: A part has an unknown name, or nothing is given.
    """
    _check(rows)
    number = max(len(row) for row in rows)
    parts = {name: _padded(rows, name, number) for name in ROUND}
    present = {name: there for name, (there, _) in parts.items() if there.shape[2]}
    streams = (Stream(name=name, role=ROUND[name], vocab_size=1) for name in present)
    numbers = {name: torch.where(there, 0, UNSET_ID) for name, there in present.items()}
    order = interleave(Layout(streams=tuple(streams)), numbers)
    longest = int(order.lengths.max())
    ids = {
        name: torch.full(there.shape, UNSET_ID) if name == HEARD else parts[name][1]
        for name, there in present.items()
    }
    is_heard = order.mask(HEARD)[:, :longest]
    return Places(
        ids=order.merge(ids)[:, :longest].masked_fill(~order.real[:, :longest], UNSET_ID),
        heard=_heard(*parts[HEARD], is_heard),
        trained=order.mask(*WRITTEN)[:, :longest],
        lengths=order.lengths,
    )


def _check(rows: Sequence[Sequence[Round]]) -> None:
    for one in (one for row in rows for one in row):
        if unknown := one.keys() - ROUND.keys():
            raise UserError(
                f"A round must have only the parts {', '.join(ROUND)}: got "
                f"{', '.join(sorted(unknown))}."
            )
    if not any(len(part) for row in rows for one in row for part in one.values()):
        raise UserError("Rounds must hold at least one element: all are empty.")


def _padded(
    rows: Sequence[Sequence[Round]], name: str, number: int
) -> tuple[Bool[Tensor, "B R _n"], Shaped[Tensor, "B R _n ..."]]:
    """Return where elements of a part stand in its rounds, and these elements, filled up."""
    none = torch.empty(0, dtype=torch.long)
    given = [one.get(name, none) for row in rows for one in row]
    filled = [part for part in given if part.shape[0]]
    counts = torch.zeros(len(rows), number, dtype=torch.long)
    has_round = torch.arange(number) < torch.tensor([len(row) for row in rows])[:, None]
    counts[has_round] = torch.tensor([part.shape[0] for part in given], dtype=torch.long)
    longest = int(counts.max())
    there = torch.arange(longest) < counts[..., None]
    together = torch.cat(filled) if filled else none
    elements = together.new_zeros(len(rows), number, longest, *together.shape[1:])
    elements[there] = together  # both are in the order of the rows
    return there, elements


def _heard(
    there: Bool[Tensor, "B R _n"],
    elements: Shaped[Tensor, "B R _n ..."],
    is_heard: Bool[Tensor, "B N"],
) -> Shaped[Tensor, "B N ..."]:
    """Return what is heard at the places at which something is heard."""
    nothing = 0.0 if elements.is_floating_point() else UNSET_ID
    heard = elements.new_full((*is_heard.shape, *elements.shape[3:]), nothing)
    heard[is_heard] = elements[there]  # both are in the order of the row
    return heard
