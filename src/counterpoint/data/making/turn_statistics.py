"""Statistics of turn-taking in dialogues, measured from their timelines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from counterpoint.streams.timeline import Timeline

HUMAN: Mapping[str, float] = MappingProxyType(
    {
        "overlap_share": 2.30 / 60,
        "overlapping_share": 0.341,
        "transfer_median_s": 0.131,
        "gap_median_s": 0.265,
        "pauses_per_minute": 13.5,
        "pause_median_s": 0.476,
        "backchannels_per_minute": 2.27,
        "yield_median_s": 0.261,
    }
)
"""Statistics of the 2438 Switchboard conversations of `turn_taking`."""


class TurnMeasure(NamedTuple):
    """Title, field and format with which a number of `TurnStatistics` is shown."""

    title: str
    name: str
    form: str


MEASURES = (
    TurnMeasure("floor transfer, median", "transfer_median_s", "{:.2f} s"),
    TurnMeasure("transfers that overlap", "overlapping_share", "{:.1%}"),
    TurnMeasure("gap, median", "gap_median_s", "{:.2f} s"),
    TurnMeasure("pause, median", "pause_median_s", "{:.2f} s"),
    TurnMeasure("pauses a minute", "pauses_per_minute", "{:.1f}"),
    TurnMeasure("time in which both speak", "overlap_share", "{:.1%}"),
    TurnMeasure("backchannels of the user a minute", "backchannels_per_minute", "{:.1f}"),
    TurnMeasure("yields to an interruption after, median", "yield_median_s", "{:.2f} s"),
)
"""The numbers that are also known for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnStatistics:
    """Statistics of some dialogues; NaN if there is nothing of the kind.

    Attributes:
        dialogues: Number of dialogues.
        hours: Total length in hours.
        overlap_share: Share of the time in which both speak.
        overlapping_share: Share of the floor transfers that overlap.
        transfer_median_s: Median time from the end of a turn to the start of the other's turn.
        gap_median_s: Median time of those transfers that do not overlap.
        pauses_per_minute: Silences within turns, a minute.
        pause_median_s: Median length of these silences.
        backchannels_per_minute: Backchannels of the user, a minute.
        interruptions: Number of interruptions.
        yield_median_s: Median time from the start of an interruption to the end of the other's
            speech.
    """

    dialogues: int
    hours: float
    overlap_share: float
    overlapping_share: float
    transfer_median_s: float
    gap_median_s: float
    pauses_per_minute: float
    pause_median_s: float
    backchannels_per_minute: float
    interruptions: int
    yield_median_s: float


def measure(dialogues: Iterable[tuple[float, Timeline]]) -> TurnStatistics:
    """Compute the statistics of dialogues from `lay_out`, each given with its length in seconds."""
    count = 0
    total_s = 0.0
    overlap_s = 0.0
    transfers = list[float]()
    pauses = list[float]()
    yields = list[float]()
    backchannels = interruptions = 0
    for duration_s, timeline in dialogues:
        count += 1
        total_s += duration_s
        overlap_s += _overlap_s(timeline)
        floor = [event for event in timeline if event.kind in ("turn", "interruption")]
        for before, after in zip(floor, floor[1:], strict=False):
            if after.kind == "turn" and before.stream != after.stream:
                transfers.append(after.start_s - before.end_s)
        pauses += [event.end_s - event.start_s for event in timeline.where(kind="pause")]
        backchannels += len(timeline.where(stream="user", kind="backchannel"))
        stops = list(timeline.where(kind="interruption"))
        interruptions += len(stops)
        cuts = [(event.payload["cut_s"], event.start_s) for event in stops]
        yields += [cut_s - start_s for cut_s, start_s in cuts if cut_s is not None]
    minutes = max(total_s / 60, 1e-9)
    return TurnStatistics(
        dialogues=count,
        hours=total_s / 3600,
        overlap_share=overlap_s / max(total_s, 1e-9),
        overlapping_share=_ratio(sum(one < 0 for one in transfers), len(transfers)),
        transfer_median_s=_median(transfers),
        gap_median_s=_median([one for one in transfers if one >= 0]),
        pauses_per_minute=len(pauses) / minutes,
        pause_median_s=_median(pauses),
        backchannels_per_minute=backchannels / minutes,
        interruptions=interruptions,
        yield_median_s=_median(yields),
    )


def _overlap_s(timeline: Timeline) -> float:
    agent, user = (timeline.where(stream=name, kind="speech") for name in ("agent", "user"))
    return sum(
        max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))
        for one in agent
        for other in user
    )


def _median(values: Sequence[float]) -> float:
    return median(values) if values else float("nan")


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
