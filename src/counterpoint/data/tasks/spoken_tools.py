"""Requests for tools, as they are spoken: which calls are right, and when each is determined.

Three sources: orders that are generated, half of them with a self-correction ("a latte, no wait, a
mocha"); recorded orders of real people; and user turns of the Schema-Guided Dialogue set that lead
to a call. A fourth one, `mock_apis`, has a file of its own. The judge is the state of the world
after the conversation. No part of it is a model.

Source: the tool task of SHANKS (arXiv:2510.06917), section 3.2, whose own data cannot be had.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from counterpoint.data.tasks.items import draw
from counterpoint.data.tasks.order_times import OrderTimes
from counterpoint.data.tasks.tool_world import ORDER, SLOTS, PlainCall
from counterpoint.data.tools import Tool, canonical
from counterpoint.errors import UserError, absent
from counterpoint.files import read_json_lines

SPOKEN = ("size", "roast", "numberOfShots", "coffeeDrink")
"""Slots of a generated order, in the order in which they are said."""
OPENINGS = ("could i have a", "i would like a", "can you make me a", "i want to order a")
CORRECTIONS = ("no wait make that a", "sorry i mean a", "actually no a")
ENDINGS = (
    "please",
    "and that is all for today thank you very much",
    "and i am in a bit of a hurry because my train leaves soon",
)
"""What generated orders are made of."""
CORRECTED_SHARE = 0.5
_RULED_OUT = ("not a", "instead of a", "and i do not want a")
_WITHDRAWALS = (
    "actually cancel that",
    "no never mind i am fine thank you",
    "oh forget it i have to run",
)
_WITHDRAWN_SHARE = 0.5
_WORD_S = 0.35  # an item of text alone has no times: its words take this long


class WantedCall(NamedTuple):
    """A call that is right.

    Attributes:
        name: The tool.
        arguments: Its arguments.
        known_words: Number of words after which all arguments are known; 0 if nobody knows.
        known_s: Seconds of the recording after which they are; ``None`` if nobody knows.
    """

    name: str
    arguments: Mapping[str, Any]
    known_words: int
    known_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolRequest:
    """What a user says, and what must come of it.

    Attributes:
        name: Name of the item.
        text: What is said; empty if only the recording knows.
        calls: The calls that are right.
        stale: Calls that were said and then corrected, withdrawn or ruled out.
        recording: A recording of it; ``None`` if it must be synthesised.
        stop_s: Seconds of the recording at which the user stops; ``None`` if nobody knows.
        start: What the world is like before it, in the form that its world takes; ``None`` if that
            always begins alike.
    """

    name: str
    text: str
    calls: tuple[WantedCall, ...]
    stale: tuple[PlainCall, ...] = ()
    recording: Path | None = None
    stop_s: float | None = None
    start: Any = None


class MadeCall(NamedTuple):
    """A call that succeeded, with the time at which its result came."""

    name: str
    arguments: Mapping[str, Any]
    at_s: float


class ToolOutcome(NamedTuple):
    """What came of a request.

    Attributes:
        made: Calls that succeeded, also those that were taken back later.
        in_force: Calls whose effect holds in the end, in order: they make the state of the world.
        stop_s: Time at which the user stopped speaking.
    """

    made: tuple[MadeCall, ...]
    in_force: tuple[PlainCall, ...]
    stop_s: float


def generated_requests(seed: int, number: int) -> list[ToolRequest]:
    """Return orders that are pure functions of a seed and their number."""
    return [generated_request(seed, place) for place in range(number)]


def generated_request(seed: int, number: int) -> ToolRequest:
    """Return the order of a seed and a number, perhaps with a self-correction."""
    rng = draw(seed, number)
    slots = _drawn(rng)
    said = f"{rng.choice(OPENINGS)} {_spelled(slots)}"
    stale: tuple[PlainCall, ...] = ()
    if rng.random() < CORRECTED_SHARE:
        stale = ((ORDER, dict(slots)),)
        slots["coffeeDrink"] = rng.choice([one for one in _DRINKS if one != slots["coffeeDrink"]])
        said += f" {rng.choice(CORRECTIONS)} {slots['coffeeDrink']}"
    known = len(said.split())
    return ToolRequest(
        name=f"generated {seed} {number}",
        text=f"{said} {rng.choice(ENDINGS)}",
        calls=(WantedCall(ORDER, slots, known),),
        stale=stale,
    )


def ruled_out_requests(seed: int, number: int) -> list[ToolRequest]:
    """Return orders that rule a drink out, and orders that are withdrawn.

    The first kind says "a latte not a mocha" and wants the first; after the second, "a latte
    actually cancel that", nothing may be in force. They are functions of a seed and their number.
    """
    return [_ruled_out(seed, place) for place in range(number)]


def _ruled_out(seed: int, number: int) -> ToolRequest:
    rng = draw(seed, number)
    slots = _drawn(rng)
    other = rng.choice([one for one in _DRINKS if one != slots["coffeeDrink"]])
    said = f"{rng.choice(OPENINGS)} {_spelled(slots)}"
    known = len(said.split())
    name = f"ruled out {seed} {number}"
    if rng.random() < _WITHDRAWN_SHARE:
        text = f"{said} {rng.choice(_WITHDRAWALS)}"
        return ToolRequest(name=name, text=text, calls=(), stale=((ORDER, slots),))
    return ToolRequest(
        name=name,
        text=f"{said} {rng.choice(_RULED_OUT)} {other} {rng.choice(ENDINGS)}",
        calls=(WantedCall(ORDER, slots, known),),
        stale=((ORDER, slots | {"coffeeDrink": other}),),
    )


# No drink of these is a part of another one's name.
_DRINKS = ("mocha", "cappuccino", "americano", "latte", "espresso", "drip coffee")


def _drawn(rng: random.Random) -> dict[str, str]:
    slots = {"coffeeDrink": rng.choice(_DRINKS)}
    for name in rng.sample(("size", "roast", "numberOfShots"), rng.randint(0, 2)):
        slots[name] = rng.choice(SLOTS[name])
    return slots


def _spelled(slots: Mapping[str, str]) -> str:
    return " ".join(slots[name] for name in SPOKEN if name in slots)


def recorded_requests(
    folder: Path, times: Mapping[str, OrderTimes | None] | None = None
) -> list[ToolRequest]:
    """Return recorded orders of real people.

    Args:
        folder: Folder with `orders.jsonl`, one recording a line: `path`, `intent`, `slots`.
        times: When their arguments are determined, by `path`, as `read_order_times` returns it.
            Without it, nobody knows, and an oracle cannot call early.

    Raises:
        UserError: There is no such file, a line is not what it must be, or an order is not among
            the times.
    """
    path = Path(folder) / "orders.jsonl"
    if not path.is_file():
        raise UserError(f"A folder of recorded orders must have orders.jsonl: no {str(path)!r}.")
    found = []
    for place, record in read_json_lines(path):
        try:
            slots = {name: value.strip() for name, value in record["slots"].items()}
            intent = str(record["intent"])
            name = record["path"]
            recording = Path(folder) / name
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{place} must have `path`, `intent` and `slots`: {type(error).__name__}."
            ) from error
        own = None if times is None else _times_of(name, slots, times)
        call = WantedCall(intent, slots, 0, None if own is None else own.known_s)
        stop_s = None if own is None else own.end_s
        found.append(
            ToolRequest(name=name, text="", calls=(call,), recording=recording, stop_s=stop_s)
        )
    return found


def _times_of(
    name: str, slots: Mapping[str, str], times: Mapping[str, OrderTimes | None]
) -> OrderTimes | None:
    """Return the times of an order; ``None`` if no word of it was heard."""
    own = times.get(name)
    if name not in times or (own is not None and own.known.keys() != slots.keys()):
        raise UserError(
            f"The times of orders must be those of these recordings: {name!r} has none, or those "
            "of other arguments. Make them anew with `benchmarks/order_times.py`."
        )
    return own


def dialogue_requests(path: Path) -> list[ToolRequest]:
    """Return turns of users that contain every argument of the call that follows.

    Args:
        path: A file of dialogues, as `Dialogues` reads them.

    Raises:
        UserError: There is no such file.
    """
    if not Path(path).is_file():
        raise UserError(absent("The file of dialogues", path))
    found = []
    for _, record in read_json_lines(Path(path)):
        turns = record["turns"]
        for number, (turn, reply) in enumerate(zip(turns, turns[1:], strict=False)):
            call = next((frame["call"] for frame in reply["frames"] if frame.get("call")), None)
            if turn["speaker"] != "user" or not call or not call["parameters"]:
                continue
            if wanted := wanted_call(turn["text"], (call["method"], dict(call["parameters"]))):
                name = f"{record['id']} {number}"
                found.append(ToolRequest(name=name, text=turn["text"], calls=(wanted,)))
    return found


def wanted_call(text: str, call: PlainCall) -> WantedCall | None:
    """Return a call with the number of words of a text after which all its arguments are known.

    Args:
        text: What is said.
        call: Name and arguments.

    Returns:
        The call; ``None`` if it has no arguments, or one is not said as it is written.
    """
    name, arguments = call
    known = [_known_after(text, str(value)) for value in arguments.values()]
    return WantedCall(name, arguments, max(known)) if known and all(known) else None


def _known_after(text: str, value: str) -> int:
    """Return the number of words up to the end of a value in a text; 0 if it is not there."""
    if not value:
        return 0
    found = re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", text.lower())
    return len(text[: found.end()].split()) if found else 0


def said_values(requests: Iterable[ToolRequest]) -> dict[str, dict[str, list[Any]]]:
    """Return the values that some requests need, by the names of tools and of their arguments."""
    values: dict[str, dict[str, set[Any]]] = {}
    for request in requests:
        for call in request.calls:
            for name, value in call.arguments.items():
                values.setdefault(call.name, {}).setdefault(name, set()).add(value)
    return {
        tool: {name: sorted(own, key=str) for name, own in slots.items()}
        for tool, slots in sorted(values.items())
    }


def dialogue_tools(requests: Iterable[ToolRequest]) -> tuple[Tool, ...]:
    """Return tools with the names and values that some requests need; they only read."""
    return tuple(
        Tool(
            name=name,
            description="",
            parameters={
                "type": "object",
                "properties": {one: {"type": "string", "enum": own} for one, own in slots.items()},
            },
            function=_found,
            effect="none",
        )
        for name, slots in said_values(requests).items()
    )


def _found(**arguments: str) -> dict[str, str]:
    return arguments


WorldJudge = Callable[[ToolRequest, Sequence[PlainCall]], bool]
"""Tells whether calls that are in force leave the world as a request wants it."""


def has_exactly(request: ToolRequest, in_force: Sequence[PlainCall]) -> bool:
    """Return whether exactly the right calls are in force; see `WorldJudge`."""
    right = Counter(canonical(call.name, call.arguments) for call in request.calls)
    return right == Counter(canonical(name, own) for name, own in in_force)


def score_requests(
    requests: Sequence[ToolRequest],
    outcomes: Sequence[ToolOutcome],
    is_right: WorldJudge = has_exactly,
) -> dict[str, float]:
    """Return the scores of some requests; all are shares of their sums.

    Args:
        requests: The requests.
        outcomes: What came of them.
        is_right: Judges the world in the end.

    Returns:
        "early" and "total": right calls that succeeded before the user stopped, and at all;
        "success": requests after which the world is right; "stale": corrected
        requests after which a call with the old values is in force; "slots": right arguments of the
        calls in force.
    """
    sums: Counter[str] = Counter()
    for request, outcome in zip(requests, outcomes, strict=True):
        gold = Counter(canonical(call.name, call.arguments) for call in request.calls)
        force = Counter(canonical(name, own) for name, own in outcome.in_force)
        early = Counter(
            canonical(call.name, call.arguments)
            for call in outcome.made
            if call.at_s < outcome.stop_s
        )
        old = {canonical(name, own) for name, own in request.stale}
        sums["calls"] += gold.total()
        sums["early"] += (gold & early & force).total()
        sums["total"] += (gold & force).total()
        sums["items"] += 1
        sums["success"] += is_right(request, outcome.in_force)
        sums["corrected"] += bool(old)
        sums["stale"] += bool(old & force.keys())
        right = _slots((call.name, call.arguments) for call in request.calls)
        sums["slots of the right calls"] += right.total()
        sums["slots"] += (right & _slots(outcome.in_force)).total()
    return {
        "early": sums["early"] / max(sums["calls"], 1),
        "total": sums["total"] / max(sums["calls"], 1),
        "success": sums["success"] / max(sums["items"], 1),
        "stale": sums["stale"] / max(sums["corrected"], 1),
        "slots": sums["slots"] / max(sums["slots of the right calls"], 1),
    }


def _slots(calls: Iterable[PlainCall]) -> Counter[str]:
    return Counter(
        canonical(name, {slot: value}) for name, own in calls for slot, value in own.items()
    )


ToolPolicy = Callable[[ToolRequest], ToolOutcome]
"""Answers a request without hearing it, or with the truth."""


def tool_policies(requests: Sequence[ToolRequest]) -> dict[str, ToolPolicy]:
    """Return policies by name: the floors, and what a perfect model does early or late."""
    every = [call for request in requests for call in request.calls]
    counts = Counter(canonical(call.name, call.arguments) for call in every)
    by_text = {canonical(call.name, call.arguments): call for call in every}
    common = by_text[counts.most_common(1)[0][0]] if counts else WantedCall("", {}, 0)

    def never(request: ToolRequest) -> ToolOutcome:
        return ToolOutcome((), (), _stop_s(request))

    def most_common(request: ToolRequest) -> ToolOutcome:
        return _outcome([common], [0.0], _stop_s(request))

    def first_said(request: ToolRequest) -> ToolOutcome:
        """Makes what is taken back later at once, other calls when known, and corrects nothing."""
        stop_s = _stop_s(request)
        if request.stale:
            calls = [WantedCall(name, own, 0) for name, own in request.stale]
            return _outcome(calls, [0.0] * len(calls), stop_s)
        return _outcome(request.calls, [_known_s(call, stop_s) for call in request.calls], stop_s)

    def after_listening(request: ToolRequest) -> ToolOutcome:
        times_s = [_stop_s(request) + 1.0] * len(request.calls)
        return _outcome(request.calls, times_s, _stop_s(request))

    def oracle(request: ToolRequest) -> ToolOutcome:
        """Makes each call when its last argument was said, and the calls before it were made."""
        known_s = accumulate((_known_s(call, _stop_s(request)) for call in request.calls), max)
        return _outcome(request.calls, [*known_s], _stop_s(request))

    return {
        "never": never,
        "most common call": most_common,
        "what was said first": first_said,
        "oracle after listening": after_listening,
        "oracle": oracle,
    }


def _stop_s(request: ToolRequest) -> float:
    return len(request.text.split()) * _WORD_S if request.stop_s is None else request.stop_s


def _known_s(call: WantedCall, stop_s: float) -> float:
    """Return when all arguments of a call are known: at the stop if nobody knows better."""
    if call.known_s is not None:
        return call.known_s
    return call.known_words * _WORD_S if call.known_words else stop_s


def _outcome(calls: Sequence[WantedCall], times_s: Sequence[float], stop_s: float) -> ToolOutcome:
    made = tuple(
        MadeCall(call.name, call.arguments, at_s) for call, at_s in zip(calls, times_s, strict=True)
    )
    return ToolOutcome(made, tuple((call.name, call.arguments) for call in calls), stop_s)
