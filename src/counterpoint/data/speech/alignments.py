"""Timed words of a recording with their speakers, read from JSON files of other programs.

Two formats are read: ``{"alignments": [[word, [start, end], speaker], ...]}`` of `moshi-finetune`,
and ``{"chunks": [{"text": word, "timestamp": [start, end]}, ...]}`` of the pipelines of
`transformers`, which name no speaker.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from counterpoint.data.speech.monologue import Word
from counterpoint.errors import UserError
from counterpoint.files import read_json

AGENT_SPEAKER = "SPEAKER_MAIN"
"""Name of the agent; every other name is another speaker's."""

USER_SPEAKER = "SPEAKER_OTHER"
"""Name of the user in files that this library makes."""


class TimedWord(NamedTuple):
    """A word, its times, and its speaker; ``None`` if the speaker is not known."""

    text: str
    start_s: float
    end_s: float
    speaker: str | None

    @property
    def word(self) -> Word:
        """The word without its speaker."""
        return Word(self.text, self.start_s, self.end_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The known facts of a recording.

    Attributes:
        path: The file.
        words: Words in the order of the file, without blank ones; ``None`` if they are not known
            (``"alignments": null``).
        role: The role that the agent was given (``"text_conditions": {"description": text}``);
            empty for none.
    """

    path: Path
    words: tuple[TimedWord, ...] | None
    role: str = ""

    def by_agent(self) -> tuple[Word, ...]:
        """Return the words of the agent.

        Raises:
            UserError: There are words, and all their speakers are neither the agent nor named
                `USER_SPEAKER`, so that it is not known whether one of them is the agent.
        """
        words = self.words or ()
        said = tuple(word.word for word in words if word.speaker == AGENT_SPEAKER)
        names = {word.speaker for word in words}
        if not said and names - {USER_SPEAKER}:
            raise UserError(
                f"{self.path} must name the agent {AGENT_SPEAKER!r}, or, where only the user "
                f"speaks, the user {USER_SPEAKER!r}: got words of {_listed(names)} alone."
            )
        return said

    def by_others(self) -> tuple[Word, ...]:
        """Return the words of all speakers except the agent."""
        return tuple(word.word for word in self.words or () if word.speaker != AGENT_SPEAKER)


def read_transcript(path: Path) -> Transcript:
    """Read a file of alignments or of chunks.

    A last chunk without an end time, as it occurs if the sound was cut, ends where it starts.

    Raises:
        UserError: There is no such file, or a word, a time or the role has a wrong form.
    """
    if not path.is_file():
        raise UserError(f"A file of words must exist: got {str(path)!r}.")
    record = read_json(path)
    if not isinstance(record, dict) or not {"alignments", "chunks"} & record.keys():
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{path} must be a JSON object with the field `alignments` (or `chunks`): got {found}."
        )
    words: tuple[TimedWord, ...] | None = None
    if record.get("alignments", []) is not None:
        entries = _alignments(record) if "alignments" in record else _chunks(record)
        words = tuple(_word(path, *entry) for entry in _checked(path, entries))
        words = tuple(word for word in words if word.text)
    return Transcript(path=path, words=words, role=_role(path, record))


_Entry = tuple[Any, Any, Any]
"""A word, its times, and its speaker."""


def _checked(path: Path, entries: Iterator[_Entry]) -> Iterator[_Entry]:
    try:
        yield from entries
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: each alignment must be [word, [start, end], speaker], or each chunk "
            f'{{"text", "timestamp": [start, end]}}: {type(error).__name__} ({error}).'
        ) from error


def _alignments(record: dict[str, Any]) -> Iterator[_Entry]:
    for text, times, speaker in record["alignments"]:
        if not isinstance(speaker, str):
            raise TypeError(f"the speaker of {text!r} is {speaker!r}, no text")
        yield text, times, speaker


def _chunks(record: dict[str, Any]) -> Iterator[_Entry]:
    for chunk in record["chunks"]:
        start, end = chunk["timestamp"]
        yield chunk["text"], [start, start if end is None else end], None


def _word(path: Path, text: Any, times: Any, speaker: str | None) -> TimedWord:
    if not isinstance(text, str):
        raise UserError(f"{path}: each alignment must be of a word that is text: got {text!r}.")
    if not isinstance(times, list) or len(times) != 2 or not all(map(_is_time, times)):
        raise UserError(
            f"{path}: times must be finite numbers, each alignment must have [start, end]: got "
            f"{times!r} of {text!r}."
        )
    return TimedWord(text.strip(), float(times[0]), float(times[1]), speaker)


def _is_time(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9 and math.isfinite(value)


def _role(path: Path, record: dict[str, Any]) -> str:
    conditions = record.get("text_conditions") or {}
    role = conditions.get("description") or "" if isinstance(conditions, dict) else None
    if not isinstance(role, str):
        raise UserError(
            f'{path}: `text_conditions` must be {{"description": text}}: got {conditions!r}.'
        )
    return role


def _listed(names: set[str | None]) -> str:
    return ", ".join(sorted(repr(name) for name in names))
