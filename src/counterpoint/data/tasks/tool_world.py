"""Worlds for tools, which can fail, be slow or hang; the small one takes orders of coffee.

The slots and their values are those of a set of spoken orders of real people (Picovoice's
speech-to-intent benchmark, Apache-2.0). What a world holds in the end is the judge of a
conversation: not what was said about it.
"""

import threading
import time
from abc import ABC, abstractmethod
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


PlainCall = tuple[str, Mapping[str, Any]]
"""Name and arguments of a call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """How a world misbehaves.

    Attributes:
        slow_s: Seconds that every call takes.
        failures: Number of first calls of each key that raise.
        late_failure: Whether those calls have their effect before they raise, as after a timeout.
    """

    slow_s: float = 0.0
    failures: int = 0
    late_failure: bool = False


class ToolWorld(ABC):
    """A world that calls change; a call is in force until it is taken back.

    Args:
        faults: How it misbehaves; ``None`` for not at all.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self._calls: dict[str, PlainCall] = {}
        self._gone: set[str] = set()
        self._tries: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def in_force(self) -> tuple[PlainCall, ...]:
        """The calls that are in force, in the order in which they were made."""
        with self._lock:
            return tuple(self._calls.values())

    @abstractmethod
    def tools(self) -> tuple[Tool, ...]:
        """Return the tools that change the world."""

    def take_back(self, key: str) -> None:
        """Take a call back, also before it has come."""
        with self._lock:
            self._gone.add(key)
            self._calls.pop(key, None)

    def _make(self, key: str, call: PlainCall) -> None:
        """Make a call, once for each key; a key that was taken back changes nothing.

        Raises:
            ConnectionError: It fails, as `Faults` say.
        """
        time.sleep(self._faults.slow_s)
        with self._lock:
            self._tries[key] = self._tries.get(key, 0) + 1
            fails = self._tries[key] <= self._faults.failures
            if key not in self._gone and (not fails or self._faults.late_failure):
                self._calls[key] = call
        if fails:
            raise ConnectionError("the world does not answer")


class OrderWorld(ToolWorld):
    """A counter that takes orders."""

    def order(self, key: str, **slots: str) -> dict[str, Any]:
        """Take an order."""
        self._make(key, (ORDER, slots))
        return {"ordered": dict(slots)}

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
