"""The texts of spoken orders as ids: words, pieces of JSON and marks, whose texts join exactly."""

import json
import re
from functools import cache

import numpy as np
from jaxtyping import Int

from counterpoint.data.tasks.recognised import in_known_words
from counterpoint.data.tasks.spoken_orders.menu import JOINTS, SMALL, Menu
from counterpoint.data.tasks.spoken_orders.rounds import ORDERED, answer_to, written_call
from counterpoint.data.tasks.spoken_tools import CORRECTIONS, ENDINGS, OPENINGS
from counterpoint.data.tasks.tool_world import SLOTS
from counterpoint.digests import json_digest
from counterpoint.streams.rounds import CANCEL, Marks

_UNKNOWN = "<unknown>"


class OrderWords:
    """The pieces of spoken orders as ids; id 0 fills rows up, and id 1 is any unknown piece.

    A piece is a mark, a word, or punctuation, the latter two with the blank before them. What an
    order cannot contain, such as why a tool has failed, becomes the unknown piece.

    Args:
        marks: Marks of the sequence.
        menu: What can be ordered.
        cancels: Whether calls are taken back.
        wide: Whether what all calls have in common is one piece each: their beginning, their end,
            and a slot with its quotes. Then only the values of a call are pieces of their own, and
            a tool's name or a slot in quotes that stands elsewhere is unknown.
    """

    def __init__(
        self,
        marks: Marks | None = None,
        menu: Menu = SMALL,
        *,
        cancels: bool = False,
        wide: bool = False,
    ) -> None:
        own = marks or Marks()
        every = [own.part, own.last, own.close, own.interrupt, own.stop]
        every += [own.call, own.call_end, own.response, own.response_end]
        every += [CANCEL] if cancels else []
        every += _wide(menu) if wide else []
        named = "|".join(map(re.escape, every))
        self._piece = re.compile(rf"{named}|\s?\w+|\s?(?:(?!{named})[^\w\s])+")
        told = [piece for text in _texts(own, menu) for piece in self._piece.findall(text)]
        self.pieces = ("<pad>", _UNKNOWN, *dict.fromkeys((*every, *told)))
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.identity = f"orders:{json_digest(self.pieces)}"

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of a text."""
        unknown = self._ids[_UNKNOWN]
        found = [self._ids.get(piece, unknown) for piece in self._piece.findall(text)]
        return np.array(found, np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the text of ids; a model may have more ids than there are pieces."""
        most = len(self.pieces)
        return "".join(self.pieces[one] if one < most else _UNKNOWN for one in ids.tolist())


def in_order_words(text: str, menu: Menu = SMALL) -> list[str]:
    """Return a recognised word in the words of orders; what is unlike them is left out."""
    return in_known_words(text, said_words(menu), _size, _OTHERS)


def _size(number: int) -> list[str]:
    """Return how many ounces a figure says, if there is such a size."""
    return [_SIZES[number]] if number in _SIZES else []


_SIZES = {8: "eight", 12: "twelve", 16: "sixteen", 20: "twenty"}
_OTHERS = {"oz": "ounce", "skimmed": "skim", "soya": "soy"}


@cache
def said_words(menu: Menu) -> list[str]:
    """Return the words of which orders are made."""
    phrases = [*OPENINGS, *CORRECTIONS, *ENDINGS, *(v for s in menu.slots for v in SLOTS[s])]
    if menu.added:
        phrases += JOINTS
    return sorted({word for text in phrases for word in text.split()})


def _wide(menu: Menu) -> list[str]:
    """Return what all calls and responses have in common, where values stand between it."""
    begun = [written_call({}, Marks(call="", call_end="")), json.dumps({"ordered": {}})]
    begun = [text.rstrip("}") for text in begun]
    slots = [f'{before}"{slot}": "' for slot in menu.slots for before in ('", ', "")]
    return [*begun, *slots, '"}}']


def _texts(marks: Marks, menu: Menu) -> list[str]:
    """Return texts that hold every piece that an order can have."""
    said = [f" {words}" for words in (*OPENINGS, *CORRECTIONS, *ENDINGS)]
    single = [{slot: value} for slot in menu.slots for value in SLOTS[slot]]
    orders = [*single, {slot: SLOTS[slot][0] for slot in menu.slots}]
    for order in orders:
        said += [f" {slot} {value}" for slot, value in order.items()]
        said += [written_call(order, marks), json.dumps({"ordered": order}), answer_to(order)]
    if menu.added:
        said += [f" {joint}" for joint in JOINTS]
    return [*said, ORDERED]


@cache
def opened_order_words(marks: Marks, menu: Menu, *, cancels: bool, wide: bool) -> OrderWords:
    """Return how orders become ids; they are found once for the same arguments."""
    return OrderWords(marks, menu, cancels=cancels, wide=wide)
