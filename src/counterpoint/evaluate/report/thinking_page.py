"""The page of a conversation with thoughts: its sound, its figure, and everything that happened."""

import html
from collections.abc import Mapping
from typing import Any

from counterpoint.evaluate.report.conversation_figure import moment
from counterpoint.evaluate.report.conversation_page import player_page
from counterpoint.evaluate.report.thinking_figure import Watched, watched_rows
from counterpoint.streams.timeline import Event, Timeline

LIVE_NOTE = (
    "The agent is on the left, the user on the right. The agent sounds when it really could: what "
    "the engines took is in these times. Click the figure or a line to listen from there."
)
"""Note below the picture of a conversation of engines."""


def thinking_page(
    watched: Watched,
    picture: tuple[str, str],
    audio_source: str,
    numbers: Mapping[str, str],
    about: Mapping[str, Any],
) -> str:
    """Return the page as HTML text.

    Args:
        watched: The conversation.
        picture: Its figure, from `watched_figure` and `as_svg`, and a note below it.
        audio_source: Address of the recording: a data URL, or a file next to the page.
        numbers: Measured numbers, by name.
        about: How the conversation was made; JSON values.
    """
    return player_page(
        watched.title,
        picture,
        watched_rows(watched),
        audio_source,
        numbers,
        [_events(watched)],
        about,
    )


def _events(watched: Watched) -> str:
    """Return a table of everything that happened, words apart."""
    rows = "".join(
        f'<tr data-at="{event.start_s:.2f}"><td>{moment(event.start_s, 2)}</td>'
        f"<td>{moment(event.end_s, 2)}</td>"
        f'<td class="text">{html.escape(event.stream)}: {html.escape(event.kind)}</td>'
        f'<td class="text">{html.escape(event_text(event))}</td></tr>'
        for event in watched.timeline
        if event.kind != "word"
    )
    return (
        '<h2>What happened</h2><div class="wide"><table><thead><tr><th>from</th><th>to</th>'
        '<th class="text">what</th><th class="text">text</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def event_lines(timeline: Timeline) -> list[str]:
    """Return everything that happened, words apart, in one line an event, on one time axis."""
    return [event_line(event) for event in timeline if event.kind != "word"]


def event_line(event: Event) -> str:
    """Return an event in one line: from when to when, what, and its text."""
    named = {"turn": event.stream, "thought": event.stream, "chunk": "heard"}
    what = named.get(event.kind, event.kind)
    return f"{event.start_s:6.2f} to {event.end_s:6.2f} s  {what:12} {event_text(event)}"


def event_text(event: Event) -> str:
    """Return what an event says, in one line."""
    payload = event.payload
    if event.kind == "call":
        told = payload.get("response") if payload.get("ok") else payload.get("why", "no result")
        when = " while the user spoke" if payload.get("early") else ""
        when = " as before" if payload.get("repeated") else when
        return f"{event.text or payload.get('written', '')} -> {told}{when}"
    if event.kind == "interruption":
        flushed = payload.get("flushed_s")
        return f"by the {payload.get('by')}" + (f", {flushed} s flushed" if flushed else "")
    if event.kind == "answer":
        cut = f" (cut; written: {payload.get('written')})" if payload.get("cut") else ""
        return event.text + cut
    if event.kind == "undone":
        return f"{event.text} {payload.get('why') or 'was taken back'}"
    if event.kind == "thought" and not event.text:
        read = payload.get("heard")
        return f"(read: {read})" if read is not None else f"(closed by the {payload['closed']})"
    if event.kind == "chunk":
        return event.text or f"chunk {payload['chunk'] + 1}" + ", the last" * payload["last"]
    return event.text
