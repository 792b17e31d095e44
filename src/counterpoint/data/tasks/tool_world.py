"""A small world for tools: a counter that takes orders of coffee, and can fail, be slow or hang.

The slots and their values are those of a set of spoken orders of real people (Picovoice's
speech-to-intent benchmark, Apache-2.0). What the counter holds in the end is the judge of a
conversation: not what was said about it.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from counterpoint.data.tools import Tool

DRINKS = (
    "mocha", "iced mocha", "cappuccino", "house coffee", "coffee", "americano", "latte",
    "drip coffee", "espresso", "iced coffee",
)  # fmt: skip
AMOUNTS = ("", "some", "a bit of", "a little bit of", "a lot of", "lots of")
MILKS = ("milk", "cream", "almond milk", "soy milk", "whole milk", "skim milk")
SUGARS = ("sugar", "brown sugar", "sweetener")


def _amounts(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{amount} {kind}".strip() for amount, kind in product(AMOUNTS, kinds))


SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "size": (
            "small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce",
            "twenty ounce",
        ),
        "roast": ("light roast", "medium roast", "dark roast"),
        "numberOfShots": ("single shot", "double shot", "triple shot"),
        "coffeeDrink": DRINKS,
        "milkAmount": _amounts(MILKS),
        "sugarAmount": _amounts(SUGARS),
    }
)  # fmt: skip
"""Values of each slot of an order."""

ORDER = "orderDrink"
"""Name of the tool, and the intent in the recordings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """How the counter misbehaves.

    Attributes:
        slow_s: Seconds that every call takes.
        failures: Number of first calls of each key that raise.
        late_failure: Whether those calls have their effect before they raise, as after a timeout.
    """

    slow_s: float = 0.0
    failures: int = 0
    late_failure: bool = False


class OrderWorld:
    """A counter that takes orders; an order is in force until it is taken back."""

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self._orders: dict[str, dict[str, str]] = {}
        self._gone: set[str] = set()
        self._tries: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def in_force(self) -> list[dict[str, str]]:
        """The orders that are in force."""
        with self._lock:
            return list(self._orders.values())

    def order(self, key: str, **slots: str) -> dict[str, Any]:
        """Take an order, once for each key; a key that was taken back is refused."""
        time.sleep(self._faults.slow_s)
        with self._lock:
            self._tries[key] = self._tries.get(key, 0) + 1
            fails = self._tries[key] <= self._faults.failures
            if key not in self._gone and (not fails or self._faults.late_failure):
                self._orders[key] = dict(slots)
        if fails:
            raise ConnectionError("the counter does not answer")
        return {"ordered": dict(slots)}

    def take_back(self, key: str) -> None:
        """Take an order back, also before it has come."""
        with self._lock:
            self._gone.add(key)
            self._orders.pop(key, None)

    def tools(self) -> tuple[Tool, ...]:
        """Return the tool with which orders are made."""
        properties = {
            name: {"type": "string", "enum": list(values)} for name, values in SLOTS.items()
        }
        return (
            Tool(
                name=ORDER,
                description="Orders a drink at the counter.",
                parameters={
                    "type": "object",
                    "properties": properties,
                    "required": ["coffeeDrink"],
                },
                function=self.order,
                effect="undoable",
                undo=self.take_back,
                say=_confirmed,
            ),
        )


def _confirmed(result: Mapping[str, Mapping[str, str]]) -> str:
    slots = result["ordered"]
    first = [slots[name] for name in SLOTS if name in slots and not name.endswith("Amount")]
    added = [slots[name] for name in ("milkAmount", "sugarAmount") if name in slots]
    return f"One {' '.join(first)}{' with ' * bool(added)}{' and '.join(added)}."
