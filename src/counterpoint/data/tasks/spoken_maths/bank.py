"""A bank of words that were really spoken, from which spoken problems are joined.

Speech for a hundred thousand problems fits nowhere, but their hundred words do: some takes of every
word by every voice, cut from synthesised sentences, as frames of log-mels. A joined problem takes
one take of each word, so its words sound as they do within sentences, and its melody is broken.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16, Shaped, UInt8
from safetensors import safe_open
from torch import Tensor

from counterpoint.data.tasks.spoken_maths.noise import NoiseConfig
from counterpoint.data.tasks.spoken_maths.problems import Problem, SpokenMaths
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.progress import Progress
from counterpoint.speech.mels import LogMels
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import JOE_FORMANTS, Speaker, Synthesizer, Voice, how_spoken

FRAME_HZ = 12.5
"""Frames a second."""

VOICES = tuple(Voice(formant=formant) for formant in JOE_FORMANTS)
"""Voices of the bank that is made here."""

SILENCE = -1
"""Number of a frame of silence, which is zeros."""

_STEPS = 64  # of a feature between 0 and 1
_LOUDEST = 32767  # of a sample in 16 bits
_PAUSE_FRAMES = 4  # between sentences, 0.32 s
_NUM_PROBLEMS = 400  # whose sentences hold every word often enough

Takes = Mapping[str, Sequence[tuple[int, int]]]
"""First frame and frame after the last of every take of every word."""


class WordBank(NamedTuple):
    """Frames of spoken words.

    Attributes:
        stored: Frames in 8 bits, one after another.
        takes: Takes by the label of the voice.
        samples: What each frame was made of, in 16 bits: some samples before it, on which its first
            window depends, and its own. ``None`` in a bank without, which noise needs.
    """

    stored: UInt8[Tensor, "F width"]
    takes: Mapping[str, Takes]
    samples: Int16[Tensor, "F n"] | None = None

    @property
    def width(self) -> int:
        """Number of features of a frame."""
        return self.stored.shape[1]

    @property
    def digest(self) -> str:
        """Digest of all frames and takes."""
        frames = hashlib.sha256(self.stored.numpy().tobytes()).hexdigest()
        return json_digest([frames, self.takes])

    @property
    def frames(self) -> Float[Tensor, "G width"]:
        """The frames by their numbers, and after them the frame of silence."""
        return torch.cat((self.stored, self.stored.new_zeros(1, self.width))).float() / _STEPS

    def join(
        self, problem: Problem, voices: Sequence[str], rng: Random
    ) -> tuple[tuple[SpokenWord, ...], Int[Tensor, " T"]]:
        """Say a problem with one of some voices.

        Returns:
            Its words in time, and the numbers of its frames.

        Raises:
            UserError: The bank lacks a word.
        """
        takes = self.takes[rng.choice(voices)]
        words: list[SpokenWord] = []
        numbers: list[int] = []
        for clause in problem.clauses:
            if numbers:
                numbers += [SILENCE] * _PAUSE_FRAMES
            for word in clause.words:
                if word not in takes:
                    raise UserError(f"A bank must have every word of a problem: {word!r} lacks.")
                start_s = len(numbers) / FRAME_HZ
                numbers += range(*rng.choice(takes[word]))
                words.append(SpokenWord(word, start_s, len(numbers) / FRAME_HZ))
        return tuple(words), torch.tensor(numbers)

    def in_noise(
        self,
        numbers: Int[Tensor, " T"],
        noise: NoiseConfig,
        seed: int,
        number: int,
        *,
        held_out: bool = False,
    ) -> Shaped[Tensor, "T ..."]:
        """Return what is heard of joined frames in noise: vectors, or without noise their numbers.

        Args:
            numbers: Numbers of the frames of a problem; what is not silence is voiced.
            noise: The noise.
            seed: Seed of the problem.
            number: Number of the problem.
            held_out: Whether the noise is one of those that are held out.

        Raises:
            UserError: The bank has no samples.
        """
        if noise.snr_db is None:
            return numbers
        if self.samples is None:
            raise UserError(
                "A bank must keep its samples to be heard in noise: this one has frames only. Make "
                "it again with `benchmarks/shanks_stacks.py bank --samples`, or name no file."
            )
        mels = bank_mels()
        windows = torch.cat((self.samples, self.samples.new_zeros(1, self.samples.shape[1])))
        voices = windows[numbers].float() / _LOUDEST
        voice = voices[:, -mels.frame_samples :].flatten()
        voiced = (numbers != SILENCE).repeat_interleave(mels.frame_samples)
        beside = noise.beside(voice, voiced, seed, number, held_out=held_out)
        both = voices + _windows(beside, mels)
        frames, _ = mels.extend(both[:, -mels.frame_samples :], both[:, : -mels.frame_samples])
        return frames[:, 0]

    def save(self, path: Path, made: Mapping[str, Any] | None = None) -> None:
        """Write the bank to a file.

        Args:
            path: The file.
            made: JSON values that say how it was made; ``None`` says nothing.
        """
        facts = {"takes": self.takes, "made": made}
        tensors = {"stored": self.stored}
        if self.samples is not None:
            tensors["samples"] = self.samples
        # One entry, because files of several have them in any order.
        write_tensors(path, tensors, {"bank": json.dumps(facts)})


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """How problems sound.

    Attributes:
        file: File of a `WordBank`; empty for that of `VOICES`, which is made when it is first
            needed, and kept in the cache and with the run.
        takes: Takes of a word by a voice, in the bank that is made.
        overlap_frames: Frames before a chunk that are heard again with it: so a word at the border
            of two chunks is heard as a whole in the second.
        transcribed: Whether training rows have words as targets where their sound ends, which is
            another task for the same scores. No model has to write them.
        noise: Noise beside the speaker.
        cache_folder: Folder of the bank, and of the sentences that are spoken for it.
    """

    file: str = ""
    takes: int = 4
    overlap_frames: int = 0
    transcribed: bool = False
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    cache_folder: str = "~/.cache/counterpoint/utterances"

    def __post_init__(self) -> None:
        if self.takes < 1 or self.overlap_frames < 0:
            raise UserError(
                "`takes` must be at least 1 and `overlap_frames` at least 0: got "
                f"{self.takes} and {self.overlap_frames}."
            )

    @property
    def name(self) -> str:
        """The file as it was named, or the name of the one that is made."""
        return self.file or self.made_name

    @property
    def made_name(self) -> str:
        """The name of the file that is made if none is named."""
        return bank_name(self.takes, sampled=self.is_noisy)

    @property
    def is_noisy(self) -> bool:
        """Whether there is noise, so that a bank must keep its samples."""
        return self.noise.snr_db is not None

    @property
    def place(self) -> Path:
        """Where the file is, or will be when it is made."""
        return Path(self.file or Path(self.cache_folder) / self.name).expanduser()

    @property
    def is_made(self) -> bool:
        """Whether the file that nobody named is there, as it would be made now."""
        return self.place.is_file() and is_current(self.place)

    def path(self, progress: Progress | None = None) -> Path:
        """Return the file; one that nobody named is made if it is needed; see `made_bank`."""
        if self.file:
            return self.place
        return made_bank(self.cache_folder, self.takes, progress, sampled=self.is_noisy)


@cache
def opened_bank(path: str) -> WordBank:
    """Return a bank, which is read once."""
    return read_bank(Path(path))


def read_bank(path: Path) -> WordBank:
    """Read a bank.

    Raises:
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"A bank of words must be a file: {path} is none. Make it first.")
    with safe_open(path, "pt") as file:
        samples = file.get_tensor("samples") if "samples" in file.keys() else None  # noqa: SIM118
        return WordBank(file.get_tensor("stored"), _facts(file.metadata())["takes"], samples)


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the takes of a file, and how it was made: ``None`` in files that do not say it."""
    if "bank" not in metadata:  # a file of the time before banks said how they were made
        return {"takes": json.loads(metadata["takes"]), "made": None}
    facts: dict[str, Any] = json.loads(metadata["bank"])
    return facts


def bank_mels() -> LogMels:
    """Return what makes frames of sound, rounded as a bank stores them."""
    return LogMels(FRAME_HZ, steps=_STEPS)


def sound_frames(audio: Float[Tensor, " N"]) -> Float[Tensor, "T width"]:
    """Return the frames of speech at 16 kHz, whose last one is completed with silence."""
    return bank_mels().encode(audio[None])[0]


def _windows(audio: Float[Tensor, " N"], mels: LogMels) -> Float[Tensor, "T n"]:
    """Return the samples on which each frame of a recording depends: some before it, and its own.

    The last frame is completed with silence.
    """
    past = mels.initial_past(1).shape[1]
    padded = F.pad(audio, (past, -len(audio) % mels.frame_samples))
    return padded.unfold(0, past + mels.frame_samples, mels.frame_samples)


def make_bank(
    speaker: Speaker,
    voices: Sequence[Voice],
    problems: Iterable[Problem],
    most_takes: int,
    progress: Progress | None = None,
    *,
    sampled: bool = False,
) -> WordBank:
    """Let voices say sentences of problems, as long as these have words with too few takes.

    A frame belongs to the word that covers its middle.

    Args:
        speaker: Speaks.
        voices: Voices with different labels.
        problems: Problems, of which sentences are taken in order.
        most_takes: Takes of a word by a voice.
        progress: Shows the progress; ``None`` shows nothing.
        sampled: Whether the bank keeps its samples.
    """
    clauses = [clause for problem in problems for clause in problem.clauses]
    counts = Counter(word for clause in clauses for word in clause.words)
    wanted = len(voices) * sum(min(count, most_takes) for count in counts.values())
    task = (progress or Progress(quiet=True)).task("speaking words")
    num_takes = 0
    stored: list[Tensor] = []
    samples: list[Tensor] = []
    takes: dict[str, dict[str, list[tuple[int, int]]]] = {voice.label: {} for voice in voices}
    number = 0
    for clause in clauses:
        for voice in voices:
            own = takes[voice.label]
            if all(len(own.get(word, ())) >= most_takes for word in clause.words):
                continue
            spoken = speaker.speak(" ".join(clause.words), voice, LogMels.sample_rate)
            frames = (sound_frames(spoken.audio) * _STEPS).byte()  # they are rounded already
            windows = _windows(spoken.audio.clamp(-1, 1), bank_mels()) * _LOUDEST
            for word in spoken.words:
                first = round(word.start_s * FRAME_HZ)
                stop = max(round(word.end_s * FRAME_HZ), first + 1)
                have = own.setdefault(word.text, [])
                if len(have) < most_takes and stop <= len(frames):
                    stored.append(frames[first:stop])
                    samples.append(windows[first:stop].round().short())
                    have.append((number, number + stop - first))
                    number += stop - first
                    num_takes += 1
            task(num_takes, wanted)
    task(wanted, wanted)
    return WordBank(torch.cat(stored), takes, torch.cat(samples) if sampled else None)


@cache
def bank_name(takes: int, *, sampled: bool = False) -> str:
    """Return the name of the file of a bank of `VOICES`, by what they say.

    Args:
        takes: Takes of a word by a voice.
        sampled: Whether the bank keeps its samples.
    """
    sentences = [clause.words for problem in _problems() for clause in problem.clauses]
    facts = [[voice.label for voice in VOICES], takes, sentences, FRAME_HZ]
    return f"words-{'sampled-' * sampled}{json_digest(facts)[:16]}.safetensors"


def made_bank(
    folder: str,
    takes: int,
    progress: Progress | None = None,
    speaker: Speaker | None = None,
    *,
    sampled: bool = False,
) -> Path:
    """Return the file of a bank of `VOICES` in a folder; a missing or outdated one is made.

    Args:
        folder: Folder of banks, and of the sentences that are spoken for them: if the making is
            stopped, it goes on with the next sentence.
        takes: Takes of a word by a voice.
        progress: Shows the progress; ``None`` shows nothing.
        speaker: Speaks; by default the installed voices.
        sampled: Whether the bank keeps its samples.

    Raises:
        UserError: The voices are not installed.
        OSError: The folder cannot be written.
    """
    path = Path(folder).expanduser() / bank_name(takes, sampled=sampled)
    if not (path.is_file() and is_current(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        speaker = Synthesizer(folder) if speaker is None else speaker
        bank = make_bank(speaker, VOICES, _problems(), takes, progress, sampled=sampled)
        bank.save(path, _how_made())
    return path


def is_current(path: Path) -> bool:
    """Return whether a bank of `VOICES` is as it would be made now.

    Its engines and mels must be those of today; of an engine that is not installed here, nothing
    newer can be made, so any version will do.
    """
    return _was_current(path, path.stat().st_mtime_ns)


@cache
def _was_current(path: Path, changed_ns: int) -> bool:
    """Return whether a bank that was last changed at a time is current; see `is_current`."""
    with safe_open(path, "pt") as file:
        made = _facts(file.metadata())["made"]
    if made is None:
        return False
    now = _how_made()
    engines = now["spoken"]["engines"]
    for name, version in made["spoken"]["engines"].items():
        engines[name] = engines.get(name) or version
    return bool(made == now)


def _how_made() -> dict[str, Any]:
    """Return JSON values on which the sounds of a bank of `VOICES` depend, besides what is said."""
    return {
        "spoken": how_spoken(VOICES),
        "mels": bank_mels().settings,
        "steps": _STEPS,
        "format": 1,
    }


def _problems() -> list[Problem]:
    """Return the problems whose sentences are spoken for a bank."""
    task = SpokenMaths()
    return [task.problem(0, number) for number in range(_NUM_PROBLEMS)]
