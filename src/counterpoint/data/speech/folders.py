"""Folders of recordings as training lists; missing words are transcribed.

A recording is a file with two channels: the agent left, the user right. `x.voice.wav` is a voice
sample and no recording. The lists and words that are written have the form that
`counterpoint.data.speech.dialogues` reads.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from counterpoint.data.speech.alignments import AGENT_SPEAKER, USER_SPEAKER
from counterpoint.errors import UserError
from counterpoint.files import read_json_lines, write_json, write_json_lines
from counterpoint.speech.audio import inspect_audio, read_audio
from counterpoint.speech.transcriber import HeardWord

HELD_OUT = "held_out"
"""Name of the list of held-out recordings."""

_ENDINGS = (".wav", ".flac", ".ogg")
_VOICE = ".voice"
_RATE = 16_000

WriteWords = Callable[[Float[Tensor, " N"], int], Sequence[HeardWord]]
"""A function that returns the words of a channel, such as `Transcriber.words`.

Its arguments are the samples and the sample rate.
"""

OnRecording = Callable[[float, float], None]
"""A function called with the seconds of sound done so far and those of all recordings."""


class Recording(NamedTuple):
    """A recording of two speakers.

    Attributes:
        audio: File with two channels.
        duration_s: Its length in seconds.
        words: File of its words, which may be missing.
    """

    audio: Path
    duration_s: float
    words: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderOfData:
    """A folder or a list of recordings, with a name and a weight.

    Attributes:
        name: Name of its lists.
        path: The folder, or a .jsonl file.
        weight: Relative frequency at which its rows are read.
    """

    name: str
    path: Path
    weight: float = 1.0


def parse_folder(word: str) -> FolderOfData:
    """Parse a word of the command line: ``PATH``, ``PATH:2`` or ``calls=PATH:0.5``.

    Raises:
        UserError: There is no such folder or list, the weight is not above 0, or the name cannot
            be that of a list.
    """
    name, _, place = word.partition("=") if "=" in word and not _exists(word) else ("", "", word)
    weight = 1.0
    if not _exists(place) and ":" in place:
        place, _, number = place.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not weight > 0:
            raise UserError(
                f"A weight of data must be a number above 0: got {number!r} in {word!r}."
            )
    path = Path(place).expanduser()
    is_list = path.suffix == ".jsonl"
    if not place or not (path.is_file() if is_list else path.is_dir()):
        raise UserError(
            f"Data must be a folder of recordings or a .jsonl list of them: {place!r} is neither. "
            "Give PATH, PATH:WEIGHT or NAME=PATH:WEIGHT."
        )
    name = name or path.resolve().stem
    if name == HELD_OUT or Path(name).name != name:
        raise UserError(
            f"Data must have a name that can be a file name and is not {HELD_OUT!r}, the list of "
            f"held-out recordings: got {name!r}. Give NAME=PATH."
        )
    return FolderOfData(name=name, path=path, weight=weight)


def _exists(word: str) -> bool:
    return Path(word).expanduser().exists()


def find_recordings(data: FolderOfData, words_folder: Path | None = None) -> list[Recording]:
    """Return the recordings of a folder or of a list, in the order of their names.

    Args:
        data: The folder or list.
        words_folder: Folder for words that are not next to their recording; by default they are
            written next to it.

    Raises:
        UserError: There are no recordings, or one does not have two channels.
    """
    found = []
    for audio in _audio_files(data.path):
        info = inspect_audio(audio)
        if info.num_channels != 2:
            raise UserError(
                "A recording must have two channels, the agent left and the user right: "
                f"{str(audio)!r} has {info.num_channels}. Take it out of the folder."
            )
        words = audio.with_suffix(".json")
        if words_folder is not None and not words.is_file():
            own = hashlib.sha256(str(audio.resolve()).encode("utf-8", "surrogateescape"))
            words = words_folder / f"{audio.stem}-{own.hexdigest()[:8]}.json"
        found.append(Recording(audio, info.duration_s, words))
    if not found:
        raise UserError(
            f"Data must hold recordings ({', '.join(_ENDINGS)}): {str(data.path)!r} has none."
        )
    return found


def _audio_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path.parent / str(record.get("path")) for _, record in read_json_lines(path)]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _ENDINGS and not file.stem.endswith(_VOICE) and file.is_file()
    )


def write_missing_words(
    recordings: Iterable[Recording], write_words: WriteWords, on_recording: OnRecording
) -> None:
    """Write the words of both speakers of every recording that has no words yet.

    Each file appears complete or not at all, so that an interrupted call can be repeated.

    Args:
        recordings: The recordings; those with a file of words are skipped.
        write_words: Recognises the words of one channel.
        on_recording: Called after each recording that was missing.

    Raises:
        UserError: A recording cannot be read.
        OSError: A file cannot be written.
    """
    missing = [recording for recording in recordings if not recording.words.is_file()]
    total_s = sum(recording.duration_s for recording in missing)
    done_s = 0.0
    for recording in missing:
        audio = read_audio(recording.audio, _RATE, 2)
        said = [
            [word.text, [round(word.start_s, 3), round(word.end_s, 3)], speaker]
            for speaker, channel in zip((AGENT_SPEAKER, USER_SPEAKER), audio, strict=True)
            for word in write_words(channel, _RATE)
        ]
        recording.words.parent.mkdir(parents=True, exist_ok=True)
        write_json(recording.words, {"alignments": sorted(said, key=lambda word: word[1])})
        done_s += recording.duration_s
        on_recording(done_s, total_s)


def write_unknown_words(recordings: Iterable[Recording]) -> None:
    """Mark the words of recordings without words as unknown, so that their text is not trained."""
    for recording in recordings:
        if not recording.words.is_file():
            recording.words.parent.mkdir(parents=True, exist_ok=True)
            write_json(recording.words, {"alignments": None})


def split(
    recordings: Sequence[Recording], held_out: float
) -> tuple[list[Recording], list[Recording]]:
    """Split recordings into training recordings and held-out ones.

    The split depends only on the names of the files. If there are two or more recordings, at least
    one is trained on, and at least one is held out unless the share is 0.

    Returns:
        The training recordings and the held-out recordings.
    """
    count = round(held_out * len(recordings))
    if held_out > 0:
        count = max(count, 1)
    count = min(count, len(recordings) - 1)
    by_name = sorted(
        recordings,
        key=lambda each: hashlib.sha256(
            each.audio.name.encode("utf-8", "surrogateescape")
        ).hexdigest(),
    )
    kept = {each.audio for each in by_name[:count]}
    return (
        [each for each in recordings if each.audio not in kept],
        [each for each in recordings if each.audio in kept],
    )


def write_list(recordings: Iterable[Recording], path: Path) -> None:
    """Write a list of recordings with their words.

    Raises:
        OSError: The list cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(
        path,
        [
            {
                "path": str(each.audio.resolve()),
                "duration": round(each.duration_s, 6),
                "words": str(each.words.resolve()),
            }
            for each in recordings
        ],
    )
