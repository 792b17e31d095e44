"""How fast a conversation went: computed from its timeline alone."""

from collections.abc import Sequence
from typing import NamedTuple

from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Event, Timeline


class Delays(NamedTuple):
    """Delays of a conversation, in seconds.

    Attributes:
        first_sound_s: For each answered turn, from the end of the user's voice to the first sound.
        stop_s: For each interruption by the user, from its first sound to the agent's silence.
        early_calls: Number of calls whose result came while the user spoke.
        late_calls: Number of those whose result came later.
        failed_calls: Number of calls without a result. One that failed and then succeeded when it
            was repeated has one.
    """

    first_sound_s: tuple[float, ...]
    stop_s: tuple[float, ...]
    early_calls: int
    late_calls: int
    failed_calls: int


def measure_delays(timeline: Timeline) -> Delays:
    """Return the delays of a conversation of a cascade."""
    ends = {turn.payload.get("turn"): turn.end_s for turn in timeline.where(kind="turn")}
    interrupted = {
        event.payload.get("turn")
        for event in timeline.where(stream=AGENT, kind="interruption")
        if event.payload.get("by") == AGENT
    }
    answers = [
        answer
        for answer in timeline.where(stream=AGENT, kind="answer")
        if answer.payload.get("turn") in ends and answer.payload.get("turn") not in interrupted
    ]
    stops = [
        event.end_s - event.start_s
        for event in timeline.where(stream=AGENT, kind="interruption")
        if event.payload.get("by") == USER
    ]
    attempts = {
        (event.payload.get("call", f"event {place}"), place): event
        for place, event in enumerate(timeline.where(kind="call"))
    }
    calls = {number for number, _ in attempts}
    results = {
        number: event
        for (number, _), event in reversed(attempts.items())
        if event.payload.get("ok")
    }
    early = sum(_is_early(event, timeline) for event in results.values())
    return Delays(
        first_sound_s=tuple(one.start_s - ends[one.payload.get("turn")] for one in answers),
        stop_s=tuple(stops),
        early_calls=early,
        late_calls=len(results) - early,
        failed_calls=len(calls) - len(results),
    )


def _is_early(call: Event, timeline: Timeline) -> bool:
    """Return whether the result of a call came before the turn that asks for it had ended."""
    turns = timeline.where(stream=USER, kind="turn").events
    asked = [turn for turn in turns if turn.payload.get("turn") == call.payload.get("turn")]
    begun = [turn for turn in turns if turn.start_s <= call.start_s]
    return any(call.end_s < turn.end_s for turn in (asked or begun)[-1:])


def told(values: Sequence[float]) -> str:
    """Return the median and the 95th percentile of seconds; a dash without values."""
    if not values:
        return "-"
    return f"{percentile(values, 0.5):.2f} s, p95 {percentile(values, 0.95):.2f} s"
