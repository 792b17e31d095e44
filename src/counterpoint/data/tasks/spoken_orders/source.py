"""Spoken orders as training data for systems that hear, think, and call tools.

A row holds as many orders as fit. A system that hears words in a stream of their own gets them
there; any other system of text reads them in the stream that it writes, where they carry no loss,
and so do marks and responses of tools.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.source import ALONE, Preparation
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.spoken_maths.packing import (
    Told,
    ToldRows,
    cut_row,
    written_rows,
    written_stream,
)
from counterpoint.data.tasks.spoken_orders.freely import (
    PACES,
    called_by_another,
    freely_said,
    unsettled,
    words_heard,
)
from counterpoint.data.tasks.spoken_orders.menu import SMALL, WHOLE, Menu
from counterpoint.data.tasks.spoken_orders.retold import (
    Recognising,
    exactly,
    heard_again,
    retold_rounds,
)
from counterpoint.data.tasks.spoken_orders.rounds import order_chunks, order_rounds, spaced
from counterpoint.data.tasks.spoken_orders.words import (
    OrderWords,
    in_order_words,
    opened_order_words,
)
from counterpoint.data.tasks.spoken_tools import ToolRequest
from counterpoint.data.tasks.tool_world import OrderWorld
from counterpoint.data.tools import Tool, spoken_values
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.speech.ears import ChunkEar, HeardWords, WordEar
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.rounds import HEARD, Marks, lay_out_rounds
from counterpoint.streams.spec import UNSET_ID, Layout, Role

_EXAMPLES = 4  # with two, a recogniser heard no better than with none
_LATEST = 2  # chunks by which a response is late at most
_NEXT = 10**9  # from an order to the one that takes its place if its text is of the other side


class OrderPace(NamedTuple):
    """How fast an order goes.

    Attributes:
        words_per_s: Words that are spoken in a second.
        late: Number of chunks by which the response to its call is late in training.
    """

    words_per_s: float
    late: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenOrdersData:
    """Spoken orders with thoughts, calls and responses, in words; a `DataSource`.

    Attributes:
        words_per_s: Speaking rate.
        pace_spread: Share of the rate by which it differs at most between orders.
        chunk_s: Seconds of a chunk.
        late: Share of the calls whose response comes one or two chunks late; see `order_rounds`.
        freely: Share of the orders to learn from that are said as people say them, and of which
            words are missed; see `counterpoint.data.tasks.spoken_orders.freely`.
        whole_menu: Whether all is ordered that recorded people order, milk and sugar too; see
            `counterpoint.data.tasks.spoken_orders.menu`.
        retold: Whether every chunk tells all words so far, and calls are taken back when the order
            changes; see `counterpoint.data.tasks.spoken_orders.retold`.
        again: Share of the orders that are told again of which all is heard at once, after what
            another session has called; see `counterpoint.runtime.checked`.
        wide_tokens: Whether what all calls have in common is few tokens, so that a call of the
            whole menu has up to 30 in place of 61; see `OrderWords`.
        tokens_per_s: Tokens that a model writes in a second. It changes no row; a chunk must have
            time for notes and a call, of which the decoder cuts what is longer.
        row_ticks: Number of ticks of a row.
        num_rows: Number of rows to learn from.
        num_held_out: Number of held-out rows of one order each.
        seed: Seed of the orders.
        marks: Marks of the sequence.
    """

    words_per_s: float = 2.8
    pace_spread: float = 0.15
    chunk_s: float = 2.0
    late: float = 0.25
    freely: float = 0.0
    whole_menu: bool = False
    retold: bool = False
    again: float = 0.0
    wide_tokens: bool = False
    tokens_per_s: float = 40.0
    row_ticks: int = 512
    num_rows: int = 100_000
    num_held_out: int = 64
    seed: int = 0
    marks: Marks = field(default_factory=Marks)

    def __post_init__(self) -> None:
        for name in ("words_per_s", "chunk_s", "tokens_per_s", "row_ticks", "num_rows"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"`{name}` must be above 0: got {getattr(self, name)}.")
        if not 0 <= self.pace_spread < 1:
            raise UserError(
                f"`pace_spread` must be at least 0 and below 1: got {self.pace_spread}."
            )
        for name in ("late", "freely", "again"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` must be from 0 to 1: got {getattr(self, name)}.")
        if self.again and not self.retold:
            raise UserError("`again` needs `retold`: only words that are told again are corrected.")

    @property
    def words(self) -> OrderWords:
        """How texts become ids."""
        wide = self.wide_tokens
        return opened_order_words(self.marks, self.menu, cancels=self.retold, wide=wide)

    @property
    def menu(self) -> Menu:
        """What can be ordered."""
        return WHOLE if self.whole_menu else SMALL

    @property
    def answer_tokens(self) -> int:
        """Largest number of tokens of an answer; the longest right one has 23."""
        return 30

    def ear(self, layout: Layout, by_words: WordEar) -> ChunkEar:
        """Return what a model hears of a recording; for the arguments see `ThoughtData.ear`."""
        return by_words(self.heard_words())

    def heard_words(self) -> HeardWords:
        """Return how a model is told words; the example has all values and some orders."""
        orders = (f"{self.request(n).text.capitalize()}." for n in range(_EXAMPLES))
        example = " ".join([spoken_values(self.tools()), *orders])
        in_own_words = partial(in_order_words, menu=self.menu)
        return HeardWords(self.chunk_s, in_own_words, 1, example, self.retold)

    def tools(self) -> tuple[Tool, ...]:
        """Return the tool that a model calls, which changes a small world of its own."""
        return OrderWorld().tools()

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system writes the words and hears no features; see `DataSource.fits`."""
        hears_words = all(stream.is_discrete for stream in layout.by_role(Role.HEARD))
        return (
            len(layout.predicted) == 1
            and hears_words
            and written_stream(layout).sizes[0] >= len(OrderWords(wide=True))
        )

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks of a row; a `DataSource` method."""
        return self.row_ticks

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedOrders":
        """Return the rows for a system; nothing is cached; see `DataSource.prepare`.

        Raises:
            UserError: The system cannot write or hear the words.
        """
        layout = system.layout
        if not self.fits(layout) or written_stream(layout).sizes[0] < len(self.words):
            raise UserError(
                f"A system must write one stream of at least {len(self.words)} ids, and hear words "
                "if it hears anything, to learn spoken orders. Take `vocab_size` from "
                "`SpokenOrdersData.words`."
            )
        return PreparedOrders(self, layout)

    def request(self, number: int, *, held_out: bool = False) -> ToolRequest:
        """Return an order; one in eight texts is held out, and no row to learn from has it."""
        seed = self._seed(held_out=held_out)
        requests = (self.menu.request(seed, number + _NEXT * turn) for turn in count())
        return next(one for one in requests if _is_held_out(one.text) == held_out)

    def rounds(self, number: int, *, held_out: bool = False) -> list[dict[str, str]]:
        """Return the rounds of an order, as texts; see `order_rounds`."""
        request = self.request(number, held_out=held_out)
        pace = self.pace(number, held_out=held_out)
        freely = Random(f"freely {self._seed(held_out=held_out)} {number}")
        if held_out:
            return self.told_rounds(request.text.split(), pace)
        if freely.random() >= self.freely:
            return self._told_or_again(number, request.text.split(), pace, exactly)
        ways = (freely_said(request, freely) for _ in count())
        said = next(words for words in ways if not _is_held_out(" ".join(filter(None, words))))
        pace = pace._replace(words_per_s=pace.words_per_s * freely.uniform(*PACES))
        if self.retold:
            return self._told_or_again(number, said, pace, unsettled(freely, self.menu))
        rounds = self.told_rounds(said, pace)
        return [
            one | {HEARD: spaced(words_heard(one[HEARD].split(), freely, self.menu))}
            if HEARD in one
            else one
            for one in rounds
        ]

    def told_rounds(
        self, said: Sequence[str], pace: OrderPace, recall: Recognising = exactly
    ) -> list[dict[str, str]]:
        """Return the rounds of words and silences at a pace.

        Args:
            said: See `order_chunks`.
            pace: How fast they are said.
            recall: How words are recognised that are retold.
        """
        if self.retold:
            chunks = order_chunks(said, pace.words_per_s, self.chunk_s)
            return retold_rounds(chunks, self.marks, self.menu, pace.late, recall)
        return order_rounds(said, pace.words_per_s, self.chunk_s, self.marks, pace.late, self.menu)

    def _told_or_again(
        self, number: int, said: Sequence[str], pace: OrderPace, recall: Recognising
    ) -> list[dict[str, str]]:
        """Return the rounds of who hears an order while it is said, or of who hears it again."""
        rng = Random(f"again {self.seed} {number}")
        if rng.random() >= self.again:
            return self.told_rounds(said, pace, recall)
        chunks = order_chunks(said, pace.words_per_s, self.chunk_s)
        stands = partial(called_by_another, rng=rng, menu=self.menu)
        return heard_again(chunks, self.marks, self.menu, recall, stands)

    def pace(self, number: int, *, held_out: bool = False) -> OrderPace:
        """Return how fast an order is spoken, and how late the response to its call comes."""
        rng = Random(f"pace {self._seed(held_out=held_out)} {number}")
        rate = self.words_per_s * rng.uniform(1 - self.pace_spread, 1 + self.pace_spread)
        return OrderPace(rate, rng.randint(1, _LATEST) if rng.random() < self.late else 0)

    def _seed(self, *, held_out: bool) -> int:
        return self.seed + (HELD_OUT_SEED if held_out else 0)


def _is_held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] < 256 // 8


class PreparedOrders:
    """Rows of orders; a `counterpoint.data.source.PreparedSource`.

    Args:
        data: The data.
        layout: Streams of the system.
    """

    def __init__(self, data: SpokenOrdersData, layout: Layout) -> None:
        self.data = data
        self.layout = layout

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches, step by step; for the arguments see `Loader`."""
        data = self.data
        # How often an order that is told again changes has no bound, and so its length has none.
        rows = ToldRows(
            data.num_rows,
            data.row_ticks,
            24,
            self.told,
            self.laid_out,
            skips_long=data.retold,
        )
        return Loader(rows, batch_rows, seed, rank, world_size)

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out orders, or ``None`` if there are none."""
        return HeldOutRows(_HeldOutOrders(self)) if self.data.num_held_out else None

    def describe(self) -> str:
        """Return a phrase that says how much data there is."""
        return (
            f"spoken orders with calls of a tool, rows of {self.data.row_ticks} ticks, "
            f"{self.data.num_held_out} orders held out"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digest of the training data: of the options and the first order."""
        options = encode(self.data)
        del options["tokens_per_s"]
        for name in ("whole_menu", "retold", "wide_tokens", "again"):
            if not options[name]:  # so runs from before there was one can be continued
                del options[name]
        facts = {"first": self.data.rounds(0), "data": options}
        if self.data.retold:
            facts["version"] = 2  # responses that there is no time for
        return {"orders": {"train": json_digest(facts)}}

    def told(self, number: int, *, held_out: bool = False) -> Told:
        """Return an order as the ids of its rounds."""
        encoded = self.data.words.encode
        rounds = [
            {name: torch.from_numpy(encoded(text)) for name, text in one.items()}
            for one in self.data.rounds(number, held_out=held_out)
        ]
        num_elements = sum(len(ids) for one in rounds for ids in one.values())
        return Told(schedule.next_column(self.layout, num_elements) - 1, rounds)

    def laid_out(self, orders: Sequence[Told]) -> list[Batch]:
        """Return orders as rows, each of its own length; only what the model writes is a target."""
        places = lay_out_rounds([one.rounds for one in orders])
        wanted = places.ids.masked_fill(~places.trained, UNSET_ID)
        batch = written_rows(self.layout, places.ids, places.heard, wanted)
        return [cut_row(batch, row, one.length) for row, one in enumerate(orders)]


class _HeldOutOrders:
    """Held-out orders, one a row."""

    def __init__(self, prepared: PreparedOrders) -> None:
        self._prepared = prepared

    def __len__(self) -> int:
        return self._prepared.data.num_held_out

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the orders with these numbers, which must be one."""
        (index,) = indices
        return self._prepared.laid_out([self._prepared.told(int(index), held_out=True)])[0]
