"""Sounds that a speaking model hears: words that interrupt it, backchannels, and noise.

They are recordings of a folder, or words spoken by synthesised voices. A folder holds lists with a
line ``{"path", ...}`` for each recording: ``wake.jsonl`` with ``"word"``, ``digits.jsonl`` with
``"digit"`` and ``"speaker"``, ``noise.jsonl``, and ``backchannels.jsonl``; without the last one,
backchannels are synthesised, and `synthesised_note` says so. Any other list may be missing too. A
line may hold ``"split"``, which is otherwise drawn from the name of the file, and
``"trimmed": true`` if there is no quiet around.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.order_wordings import DIGITS, Split
from counterpoint.data.making.orders import BACKCHANNELS
from counterpoint.errors import UserError
from counterpoint.files import read_json_lines
from counterpoint.literals import literals_checked
from counterpoint.speech.audio import read_audio
from counterpoint.speech.augment import pink_noise
from counterpoint.speech.voices import Speaker, Voice, available_voices

RATE = 16_000
"""Sample rate of all sounds."""

_BACKCHANNELS = "backchannels"
_PACES = (0.9, 1.0, 1.15)
_HOP_S = 0.01
_QUIET_DB = -25.0  # relative to the loudest hop of a recording
_CONTRAST_DB = 12.0  # above the level below which a tenth of a recording lies
_MARGIN_S = 0.03
_LONGEST_S = 1.3
_NUM_PINK = 20
_SPOKEN_WORDS = ("stop", "wait", "hello", "computer", "listen", "sorry", "excuse me", "hold on")

Interrupter = Literal["command", "voice"]
"""Who interrupts: one keyword (command-based), or any word (voice-based)."""


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SoundsConfig:
    """Which sounds are heard, and which of them are held out.

    Attributes:
        folder: Folder of recordings; empty for synthesised words and pink noise.
        interrupter: Whether one keyword interrupts, other recordings of which are held out; or any
            word, with unseen words by unseen speakers held out.
        keyword: The keyword.
        held_out_words: Words that are held out if any word interrupts.
        held_out_speakers: Speakers that are held out then. What they say beside the held-out words,
            and held-out words by others, occur nowhere.
        voices: Voices of synthesised words; empty for all installed voices.
        held_out_voices: Synthesised voices that are held out, by label; see `Voice.label`.
    """

    folder: str = ""
    interrupter: Interrupter = "command"
    keyword: str = "alexa"
    held_out_words: tuple[str, ...] = ("alexa", "smart mirror", "7", "8", "9", "listen", "hold on")
    held_out_speakers: tuple[str, ...] = ("lucas", "yweweler")
    voices: tuple[Voice, ...] = ()
    held_out_voices: tuple[str, ...] = ("piper joe 1.45", "flite slt 1")


class Sounds(NamedTuple):
    """Sounds of one split; each is trimmed, and has a root mean square of 1.

    Attributes:
        interruptions: Words that stop the model.
        backchannels: Words that do not.
        noises: Noise.
    """

    interruptions: tuple[Float[Tensor, " _N"], ...]
    backchannels: tuple[Float[Tensor, " _N"], ...]
    noises: tuple[Float[Tensor, " _N"], ...]


def load_sounds(config: SoundsConfig, split: Split, speaker: Speaker) -> Sounds:
    """Return the sounds of a split; no recording and no word by a voice is in two splits.

    ``speaker`` says the words of which there are no recordings.

    Raises:
        UserError: The folder cannot be read, or it leaves a kind of sound empty.
    """
    folder = Path(config.folder).expanduser() if config.folder else None
    if folder is None:
        words = [*_spoken(config, split, speaker)]
    else:
        words = [_trimmed(one) for one in _interrupting(config, folder, split)]
    if folder is None or synthesised_note(config):
        backchannels = [*_said(BACKCHANNELS, config, split, speaker)]
    else:
        listed = _listed(folder, _BACKCHANNELS)
        backchannels = [_trimmed(one) for one in listed if one.split == split]
    sounds = Sounds(
        interruptions=tuple(word for word in words if len(word) <= _LONGEST_S * RATE),
        backchannels=tuple(backchannels),
        noises=load_noises(folder, split),
    )
    for name, found in sounds._asdict().items():
        if not found:
            raise UserError(
                f"There must be {name} in the split {split!r}: got none from "
                f"{config.folder or 'the installed voices'}. Add recordings, or install voices."
            )
    return sounds


def load_noises(folder: Path | None, split: Split) -> tuple[Float[Tensor, " _N"], ...]:
    """Return the noises of a split, with a root mean square of 1; no recording is in two splits.

    Args:
        folder: Folder with ``noise.jsonl``; ``None`` for pink noise.
        split: The split.
    """
    if folder is None:
        made = (pink_noise(5 * RATE, _number(f"pink {split} {n}")) for n in range(_NUM_PINK))
        return tuple(map(_unit, made))
    listed = _listed(folder, "noise")
    return tuple(_unit(_read(one.path)) for one in listed if one.split == split)


def synthesised_note(config: SoundsConfig) -> str:
    """Return a line for the user if backchannels are synthesised beside recordings, or nothing."""
    path = Path(config.folder).expanduser() / f"{_BACKCHANNELS}.jsonl"
    if not config.folder or path.exists():
        return ""
    return f"backchannels are synthesised: there is no {path}"


class _Recording(NamedTuple):
    """A line of a list of recordings; word and speaker are empty if they are unknown."""

    path: Path
    split: Split
    word: str
    speaker: str
    is_trimmed: bool


def _interrupting(config: SoundsConfig, folder: Path, split: Split) -> Iterator[_Recording]:
    """Yield the recorded words that interrupt in a split."""
    for one in (*_listed(folder, "wake"), *_listed(folder, "digits")):
        if config.interrupter == "command":
            if one.word == config.keyword and one.split == split:
                yield one
            continue
        new_word = one.word in config.held_out_words
        # Somebody unknown may also be heard in training, so such recordings are never held out.
        new_speaker = one.speaker in config.held_out_speakers
        if new_word and new_speaker:
            own: Split = "held_out"
        elif new_word or new_speaker:
            continue
        else:
            own = "tuning" if one.split == "tuning" else "train"
        if own == split:
            yield one


def _listed(folder: Path, name: str) -> Iterator[_Recording]:
    """Yield the recordings of a list.

    A ``source`` such as "1-100032-A" names a recording and, behind the last hyphen, the piece of
    it; without a hyphen it names the recording alone. All pieces of a recording are in one split.
    """
    path = folder / f"{name}.jsonl"
    for _, line in read_json_lines(path) if path.exists() else ():
        source = str(line.get("source", ""))
        yield _Recording(
            folder / line["path"],
            line.get("split")
            or _place(source.rpartition("-")[0] or source or Path(line["path"]).name),
            str(line.get("word", line.get("digit", ""))),
            str(line.get("speaker", "")),
            bool(line.get("trimmed", False)),
        )


def _place(name: str) -> Split:
    """Return the split of a recording by its name: seven, one and two tenths of all."""
    tenth = _number(name) % 10
    return "train" if tenth < 7 else "tuning" if tenth == 7 else "held_out"


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _spoken(config: SoundsConfig, split: Split, speaker: Speaker) -> Iterator[Tensor]:
    """Yield synthesised words that interrupt."""
    if config.interrupter == "command":
        yield from _said((config.keyword,), config, split, speaker)
        return
    words = (*_SPOKEN_WORDS, *DIGITS)
    held_out = [word for word in words if _is_held_out(word, config)]
    trained = [word for word in words if word not in held_out]
    yield from _said(held_out if split == "held_out" else trained, config, split, speaker)


def _is_held_out(word: str, config: SoundsConfig) -> bool:
    return word in config.held_out_words or (
        word in DIGITS and str(DIGITS.index(word)) in config.held_out_words
    )


def _said(
    words: Sequence[str], config: SoundsConfig, split: Split, speaker: Speaker
) -> Iterator[Tensor]:
    """Yield words by the voices of a split; settings are tuned with other paces than trained."""
    for voice in config.voices or available_voices():
        if (voice.label in config.held_out_voices) != (split == "held_out"):
            continue
        for pace in _PACES:
            if split != "held_out" and (pace == _PACES[-1]) != (split == "tuning"):
                continue
            for word in words:
                said = Voice(engine=voice.engine, name=voice.name, formant=voice.formant, pace=pace)
                yield _unit(speaker.speak(word, said, RATE).audio)


def _trimmed(recording: _Recording) -> Float[Tensor, " N"]:
    """Return a recorded word without the quiet around it."""
    audio = _read(recording.path)
    if recording.is_trimmed:
        return _unit(audio)
    hop = round(_HOP_S * RATE)
    power = audio[: len(audio) // hop * hop].unflatten(0, (-1, hop)).square().mean(1)
    quiet = power.kthvalue(max(len(power) // 10, 1)).values * 10 ** (_CONTRAST_DB / 10)
    least = torch.maximum(power.max() * 10 ** (_QUIET_DB / 10), quiet.clamp(max=power.max() / 2))
    loud = (power > least).nonzero()[:, 0]
    margin = round(_MARGIN_S * RATE)
    first = max(int(loud[0]) * hop - margin, 0)
    return _unit(audio[first : (int(loud[-1]) + 1) * hop + margin])


def _read(path: Path) -> Float[Tensor, " N"]:
    return read_audio(path, RATE, 1)[0]


def _unit(audio: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return audio / audio.square().mean().sqrt().clamp(min=1e-6)
