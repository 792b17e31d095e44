"""Texts that systems write after their whole has been exchanged for that of another text.

A system reads the beginning of a text. Its whole is exchanged in one of the ways of
`counterpoint.evaluate.control`, it is given the rest of the prompt, and it writes on by itself, in
all its streams. With the text itself as donor nothing is exchanged.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.prompts import written_text
from counterpoint.data.tasks.source import label_stream, labels
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.control import WAYS, Way, swapped_or_none
from counterpoint.runtime.given import check_prompt
from counterpoint.runtime.rollouts import roll_out
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.contract import Prefix, State, System, map_state

NEVER = UNSET_ID - 1
"""Id that no frame has, not even an empty one, so that a text goes on until it is long enough."""
BATCH_TEXTS = 64
"""Number of texts that are written at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """Where a system goes on with the text of an item.

    Attributes:
        item: The item.
        exchange_ticks: Number of ticks that are read before the exchange; the id that begins a
            document is the first of them.
        num_given: Number of symbols of the text that are given; the first one after them is
            written. It must be at least ``exchange_ticks``, so that a tick is read in between.
    """

    item: Item
    exchange_ticks: int
    num_given: int

    @property
    def num_forced(self) -> int:
        """Number of ticks between the exchange and the first symbol that is written."""
        return self.num_given + 1 - self.exchange_ticks

    def __post_init__(self) -> None:
        if not 1 <= self.exchange_ticks <= self.num_given <= len(self.item.text):
            raise UserError(
                "The exchange must come after the first tick and before the last given symbol: got "
                f"exchange_ticks={self.exchange_ticks}, num_given={self.num_given} in a text of "
                f"{len(self.item.text)} symbols."
            )


class Pairing(NamedTuple):
    """Places that are paired with others.

    Attributes:
        places: The places, in order; those without a partner are left out.
        donors: For each of them, where in ``places`` its partner stands.
    """

    places: list[int]
    donors: list[int]


def pairs_of(kinds: Sequence[Hashable], values: Sequence[Hashable]) -> Pairing:
    """Pair each place with the next one of its kind, in a circle, that has another value.

    Args:
        kinds: Places of one kind may be paired.
        values: Values that must differ.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(place)
    found = {}
    for places in alike.values():
        for number, place in enumerate(places):
            behind = [*places[number + 1 :], *places[:number]]
            other = next((one for one in behind if values[one] != values[place]), None)
            if other is not None:
                found[place] = other
    kept = sorted(found)
    order = {place: number for number, place in enumerate(kept)}
    return Pairing(kept, [order[found[place]] for place in kept])


def write_both(
    system: System,
    beginnings: Sequence[Beginning],
    donors: Sequence[int],
    seeds: Sequence[int],
    *,
    temperature: float = 0.0,
    most_symbols: int,
    end_id: int = NEVER,
) -> Iterator[tuple[Way, list[str], list[str]]]:
    """Yield each way that a system allows, with the texts under its own whole and the donors'.

    For the arguments see `write_on`.
    """
    write = partial(
        write_on,
        system,
        beginnings,
        seeds=seeds,
        temperature=temperature,
        most_symbols=most_symbols,
        end_id=end_id,
    )
    own: dict[bool, list[str]] = {}  # whether the labels of a written whole are given
    for way in WAYS:
        other = write(donors=donors, way=way)
        if other is None:
            continue
        is_given = way == "text"
        if is_given not in own:
            own[is_given] = write(donors=range(len(beginnings)), way=way) or []
        yield way, own[is_given], other


@torch.no_grad()
def write_on(
    system: System,
    beginnings: Sequence[Beginning],
    donors: Sequence[int],
    way: Way,
    seeds: Sequence[int],
    *,
    temperature: float = 0.0,
    most_symbols: int,
    end_id: int = NEVER,
) -> list[str] | None:
    """Let a system write on under the wholes of donors.

    A system that writes its whole as text writes it itself, except in the way "text", in which it
    is given the labels of the donor from the exchange on.

    Args:
        system: System that reads and writes bytes, in evaluation mode.
        beginnings: Beginnings of texts.
        donors: For each beginning, the number of the one whose whole it gets; its exchange must
            come at the same tick.
        way: How the whole is exchanged.
        seeds: Seed of what is sampled, for each text.
        temperature: Divisor of the scores; 0 always takes the likeliest symbol.
        most_symbols: Largest number of symbols that are written.
        end_id: Id after which a text ends; it may not stand between exchange and first symbol.

    Returns:
        What was written after the given symbols, with its end if it has one; ``None`` if the system
        does not allow this way.

    Raises:
        UserError: A donor's exchange comes at another tick.
    """
    whole = label_stream(system.layout)
    if (way == "swap" and whole is not None) or (way == "text" and whole is None):
        return None
    _check_ticks(beginnings, donors)
    contents = [_content(system, one) for one in beginnings]
    most_forced = max((one.num_forced for one in beginnings), default=0)
    texts: list[str] = []
    for start in range(0, len(beginnings), BATCH_TEXTS):
        rows = slice(start, start + BATCH_TEXTS)
        lent = [contents[number] for number in donors[rows]]
        read = _exchanged(system, beginnings[rows], contents[rows], lent, way)
        if read is None:
            return None
        rollouts = roll_out(
            system,
            read.prompts,
            seeds[rows],
            temperature=temperature,
            most_ticks=most_forced + most_symbols,
            end_id=end_id,
            prefixes=read.prefixes(),
            given=read.given,
        )
        for one, ids in zip(beginnings[rows], rollouts.texts, strict=True):
            texts.append(written_text(ids[one.num_forced : one.num_forced + most_symbols]))
    return texts


def _check_ticks(beginnings: Sequence[Beginning], donors: Sequence[int]) -> None:
    for one, number in zip(beginnings, donors, strict=True):
        if one.exchange_ticks != beginnings[number].exchange_ticks:
            raise UserError(
                "The whole of a donor must be taken at the tick of the exchange: got "
                f"{beginnings[number].exchange_ticks} ticks, and {one.exchange_ticks} of the text."
            )


def _content(system: System, beginning: Beginning) -> Ticks:
    """Return the given symbols, and the labels of the whole text if the system writes any."""
    layout = system.layout
    text = beginning.item.text
    ids = [ByteTokenizer().start_id, *text[: beginning.num_given].encode()]
    content = {layout.part.name: torch.tensor([ids])}
    whole = label_stream(layout)
    if whole is not None:
        own = labels(beginning.item, whole, len(text) + 1)
        content[whole.name] = torch.from_numpy(np.array(own))[None]
    return content


def _cut(system: System, content: Ticks, num_ticks: int) -> Ticks:
    """Return the steps of content that end within so many ticks."""
    return {
        name: ids[:, : num_ticks // system.layout[name].period_ticks]
        for name, ids in content.items()
    }


def _mixed(system: System, own: Ticks, other: Ticks, beginning: Beginning, way: Way) -> Ticks:
    """Return what a row is given: content from tick 0 on, beyond the exchange if it is forced."""
    layout = system.layout
    part = layout.part.name
    exchange = beginning.exchange_ticks
    whole = label_stream(layout)
    if way == "prompt":
        ids = torch.cat((other[part][:, :exchange], own[part][:, exchange:]), 1)
        return {**_cut(system, other, exchange), part: ids}
    if whole is None:
        return own
    # The newest text before the exchange still holds, so it is replaced as well.
    newest = schedule.next_column(layout, exchange) - whole.period_ticks
    step = 0
    while schedule.column_of(layout, whole, step) < newest:
        step += 1
    text = torch.cat((own[whole.name][:, :step], other[whole.name][:, step:]), 1)
    return {part: own[part], whole.name: text}


class _Read(NamedTuple):
    """Beginnings that have been read as rows of one batch.

    Attributes:
        given: What each row is given from tick 0 on.
        prompts: The ticks of it that have been read.
        columns: The same in arrival order.
        num_ticks: Number of ticks of content of each prompt.
        hidden: What was read at the newest tick.
        state: State after it.
    """

    given: Sequence[Ticks]
    prompts: Sequence[Ticks]
    columns: Sequence[Ticks]
    num_ticks: Sequence[int]
    hidden: Float[Tensor, "B D"]
    state: State

    def prefixes(self) -> list[Prefix]:
        """Return the rows one by one."""
        return [
            Prefix(
                columns=columns,
                num_ticks=self.num_ticks[row],
                hidden=self.hidden[row : row + 1],
                state=map_state(itemgetter(slice(row, row + 1)), self.state),
            )
            for row, columns in enumerate(self.columns)
        ]


def _exchanged(
    system: System,
    beginnings: Sequence[Beginning],
    contents: Sequence[Ticks],
    lent: Sequence[Ticks],
    way: Way,
) -> _Read | None:
    """Read all that comes before the exchange, and exchange the whole if that is the way.

    Returns:
        What was read; ``None`` if the system keeps no whole that can be exchanged.
    """
    ticks = [one.exchange_ticks for one in beginnings]
    given = [
        _mixed(system, own, other, one, way)
        for own, other, one in zip(contents, lent, beginnings, strict=True)
    ]
    read = _read(system, given, ticks)
    if way != "swap":
        return read
    state = swapped_or_none(system, read.state, _read(system, lent, ticks).state)
    return None if state is None else read._replace(state=state)


def _read(system: System, given: Sequence[Ticks], ticks: Sequence[int]) -> _Read:
    """Read some ticks of each content in one pass."""
    prompts = [_cut(system, *one) for one in zip(given, ticks, strict=True)]
    layout = system.layout
    columns = []
    counts = []
    for prompt in prompts:
        own, num_ticks = check_prompt(layout, prompt, system.device)
        stop = schedule.next_column(layout, num_ticks)
        columns.append({name: ids[:, :stop] for name, ids in own.items()})
        counts.append(num_ticks)
    # Padding is 0; `lengths` makes the model ignore it.
    rows = {
        name: pad_sequence([own[name][0] for own in columns], batch_first=True)
        for name in columns[0]
    }
    lengths = torch.tensor([schedule.next_column(layout, n) for n in counts], device=system.device)
    hidden, state = system.read(rows, system.initial_state(len(prompts)), lengths)
    every = torch.arange(len(prompts), device=system.device)
    return _Read(given, prompts, columns, counts, hidden[every, lengths - 1], state)
