"""Control: the same beginning continues under its own whole and under that of another text.

Every system allows some of three ways to put another text's whole in place of its own:

    swap     the coarse past of a session is exchanged (`System.swap`)
    text     a whole that is written gets the other text's words, from the newest ones on
    prompt   the other text itself is read in place of the beginning; every system can do this

The last way is no edit, but shows what a system answers if it has read the other text.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.source import item_batch, label_stream
from counterpoint.errors import NoCoarsePastError, UserError
from counterpoint.evaluate.item_whole import Followed, followed
from counterpoint.evaluate.score import part_scores, target_nats
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import State, System, map_state

Way = Literal["swap", "text", "prompt"]
WAYS: tuple[Way, ...] = ("swap", "text", "prompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What an exchange of the whole changes.

    Attributes:
        way: How the whole was exchanged.
        answers: Answers after the exchange, by kind of question.
        own_symbol_bits: Mean bits of the other symbols after the exchange, under the own whole.
        other_symbol_bits: The same under the whole of the other text.
        num_symbols: Number of these symbols; 0 if the items have none.
    """

    way: Way
    answers: tuple[Followed, ...]
    own_symbol_bits: float
    other_symbol_bits: float
    num_symbols: int


@torch.no_grad()
def control(
    system: System,
    items: Sequence[Item],
    first: int,
    *,
    symbols: bool = False,
    donors: Sequence[int] | None = None,
) -> list[Control]:
    """Let items go on from a tick under their own whole and under that of another item.

    Args:
        system: System that reads and writes bytes, in evaluation mode.
        items: Items of one task. Those of equal length up to ``first`` are comparable.
        first: Number of ticks that are read before the exchange; the id that begins a document is
            the first of them.
        symbols: Whether the system has learned all symbols, so that those that are no answers are
            scored too.
        donors: For each item, the number of the one whose whole it gets; by default it is the next
            one, and the first one for the last.

    Returns:
        One result for each way that the system allows.
    """
    batch = item_batch(items, system.layout, "all" if symbols else "answer").to(system.device)
    part = system.layout.part.name
    targets = batch.targets[part]
    own = system(batch)[part]
    late = [
        replace(item, answers=tuple(one for one in item.answers if one.start >= first))
        for item in items
    ]
    lent_by = torch.arange(len(items)).roll(-1) if donors is None else torch.tensor(donors)
    is_other = _other_symbols(late, targets, first)
    count = int(is_other.sum())
    found = []
    for way in WAYS:
        scores = _exchanged(way, system, batch, first, lent_by.to(targets.device))
        if scores is None:
            continue
        bits = [
            float(target_nats(one, targets)[is_other].sum()) / max(count, 1) / math.log(2)
            for one in (own, scores)
        ]
        found.append(
            Control(
                way=way,
                answers=followed(late, targets, own, scores, lent_by.tolist()),
                own_symbol_bits=bits[0],
                other_symbol_bits=bits[1],
                num_symbols=count,
            )
        )
    return found


def _other_symbols(
    items: Sequence[Item], targets: Int[Tensor, "B T"], first: int
) -> Bool[Tensor, "B T"]:
    """Return where a target after the exchange belongs to no answer."""
    wanted = targets >= 0
    wanted[:, :first] = False
    for row, item in enumerate(items):
        for answer in item.answers:
            wanted[row, answer.start : answer.start + len(answer.text)] = False
    return wanted


def _exchanged(
    way: Way, system: System, batch: Batch, first: int, donors: Int[Tensor, " B"]
) -> Float[Tensor, "B T V"] | None:
    """Return the scores of the part under the donor's whole; ``None`` if there is no such way.

    Only the scores behind ticks from ``first`` on are those of the continuation.
    """
    part = system.layout.part.name
    if way == "prompt":
        mixed = {name: _lent(ids, donors, 0, first) for name, ids in batch.ticks.items()}
        return system(replace(batch, ticks=mixed))[part]
    whole = label_stream(system.layout)
    if way == "text":
        if whole is None:
            return None
        length = batch.ticks[part].shape[1]
        # The newest text before the exchange still holds, so it is replaced as well.
        first -= whole.period_ticks
        ticks = dict(batch.ticks)
        written = dict(batch.elements or batch.targets)
        ticks[whole.name] = _lent(ticks[whole.name], donors, first, length)
        # What is written after a tick is read with the next one.
        written[whole.name] = _lent(written[whole.name], donors, first - 1, length)
        return system(replace(batch, ticks=ticks, elements=written))[part]
    if whole is not None:
        return None
    state = system.initial_state(len(batch.document_start))
    before = {name: ids[:, :first] for name, ids in batch.ticks.items()}
    hidden, state = system.read(before, state)
    swapped = swapped_or_none(system, state, map_state(lambda x: x[donors], state))
    if swapped is None:
        return None
    after: Ticks = {name: ids[:, first:] for name, ids in batch.ticks.items()}
    continued, _ = system.read(after, swapped)
    return part_scores(system, torch.cat((hidden, continued), 1))


def swapped_or_none(system: System, state: State, donor: State) -> State | None:
    """Return sessions with the coarse past of others; ``None`` if that is not possible.

    A system that keeps no coarse past is left out in silence. If it keeps one and a single row
    cannot get another's, all rows are left out with a warning.
    """
    try:
        return system.swap(state, donor)
    except NoCoarsePastError:
        return None
    except UserError as problem:
        warnings.warn(f"The way 'swap' is left out for all items: {problem}", stacklevel=2)
        return None


def _lent(
    ids: Int[Tensor, "B T *_K"], donors: Int[Tensor, " B"], first: int, stop: int
) -> Int[Tensor, "B T *_K"]:
    """Return ids with those of the donors in some ticks."""
    mixed = ids.clone()
    mixed[:, first:stop] = ids[donors, first:stop]
    return mixed
