"""The files of a conversation with thoughts: timeline, figure and page beside its recording."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.evaluate.duplex.delays import measure_delays, told
from counterpoint.evaluate.duplex.turns import measure_levels
from counterpoint.evaluate.report.answer import sound_address
from counterpoint.evaluate.report.conversation_figure import as_png, as_svg
from counterpoint.evaluate.report.conversation_page import REAL_TIME
from counterpoint.evaluate.report.thinking_figure import Watched, watched_figure
from counterpoint.evaluate.report.thinking_page import LIVE_NOTE, thinking_page
from counterpoint.files import shown
from counterpoint.runtime.clocked import made_calls
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.speech.audio import audio_blocks
from counterpoint.streams.timeline import Timeline

WATCHED_ENDINGS = (".timeline.jsonl", ".png", ".html")
"""Endings of the files beside the recording."""

_LATE_S = 4.0  # then an answer comes after the user has lost patience


def watched_numbers(timeline: Timeline, duration_s: float, work_s: float | None) -> dict[str, str]:
    """Return the numbers of a conversation as text.

    Args:
        timeline: What happened.
        duration_s: Length of the conversation.
        work_s: Seconds of work; ``None`` if it was paced by a clock, which tells nothing about it.
    """
    delays = measure_delays(timeline)
    numbers = {
        "first sound after the user's voice, median": told(delays.first_sound_s),
        "stop after an interruption, median": told(delays.stop_s),
        "calls while the user spoke / later / failed": (
            f"{delays.early_calls} / {delays.late_calls} / {delays.failed_calls}"
        ),
        "thoughts": str(sum(bool(one.text) for one in timeline.where(kind="thought"))),
        "failures": str(len(timeline.where(kind="error"))),
    }
    if work_s is not None and duration_s:
        numbers[REAL_TIME] = f"{work_s / duration_s:.3f}"
    return numbers


def thought_numbers(timeline: Timeline, tokens_per_s: float, work_s: float) -> dict[str, str]:
    """Return the numbers of a conversation that was thought against the clock, as text.

    Args:
        timeline: What happened; see `counterpoint.runtime.clocked`.
        tokens_per_s: Tokens that the model wrote in a second.
        work_s: Seconds of work.
    """
    chunks = timeline.where(kind="chunk").events
    thoughts = timeline.where(kind="thought")
    heard_s = chunks[-1].end_s
    not_last = {one.payload["chunk"] for one in chunks if not one.payload["last"]}
    chances = [
        chance
        for one in thoughts
        if one.payload["chunk"] in not_last
        for chance in one.payload["chances"]
        if chance is not None
    ]
    cut = next(iter(timeline.where(stream=AGENT, kind="interruption")), None)
    numbers = {
        "heard": f"{heard_s:.2f} s (chunks: {len(chunks)})",
        "thoughts": str(sum(bool(one.text) for one in thoughts)),
        "interrupted the user": "no" if cut is None else f"at {cut.start_s:.2f} s",
        "highest chance of an interruption": f"{max(chances):.3f}" if chances else "-",
    }
    if calls := made_calls(timeline):
        made = [call for call in calls if call.payload["ok"]]
        early = sum(call.payload["early"] for call in made)
        told = f"{len(calls)} (made: {len(made)}, while the user spoke: {early})"
        numbers["calls of tools"] = told
    for answer in timeline.where(kind="answer"):
        since = "after the end of what was heard"
        numbers["answer"] = f"from {answer.start_s:.2f} s, {answer.start_s - heard_s:.2f} s {since}"
    return numbers | {
        "tokens written a second": f"{tokens_per_s:g} (simulated)",
        REAL_TIME: f"{work_s / heard_s:.3f}",
    }


def slowness_note(timeline: Timeline) -> str:
    """Return a line about a machine that was too slow for the pace of the clock, or no text."""
    if measure_delays(timeline).first_sound_s:
        return ""
    words = timeline.where(stream=USER, kind="word")
    late_s = max((one.payload.get("known_s", one.end_s) - one.end_s for one in words), default=0.0)
    if late_s < _LATE_S:
        return ""
    return (
        f"No answer sounded, because words were recognised up to {late_s:.0f} s after they were "
        "said: this machine is too slow or too busy. `--at-once` does not wait for the clock."
    )


def write_watched(
    recording: Path,
    title: str,
    timeline: Timeline,
    numbers: Mapping[str, str],
    options: Mapping[str, Any],
    note: str = LIVE_NOTE,
) -> tuple[Path, ...]:
    """Write the files beside a recording: agent left, user right.

    Args:
        recording: The recording of both channels, which exists.
        title: Title of the page and the picture.
        timeline: What was heard, thought and said.
        numbers: Numbers by name, for the page.
        options: Options of the command, which the files name.
        note: What stands below the picture of the page.

    Returns:
        Their paths.

    Raises:
        UserError: A package is missing.
    """
    paths = tuple(recording.with_name(recording.stem + ending) for ending in WATCHED_ENDINGS)
    settings = {
        name: shown(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    header = {"audio": shown(Path(recording.name)), "left": AGENT, "right": USER}
    replace(timeline, header={**timeline.header, **header, "options": settings}).write(paths[0])
    rate = 16_000
    levels = measure_levels(audio_blocks(recording, rate, 2), rate)
    watched = Watched(title=title, levels=levels, timeline=timeline)
    paths[1].write_bytes(as_png(partial(watched_figure, watched)))
    source = sound_address(recording)
    picture = as_svg(partial(watched_figure, watched))
    page = thinking_page(watched, (picture, note), source, numbers, settings)
    paths[2].write_text(page, encoding="utf-8")
    return paths
