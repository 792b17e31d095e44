"""Timelines: timed events in seconds, the one form shared by data, traces, scores and pictures.

A file is JSONL: a header object ``{"timeline": 1, ...}`` and one object an event. The kinds of
event (speech segments, words, thoughts, calls, interruptions, marks) are up to those who write and
read them; what an event must carry beyond its text goes into ``payload``.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import UNSET_ID

_VERSION = 1
_TICK_TOLERANCE = 1e-6  # of a tick: k / tick_hz * tick_hz must be k again


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened on a stream.

    Attributes:
        start_s: Seconds since the start of the recording.
        end_s: At least ``start_s``; equal for an event without duration.
        stream: Name of the stream.
        kind: What happened, for example "word".
        text: What was said or written.
        payload: Further JSON values by name.
    """

    start_s: float
    end_s: float
    stream: str
    kind: str
    text: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 <= self.start_s <= self.end_s < math.inf):
            raise ValueError(
                "An event must have finite times with 0 <= `start_s` <= `end_s`: got "
                f"start_s={self.start_s}, end_s={self.end_s} ({self.kind!r} on {self.stream!r})."
            )
        if not self.stream or not self.kind:
            raise ValueError(
                "An event must name its `stream` and `kind`: got "
                f"stream={self.stream!r}, kind={self.kind!r}."
            )
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", float(self.end_s))
        object.__setattr__(self, "payload", _as_json(self.payload, "payload"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Events in order of (start, end); events with the same times keep the order given.

    Attributes:
        events: Sorted on construction.
        header: JSON values about the whole: streams, sources, seed.
    """

    events: tuple[Event, ...] = ()
    header: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "timeline" in self.header:
            raise ValueError("`header` must not hold the key 'timeline': it marks the file format.")
        ordered = sorted(self.events, key=lambda event: (event.start_s, event.end_s))
        object.__setattr__(self, "events", tuple(ordered))
        object.__setattr__(self, "header", _as_json(self.header, "header"))

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @property
    def end_s(self) -> float:
        """End of the last event to end; 0 without events."""
        return max((event.end_s for event in self.events), default=0.0)

    def where(self, *, stream: str | None = None, kind: str | None = None) -> "Timeline":
        """The events of one stream, of one kind, or both."""
        return replace(self, events=tuple(_matching(self.events, stream, kind)))

    def cut(self, start_s: float, stop_s: float) -> "Timeline":
        """Events within ``start_s <= time < stop_s``, clipped to it; times stay absolute."""
        kept = []
        for event in self.events:
            inside = event.start_s < stop_s and event.end_s > start_s
            if inside or (event.start_s == event.end_s == start_s < stop_s):
                clipped_start, clipped_end = max(event.start_s, start_s), min(event.end_s, stop_s)
                kept.append(replace(event, start_s=clipped_start, end_s=clipped_end))
        return replace(self, events=tuple(kept))

    def shift(self, offset_s: float) -> "Timeline":
        """Move every event later by ``offset_s`` (earlier when negative)."""
        moved = [
            replace(event, start_s=event.start_s + offset_s, end_s=event.end_s + offset_s)
            for event in self.events
        ]
        return replace(self, events=tuple(moved))

    def merge(self, other: "Timeline") -> "Timeline":
        """All events of both; where times are equal, this timeline's come first.

        Raises:
            ValueError: The headers hold different values for the same key.
        """
        for key in self.header.keys() & other.header.keys():
            if self.header[key] != other.header[key]:
                raise ValueError(
                    f"Merged timelines must agree on header {key!r}: got {self.header[key]!r} and "
                    f"{other.header[key]!r}. Change one of them first."
                )
        return replace(
            self, events=self.events + other.events, header={**self.header, **other.header}
        )

    def to_labels(
        self, tick_hz: float, num_ticks: int, *, stream: str | None = None, kind: str | None = None
    ) -> Int[Tensor, " T"]:
        """Index into ``events`` of the event that covers each tick, `UNSET_ID` where there is none.

        An event covers every tick that it touches, one without duration the tick it falls in. Where
        events share a tick, the one that comes later in the timeline has it.
        """
        labels = torch.full((num_ticks,), UNSET_ID)
        for index, event in enumerate(self.events):
            if _matches(event, stream, kind):
                first, stop = _tick_range(event, tick_hz)
                labels[first:stop] = index
        return labels

    def to_ids(
        self,
        tick_hz: float,
        num_ticks: int,
        encode: Callable[[str], Sequence[int]],
        *,
        stream: str | None = None,
        kind: str | None = None,
    ) -> Int[Tensor, " T"]:
        """Encoded texts, one id a tick: each from its event's first tick, `UNSET_ID` between them.

        Ids that find their tick taken wait for the next free one, so order is kept, nothing is lost
        and no id comes before its event starts.

        Raises:
            ValueError: The ids do not fit into ``num_ticks``.
        """
        ids = torch.full((num_ticks,), UNSET_ID)
        free = 0
        for event in _matching(self.events, stream, kind):
            encoded = encode(event.text)
            first = max(free, _tick_range(event, tick_hz)[0])
            free = first + len(encoded)
            if free > num_ticks:
                raise ValueError(
                    f"The ids of all events must fit into `num_ticks`: got {num_ticks}, but "
                    f"{event.text!r} at {event.start_s} s needs {free}. Raise `num_ticks`, or cut "
                    "the timeline."
                )
            ids[first:free] = torch.tensor(encoded, dtype=torch.long)
        return ids

    @classmethod
    def from_labels(
        cls,
        labels: Int[Tensor, " T"],
        tick_hz: float,
        texts: Sequence[str],
        *,
        stream: str,
        kind: str,
    ) -> "Timeline":
        """One event for every run of equal labels, with ``texts[label]``; `UNSET_ID` is silence."""
        if len(labels) and not UNSET_ID <= labels.min() <= labels.max() < len(texts):
            raise ValueError(
                f"`labels` must be {UNSET_ID} or index one of the {len(texts)} `texts`: got "
                f"{labels.min()} .. {labels.max()}."
            )
        runs = _runs(labels.tolist(), lambda previous, label: previous == label)
        spoken = ((first, len(run), texts[run[0]]) for first, run in runs)
        return cls(events=_on_ticks(spoken, tick_hz, stream, kind))

    @classmethod
    def from_ids(
        cls,
        ids: Int[Tensor, " T"],
        tick_hz: float,
        decode: Callable[[Sequence[int]], str],
        *,
        stream: str,
        kind: str,
    ) -> "Timeline":
        """One event for every run of ids without `UNSET_ID`, with the decoded text."""
        runs = _runs(ids.tolist(), lambda previous, label: True)
        spoken = ((first, len(run), decode(run)) for first, run in runs)
        return cls(events=_on_ticks(spoken, tick_hz, stream, kind))

    def to_jsonl(self) -> str:
        """The file's text; `from_jsonl` gives back an equal timeline."""
        lines: list[dict[str, Any]] = [{"timeline": _VERSION, **self.header}]
        lines += [asdict(event) for event in self.events]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    @classmethod
    def from_jsonl(cls, text: str, source: str = "timeline") -> "Timeline":
        """Read the text of a file.

        Args:
            text: Header and events, one JSON object a line; empty lines are skipped.
            source: Name of the text in errors.

        Raises:
            ValueError: A line is not what it must be; the message names ``source`` and the line.
        """
        header: dict[str, Any] | None = None
        events = []
        # Not `splitlines`: it also splits at characters that JSON strings may hold.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                values = _parse_object(line)
                if header is None:
                    header = _parse_header(values)
                else:
                    events.append(_parse_event(values))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{source}, line {number}: {error}") from None
        if header is None:
            raise ValueError(
                f'{source} must start with a header {{"timeline": {_VERSION}}}: empty.'
            )
        return cls(events=tuple(events), header=header)

    def write(self, path: Path) -> None:
        """Write the timeline as a JSONL file."""
        path.write_text(self.to_jsonl(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Timeline":
        """Read a JSONL file.

        Raises:
            ValueError: The file is not UTF-8, or a line is not what it must be.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} must be UTF-8 text: {error.reason} at byte {error.start}."
            ) from None
        return cls.from_jsonl(text, source=str(path))


def _matches(event: Event, stream: str | None, kind: str | None) -> bool:
    return stream in (None, event.stream) and kind in (None, event.kind)


def _matching(events: Iterable[Event], stream: str | None, kind: str | None) -> Iterator[Event]:
    return (event for event in events if _matches(event, stream, kind))


def _check_rate(tick_hz: float) -> None:
    if not 0 < tick_hz < math.inf:
        raise ValueError(f"`tick_hz` must be positive and finite, got {tick_hz}.")


def _tick_range(event: Event, tick_hz: float) -> tuple[int, int]:
    """Ticks that the event touches, ``first .. stop - 1``."""
    _check_rate(tick_hz)
    first = math.floor(event.start_s * tick_hz + _TICK_TOLERANCE)
    return first, max(math.ceil(event.end_s * tick_hz - _TICK_TOLERANCE), first + 1)


def _on_ticks(
    spoken: Iterable[tuple[int, int, str]], tick_hz: float, stream: str, kind: str
) -> tuple[Event, ...]:
    """Events from (first tick, number of ticks, text)."""
    _check_rate(tick_hz)
    return tuple(
        Event(
            start_s=first / tick_hz,
            end_s=(first + count) / tick_hz,
            stream=stream,
            kind=kind,
            text=text,
        )
        for first, count, text in spoken
    )


def _runs(labels: list[int], joins: Callable[[int, int], bool]) -> Iterator[tuple[int, list[int]]]:
    """Maximal runs of set labels in which each joins the one before, with their first ticks."""
    run: list[int] = []
    for tick, label in enumerate([*labels, UNSET_ID]):
        if run and (label == UNSET_ID or not joins(run[-1], label)):
            yield tick - len(run), run
            run = []
        if label != UNSET_ID:
            run.append(label)


def _as_json(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A private copy that JSON gives back unchanged."""
    try:
        return json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold JSON values only: {error}.") from None


def _parse_object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"must be a JSON object: {error.msg} at column {error.colno}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {type(values).__name__}.")
    return values


def _parse_header(values: dict[str, Any]) -> dict[str, Any]:
    version = values.pop("timeline", None)
    if version != _VERSION:
        raise ValueError(
            f'the first line must be a header with "timeline": {_VERSION}, got {version!r}. '
            "Is this a timeline, written by this version?"
        )
    return values


def _parse_event(values: dict[str, Any]) -> Event:
    expected = {
        "start_s": (int, float),
        "end_s": (int, float),
        "stream": (str,),
        "kind": (str,),
        "text": (str,),
        "payload": (dict,),
    }
    required = ("start_s", "end_s", "stream", "kind")
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"an event must have {', '.join(required)}: {', '.join(missing)} missing.")
    for name, value in values.items():
        if name not in expected:
            raise ValueError(
                f"an event has only the fields {', '.join(expected)}: got {name!r}. "
                "Put it into `payload`."
            )
        if isinstance(value, bool) or not isinstance(value, expected[name]):
            names = " or ".join(kind.__name__ for kind in expected[name])
            raise ValueError(f"`{name}` must be {names}, got {value!r}.")
    return Event(**values)
