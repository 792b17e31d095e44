"""Timed words of the user in a recording, written by another program."""

from pathlib import Path

from counterpoint.data.speech.alignments import AGENT_SPEAKER, read_transcript
from counterpoint.errors import UserError, absent
from counterpoint.streams.timeline import Event, Timeline

USER = "user"
"""Name of the user in timelines."""


def read_user_words(path: Path) -> Timeline:
    """Return the words of the user as events of kind "word", from alignments or chunks.

    Args:
        path: See `read_transcript`. The words of `AGENT_SPEAKER` are left out. Chunks name no
            speaker, so their words are the user's.

    Raises:
        UserError: See `read_transcript`; or there are words, and all are the agent's.
    """
    if not path.is_file():
        raise UserError(absent("`--words`", path))
    transcript = read_transcript(path)
    if transcript.words is None:
        raise UserError(f"{path} must hold words: its `alignments` are null.")
    words = transcript.by_others()
    if transcript.words and not words:
        raise UserError(
            f"{path} must hold words of the user: all are of {AGENT_SPEAKER!r}, the agent. Give "
            "the user another name."
        )
    # A negative time can only come from rounding.
    events = [
        Event(
            start_s=max(word.start_s, 0.0),
            end_s=max(word.start_s, word.end_s, 0.0),
            stream=USER,
            kind="word",
            text=word.text,
        )
        for word in words
    ]
    return Timeline(events=tuple(events))
