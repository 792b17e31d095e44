"""The files of an answer to a recording: words, timeline, figure, page and numbers."""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.table import Table

from counterpoint.data.speech.alignments import AGENT_SPEAKER
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.turns import (
    TurnTaking,
    as_timeline,
    measure_levels,
    percentile,
    speech_segments,
    take_turns,
)
from counterpoint.evaluate.report.conversation_figure import (
    Talk,
    as_png,
    as_svg,
    conversation_figure,
)
from counterpoint.evaluate.report.conversation_page import REAL_TIME, conversation_page
from counterpoint.files import shown
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.speech.audio import audio_blocks
from counterpoint.streams.timeline import Timeline

ENDINGS = (".wav", ".txt", ".json", ".timeline.jsonl", ".png", ".html")
"""Endings of the files of an answer; the recording comes first."""

_EMBEDDED_BYTES = 8_000_000  # a larger recording is not embedded in its page
_SOON_S = 2.0  # a turn that ends this near the end leaves too little time to answer


def answer_files(path: Path) -> dict[str, Path]:
    """Return the files of an answer, by ending."""
    return {ending: path.with_name(path.stem + ending) for ending in ENDINGS[1:]} | {".wav": path}


def check_answer_path(output: Path, read: Sequence[Path]) -> None:
    """Refuse a path at which an answer cannot be written, or would overwrite its input.

    Args:
        output: The recording to write; its name gives the names of the other files.
        read: Files from which the answer is made.

    Raises:
        UserError: The path cannot be a WAV file, or one of the files to write is an input.
    """
    if output.suffix.lower() != ".wav":
        raise UserError(f"`--output` must end in .wav: got {str(output)!r}.")
    if output.is_dir():
        raise UserError(f"`--output` must be a file: {str(output)!r} is a folder.")
    if not output.parent.is_dir():
        raise UserError(f"The folder of `--output` must exist: {str(output.parent)!r} does not.")
    sources = {path.resolve() for path in read}
    for written in answer_files(output).values():
        if written.resolve() in sources:
            raise UserError(f"`--output` must not overwrite an input: {written} is both.")


def observe_answer(title: str, recording: Path, rate: int, words: Timeline) -> Talk:
    """Measure what happened in a recording of an answer.

    Args:
        title: Title of the conversation.
        recording: Agent left, user right.
        rate: Samples a second of the recording.
        words: Words of both speakers.
    """
    levels = measure_levels(audio_blocks(recording, rate, 2), rate)
    agent, user = (speech_segments(channel, levels.duration_s) for channel in levels.loudness_db)
    return Talk(
        title=title,
        levels=levels,
        found=take_turns(agent, user, levels.duration_s),
        words=words.cut(0, levels.duration_s),
    )


def answer_title(model: Path, heard: Path, verb: str = "answers") -> str:
    """Return a title that says which model answers, or hears, which recording."""
    return f"{Path(shown(model.resolve())).name} {verb} {Path(shown(heard)).name}"


def answer_table(title: str, numbers: Mapping[str, str]) -> Table:
    """Return the numbers of `measured` as a table for a terminal."""
    table = Table("measure", "value", title=title)
    for name, value in numbers.items():
        table.add_row(name, value)
    return table


def measured(found: TurnTaking, step_s: Sequence[float], frame_rate_hz: float) -> dict[str, str]:
    """Return the numbers of an answer as text; a dash if nothing could be measured.

    Args:
        found: Turn-taking in the answer.
        step_s: Seconds of computation of each step; a step is one frame.
        frame_rate_hz: Frames a second.
    """
    latencies = found.latencies_s
    overlaps = found.overlaps
    num_answered = sum(answer.outcome == "answered" for answer in found.answers)
    p50, p95 = (1000 * percentile(step_s, share) for share in (0.5, 0.95))
    factor = sum(step_s) * frame_rate_hz / len(step_s) if step_s else math.nan
    waits = f", the user went on after {len(found.pauses)}" if found.pauses else ""
    total_s = sum(overlap.end_s - overlap.start_s for overlap in overlaps)
    return {
        "turns answered": f"{num_answered} of {found.num_due}{waits}",
        "latency, median": _spelled(percentile(latencies, 0.5), "{:.2f} s"),
        "overlaps": f"{len(overlaps)} ({total_s:.1f} s)" if overlaps else "0",
        "the agent yielded": str(sum(o.yields and o.second == USER for o in overlaps)),
        REAL_TIME: _spelled(factor, "{:.3f}"),
        f"step p50 / p95, of {1000 / frame_rate_hz:g} ms": _spelled(
            p50, f"{{:.1f}} / {p95:.1f} ms"
        ),
    }


def _spelled(value: float, pattern: str) -> str:
    return "\N{EN DASH}" if math.isnan(value) else pattern.format(value)


def write_answer(
    output: Path, talk: Talk, numbers: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Write the files of an answer next to its recording; see `answer_files`.

    Args:
        output: The recording.
        talk: The conversation.
        numbers: Numbers by name, from `measured`.
        options: Options of the command, which the files name.
    """
    paths = answer_files(output)
    write_words(output, talk.words)
    settings = {
        name: shown(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    events = talk.words.merge(as_timeline(talk.found))
    header = {"audio": shown(Path(output.name)), "left": AGENT, "right": USER, "options": settings}
    replace(events, header=header).write(paths[".timeline.jsonl"])
    paths[".png"].write_bytes(as_png(partial(conversation_figure, talk)))
    source = sound_address(output)
    picture = as_svg(partial(conversation_figure, talk))
    page = conversation_page(talk, picture, source, numbers, settings)
    paths[".html"].write_text(page, encoding="utf-8")


def write_words(output: Path, words: Timeline) -> None:
    """Write what the agent said next to its recording, as text and as JSON with times.

    Args:
        output: The recording.
        words: Words of both speakers.
    """
    paths = answer_files(output)
    said = spoken_words(words)
    paths[".txt"].write_text(said["text"] + "\n", encoding="utf-8")
    paths[".json"].write_text(
        json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def sound_address(recording: Path) -> str:
    """Return the address of a recording for a page beside it: a short one as a data URL."""
    if recording.stat().st_size >= _EMBEDDED_BYTES:
        return quote(os.fsencode(recording.name))
    return f"data:audio/wav;base64,{base64.b64encode(recording.read_bytes()).decode()}"


def spoken_words(words: Timeline) -> dict[str, Any]:
    """Return the agent's words as alignments and chunks, two formats that other programs read."""
    spoken = [
        (event.text, [round(event.start_s, 3), round(event.end_s, 3)])
        for event in words.where(stream=AGENT, kind="word")
    ]
    return {
        "text": " ".join(text for text, _ in spoken),
        "chunks": [{"text": text, "timestamp": times} for text, times in spoken],
        "alignments": [[text, times, AGENT_SPEAKER] for text, times in spoken],
    }


def answer_notes(found: TurnTaking, output: Path, num_clipped: int) -> list[str]:
    """Return notes about an answer for the user, one line each.

    Args:
        found: Turn-taking in the answer.
        output: The recording that was written.
        num_clipped: Number of its samples that are beyond full scale.
    """
    notes = []
    if num_clipped:
        notes.append(
            f"{num_clipped:,} samples of {shown(output)} are beyond full scale and clipped: the "
            "recording is too loud or has another scale, or the model's own sound is too loud."
        )
    if is_cut_short(found):
        notes.append("The recording ends before the agent's answer does: `--tail 10` listens on.")
    return notes


def is_cut_short(found: TurnTaking) -> bool:
    """Return whether the agent still speaks at the end, or had little time to answer."""
    end_s = found.duration_s
    late = [
        a for a in found.answers if a.outcome == "unanswered" and end_s - a.turn.end_s < _SOON_S
    ]
    return bool(late) or any(segment.end_s > end_s - 0.1 for segment in found.agent)
