"""Timelines: timed events in seconds, shared by data, live traces, scores and figures.

A file is JSONL: a header object ``{"timeline": 1, ...}``, then one object an event. Writers and
readers agree on the kinds of events (speech segments, words, thoughts, calls, interruptions,
marks). Data of an event beyond its text goes into ``payload``.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from counterpoint.errors import UserError
from counterpoint.files import parse_json_lines, read_text, write_text

_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened on a stream.

    Attributes:
        start_s: Seconds since the start of the recording.
        end_s: At least ``start_s``; equal for an event without duration.
        stream: Name of the stream.
        kind: What happened, for example "word".
        text: What was said or written. Here and in the payload, halves of characters (surrogates,
            as servers and tools may send them) are joined, or replaced by U+FFFD: neither UTF-8 nor
            a figure can hold them.
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
            raise UserError(
                "An event must have finite times with 0 <= `start_s` <= `end_s`: got "
                f"start_s={self.start_s}, end_s={self.end_s} ({self.kind!r} on {self.stream!r})."
            )
        if not self.stream or not self.kind:
            raise UserError(
                "An event must name its `stream` and `kind`: got "
                f"stream={self.stream!r}, kind={self.kind!r}."
            )
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", float(self.end_s))
        object.__setattr__(self, "text", _in_whole_characters(self.text))
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
            raise UserError("`header` must not hold the key 'timeline': it marks the file format.")
        ordered = sorted(self.events, key=lambda event: (event.start_s, event.end_s))
        object.__setattr__(self, "events", tuple(ordered))
        object.__setattr__(self, "header", _as_json(self.header, "header"))

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @property
    def end_s(self) -> float:
        """End of the event that ends last, in seconds; 0 without events."""
        return max((event.end_s for event in self.events), default=0.0)

    def where(self, *, stream: str | None = None, kind: str | None = None) -> "Timeline":
        """Return the events of one stream, of one kind, or of both."""
        events = (event for event in self.events if _matches(event, stream, kind))
        return replace(self, events=tuple(events))

    def cut(self, start_s: float, stop_s: float) -> "Timeline":
        """Return the events that overlap ``start_s <= time < stop_s``, clipped to that interval.

        Times stay absolute.
        """
        kept = []
        for event in self.events:
            inside = event.start_s < stop_s and event.end_s > start_s
            if inside or (event.start_s == event.end_s == start_s < stop_s):
                clipped_start = max(event.start_s, start_s)
                clipped_end = min(event.end_s, stop_s)
                kept.append(replace(event, start_s=clipped_start, end_s=clipped_end))
        return replace(self, events=tuple(kept))

    def shift(self, offset_s: float) -> "Timeline":
        """Return the timeline with every event ``offset_s`` later (earlier if it is negative)."""
        moved = [
            replace(event, start_s=event.start_s + offset_s, end_s=event.end_s + offset_s)
            for event in self.events
        ]
        return replace(self, events=tuple(moved))

    def merge(self, other: "Timeline") -> "Timeline":
        """Return the events of both timelines; at equal times, those of this timeline come first.

        Raises:
            UserError: The headers hold different values for the same key.
        """
        for key in self.header.keys() & other.header.keys():
            if self.header[key] != other.header[key]:
                raise UserError(
                    f"Merged timelines must agree on header {key!r}: got {self.header[key]!r} and "
                    f"{other.header[key]!r}. Change one of them first."
                )
        return replace(
            self, events=self.events + other.events, header={**self.header, **other.header}
        )

    def to_jsonl(self) -> str:
        """Return the text of the file; `from_jsonl` reads an equal timeline from it."""
        lines: list[dict[str, Any]] = [{"timeline": _VERSION, **self.header}]
        lines += [asdict(event) for event in self.events]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    @classmethod
    def from_jsonl(cls, text: str, source: str = "timeline") -> "Timeline":
        """Read a timeline from the text of a file.

        Args:
            text: Header and events, one JSON object a line; empty lines are skipped.
            source: Name of the text in errors.

        Raises:
            UserError: A line is not what it must be; the message names ``source`` and the line.
        """
        header: dict[str, Any] | None = None
        events = []
        # Not `splitlines`: it also splits at characters that JSON strings may hold.
        for place, values in parse_json_lines(text.split("\n"), source):
            try:
                if header is None:
                    header = _parse_header(values)
                else:
                    events.append(_parse_event(values))
            except (ValueError, OverflowError) as error:
                raise UserError(f"{place}: {error}") from None
        if header is None:
            raise UserError(f'{source} must start with a header {{"timeline": {_VERSION}}}: empty.')
        return cls(events=tuple(events), header=header)

    def write(self, path: Path) -> None:
        """Write the timeline as a JSONL file."""
        write_text(path, self.to_jsonl())

    @classmethod
    def read(cls, path: Path) -> "Timeline":
        """Read a JSONL file.

        Raises:
            UserError: The file is not UTF-8, or a line is not what it must be.
        """
        return cls.from_jsonl(read_text(path), source=str(path))


def _matches(event: Event, stream: str | None, kind: str | None) -> bool:
    return stream in (None, event.stream) and kind in (None, event.kind)


def _as_json(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of the values as JSON reads them back."""
    try:
        text = json.dumps(dict(values), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"`{name}` must hold JSON values only: {error}.") from None
    found: dict[str, Any] = json.loads(_in_whole_characters(text))
    return found


def _in_whole_characters(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parse_header(values: dict[str, Any]) -> dict[str, Any]:
    version = values.pop("timeline", None)
    if version != _VERSION:
        raise UserError(
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
        raise UserError(f"an event must have {', '.join(required)}: {', '.join(missing)} missing.")
    for name, value in values.items():
        if name not in expected:
            raise UserError(
                f"an event has only the fields {', '.join(expected)}: got {name!r}. "
                "Put it into `payload`."
            )
        if isinstance(value, bool) or not isinstance(value, expected[name]):
            names = " or ".join(kind.__name__ for kind in expected[name])
            raise UserError(f"`{name}` must be {names}, got {value!r}.")
    return Event(**values)
