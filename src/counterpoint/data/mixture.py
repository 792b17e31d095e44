"""Batches from several named sources: of whole batches in turn, or of rows side by side.

Text-only batches among those of speech take turns with them, so that a model does not forget how to
write text. Their kind is "text": `counterpoint.train.optimizer.KindOptimizers` keeps separate
moments for them. Sources of equal form, such as corpora of text, are mixed row by row; see
`counterpoint.data.token_deal`.

Source: Moshi (arXiv:2410.00037), section 4: half of the batches are text-only in pre-training, and
one in ten after diarisation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from counterpoint.data.loader import spread_turn
from counterpoint.data.source import BatchSource, attach
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch, join_batches
from counterpoint.streams.spec import UNSET_ID

TEXT_KIND = "text"
"""Kind of the text-only batches."""


class MemberTurn(NamedTuple):
    """A slot that a member of a mixture fills.

    Attributes:
        member: Name of the member.
        number: Number of its earlier turns.
    """

    member: str
    number: int


@runtime_checkable
class Deal(Protocol):
    """The members that fill the slots of each step."""

    def turns(self, step: int) -> Sequence[MemberTurn]:
        """Return the turns of this process in a step, counted from 0."""

    def amounts(self, step: int) -> Mapping[str, Amount]:
        """Return what these turns hold, without targets; empty if nobody counts."""


@runtime_checkable
class MixtureMember(Protocol):
    """A member of a mixture, which gives what it has for its turns."""

    def read(self, turns: Sequence[int]) -> Batch:
        """Return the content of turns, in order."""

    def attach(self, model: nn.Module) -> None:
        """Give the model to a source that asks for it."""


class WholeBatches:
    """A member that fills a whole batch in each turn.

    Args:
        source: Its batches 0, 1, 2, ... are read in turn.
        kind: Kind of its batches; see `Batch.kind`.
    """

    def __init__(self, source: BatchSource, kind: str = "") -> None:
        self.source = source
        self.kind = kind

    def read(self, turns: Sequence[int]) -> Batch:
        """Return the batch of a turn."""
        (turn,) = turns
        batch = self.source.batch(turn)
        return replace(batch, kind=self.kind) if self.kind else batch

    def attach(self, model: nn.Module) -> None:
        """Give the model to a source that asks for it."""
        attach(self.source, model)


class Evenly:
    """Deals whole batches in proportion to weights, evenly spread; a `Deal`.

    With weights of 0.1 and 0.9, the first member fills steps 9, 19 and so on.

    Args:
        weights: Weight of each member, above 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._names = [*weights]
        self._weights = [*weights.values()]

    def turns(self, step: int) -> Sequence[MemberTurn]:
        """Return the turn of a step."""
        number, turn = spread_turn(step, self._weights)
        return [MemberTurn(self._names[number], turn)]

    def amounts(self, step: int) -> Mapping[str, Amount]:
        """Return nothing: whole batches are not counted by source."""
        return {}


class Mixture:
    """Batches whose slots are filled by named members.

    A batch is a function of the step alone, and the members may be those of one process among many.

    Args:
        members: Members by name.
        deal: Says which member fills which slot. If a step has several slots, the members' rows
            have the same streams and the same number of ticks.
    """

    def __init__(self, members: Mapping[str, MixtureMember], deal: Deal) -> None:
        self.members = members
        self.deal = deal

    def attach(self, model: nn.Module) -> None:
        """Give the model to the members that ask for it."""
        for member in self.members.values():
            member.attach(model)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0.

        Raises:
            UserError: Members of one batch have rows of different form.
        """
        by_member: dict[str, list[int]] = {}
        order: dict[str, list[int]] = {}
        for slot, turn in enumerate(self.deal.turns(step)):
            by_member.setdefault(turn.member, []).append(turn.number)
            order.setdefault(turn.member, []).append(slot)
        parts = {name: self.members[name].read(turns) for name, turns in by_member.items()}
        amounts = {
            name: amount._replace(targets=num_targets(parts[name]) if name in parts else 0)
            for name, amount in self.deal.amounts(step).items()
        }
        places = torch.tensor([slot for slots in order.values() for slot in slots]).argsort()
        _check_same_form(parts)
        batch = join_batches([*parts.values()])
        if len(parts) > 1:
            batch = batch.rows(places)
        return replace(batch, amounts=amounts)


def num_targets(batch: Batch) -> int:
    """Return the number of ticks that carry a loss in any stream."""
    trained = torch.zeros(batch.document_start.shape, dtype=torch.bool)
    for ids in batch.targets.values():
        carries = ids != UNSET_ID
        trained |= carries.flatten(2).any(-1) if ids.ndim > 2 else carries
    return int(trained.sum())


def _check_same_form(parts: Mapping[str, Batch]) -> None:
    forms = {
        name: (
            batch.document_start.shape[1],
            *([*streams] for streams in (batch.ticks, batch.targets, batch.elements)),
            batch.unit,
        )
        for name, batch in parts.items()
    }
    first, *others = forms
    for other in others:
        if forms[other] != forms[first]:
            raise UserError(
                "Members of a batch must have rows of the same ticks, streams and unit: "
                f"{first!r} has {forms[first]} and {other!r} {forms[other]}. Give them the same "
                "`row_ticks`."
            )
