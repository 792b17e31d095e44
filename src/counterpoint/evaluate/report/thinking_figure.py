"""The figure of a conversation with thoughts: everything that happened, on one time axis.

From above: the user's sound and words, or what was recognised in each chunk of it; thoughts; calls
of tools; the agent's sound and words. Lines across a row are interruptions: full where the agent
interrupts, dotted where the user does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from counterpoint.evaluate.duplex.turns import Levels, Segment
from counterpoint.evaluate.report.conversation_figure import (
    COLOURS,
    LEFT,
    WAVE,
    WIDTH,
    WORD,
    WORD_LINES,
    Row,
    Sheet,
    draw_wave,
    draw_words,
)
from counterpoint.evaluate.report.figures import PALETTE
from counterpoint.runtime.cascade.trace import standing_words
from counterpoint.runtime.clocked import made_calls
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.09
_PAD = 0.1
_SHEET = Sheet(12.0, 40, 2 * WAVE + 4 * WORD * WORD_LINES + 2 * _BAR + 4 * _PAD, 0.5)
_LONGEST = 70  # letters of a label
_DROPPED = PALETTE[0]
_BARS: Mapping[str, str] = {"thought": PALETTE[4], "call": PALETTE[3], "failed": PALETTE[1]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A conversation to be drawn.

    Attributes:
        title: Title of the figure.
        levels: Levels of the agent and the user, in this order.
        timeline: What happened.
    """

    title: str
    levels: Levels
    timeline: Timeline


def watched_rows(watched: Watched) -> tuple[Row, ...]:
    """Return the rows of the figure: of 12 s, or longer if there would be more than 40."""
    return _SHEET.rows(max(watched.levels.duration_s, 1e-3))


def watched_figure(watched: Watched) -> "Figure":
    """Draw all rows of a conversation."""
    rows = watched_rows(watched)
    figure, left_out = _SHEET.draw(watched.title, rows, partial(_draw_row, watched))
    note = (
        "bars: from the first to the last moment of a thought or a call;   red: failed or taken "
        "back;   vertical line: interruption by the agent (full) or the user (dotted)"
    )
    if left_out:
        note += f";   labels left out for want of room: {left_out}"
    figure.text(
        LEFT / WIDTH,
        0.16 / _SHEET.height(len(rows)),
        note,
        fontsize=8.5,
        color="#555555",
        va="center",
    )
    return figure


def _draw_row(watched: Watched, axis: "Axes", row: Row) -> int:
    """Draw one row, and return the number of labels that did not fit."""
    timeline = watched.timeline
    words = WORD * WORD_LINES
    top = _SHEET.row_height
    left_out = 0
    for name in (USER, AGENT):
        centre = top - WAVE / 2
        channel = (AGENT, USER).index(name)
        draw_wave(axis, watched.levels, channel, row, centre, _voiced(timeline, name))
        _name(axis, name, centre, COLOURS[name])
        said = standing_words(timeline, name) or _recognised(timeline, name)
        left_out += draw_words(axis, said, row, top - WAVE, COLOURS[name])
        top -= WAVE + words + _PAD
        if name == USER:
            thoughts = [one for one in timeline.where(kind="thought") if one.text]
            left_out += _draw_bars(axis, thoughts, row, top, "thoughts")
            top -= _BAR + words + _PAD
            calls = [*made_calls(timeline), *timeline.where(kind="cancel")]
            left_out += _draw_bars(axis, calls, row, top, "calls")
            top -= _BAR + words + _PAD
    for event in timeline.where(kind="interruption"):
        style = "-" if event.payload.get("by") == AGENT else ":"
        if row.start_s <= event.end_s < row.stop_s:
            axis.axvline(event.end_s, color=PALETTE[1], linestyle=style, linewidth=1.4)
    return left_out


def _recognised(timeline: Timeline, name: str) -> list[Event]:
    """Return the chunks of a speaker with what was recognised in them, as labels."""
    return [_labelled(one) for one in timeline.where(stream=name, kind="chunk") if one.text]


def _voiced(timeline: Timeline, name: str) -> list[Segment]:
    """Return the times that are drawn strongly: a speaker's words, and chunks that were heard."""
    chunks = timeline.where(stream=name, kind="chunk")
    words = [Segment(word.start_s, word.end_s + 0.05) for word in standing_words(timeline, name)]
    return [*words, *(Segment(chunk.start_s, chunk.end_s) for chunk in chunks)]


def _name(axis: "Axes", text: str, y: float, colour: str) -> None:
    axis.text(
        -0.008, y, text, transform=axis.get_yaxis_transform(), color=colour, weight="bold",
        ha="right", va="center", fontsize=9,
    )  # fmt: skip


def _draw_bars(axis: "Axes", events: Sequence[Event], row: Row, top: float, name: str) -> int:
    """Draw the times of events as bars, with their texts below."""
    _name(axis, name, top - _BAR - WORD / 2, _BARS[name.removesuffix("s")])
    labels = []
    for event in events:
        if not event.start_s < row.stop_s or event.end_s < row.start_s:
            continue
        colour = _BARS["call" if event.kind == "call" else "thought"]
        if event.kind == "cancel" or event.payload.get("ok", True) is not True:
            colour = _BARS["failed"]
        start_s = max(event.start_s, row.start_s)
        width_s = max(min(event.end_s, row.stop_s) - start_s, 0.03)
        axis.broken_barh([(start_s, width_s)], (top - _BAR, _BAR), color=colour, linewidth=0)
        if event.start_s >= row.start_s:
            labels.append(_labelled(event))
    return draw_words(axis, labels, row, top - _BAR - 0.02, _DROPPED)


def _labelled(event: Event) -> Event:
    """Return an event whose text is its label."""
    text = event.text
    if event.kind in ("call", "cancel"):
        text = _spelled(text)
    if event.kind == "cancel":
        text = f"taken back: {text or event.payload['why']}"
    elif event.kind == "call" and not event.payload.get("ok"):
        text = f"{text} {event.payload.get('why', 'no result')}"
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Event(
        start_s=event.start_s, end_s=event.end_s, stream=event.stream, kind="word", text=shown
    )


def _spelled(call: str) -> str:
    """Return a call in fewer letters: a JSON list of name and arguments, or an object with both."""
    try:
        parsed = json.loads(call)
        pair = (parsed["name"], parsed["arguments"]) if isinstance(parsed, dict) else parsed
        name, arguments = pair
        return f"{name}: {', '.join(map(str, arguments.values()))}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return call
