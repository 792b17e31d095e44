"""A bank of words that were really spoken, from which spoken problems are joined.

Speech for a hundred thousand problems fits nowhere, but their hundred words do: some takes of every
word by every voice, cut from synthesised sentences, as frames of log-mels. A joined problem takes
one take of each word, so its words sound as they do within sentences, and its melody is broken.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from counterpoint.data.tasks.spoken_maths.problems import Problem
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.speech.engines import SpokenWord
from counterpoint.speech.mels import LogMels
from counterpoint.speech.voices import Speaker, Voice

FRAME_HZ = 12.5
"""Frames a second."""

SILENCE = -1
"""Number of a frame of silence, which is zeros."""

_STEPS = 64  # of a feature between 0 and 1
_PAUSE_FRAMES = 4  # between sentences, 0.32 s

Takes = Mapping[str, Sequence[tuple[int, int]]]
"""First frame and frame after the last of every take of every word."""


class WordBank(NamedTuple):
    """Frames of spoken words.

    Attributes:
        stored: Frames in 8 bits, one after another.
        takes: Takes by the label of the voice.
    """

    stored: UInt8[Tensor, "F width"]
    takes: Mapping[str, Takes]

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

    def save(self, path: Path) -> None:
        """Write the bank to a file."""
        save_file({"stored": self.stored}, path, {"takes": json.dumps(self.takes)})


def read_bank(path: Path) -> WordBank:
    """Read a bank.

    Raises:
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"A bank of words must be a file: {path} is none. Make it first.")
    with safe_open(path, "pt") as file:
        return WordBank(file.get_tensor("stored"), json.loads(file.metadata()["takes"]))


def sound_frames(audio: Float[Tensor, " N"]) -> Float[Tensor, "T width"]:
    """Return the frames of speech at 16 kHz, whose last one is completed with silence."""
    return LogMels(FRAME_HZ).encode(audio[None])[0]


def make_bank(
    speaker: Speaker, voices: Sequence[Voice], problems: Iterable[Problem], most_takes: int
) -> WordBank:
    """Let voices say sentences of problems, as long as these have words with too few takes.

    A frame belongs to the word that covers its middle.

    Args:
        speaker: Speaks.
        voices: Voices with different labels.
        problems: Problems, of which sentences are taken in order.
        most_takes: Takes of a word by a voice.
    """
    stored: list[Tensor] = []
    takes: dict[str, dict[str, list[tuple[int, int]]]] = {voice.label: {} for voice in voices}
    number = 0
    for clause in (clause for problem in problems for clause in problem.clauses):
        for voice in voices:
            own = takes[voice.label]
            if all(len(own.get(word, ())) >= most_takes for word in clause.words):
                continue
            spoken = speaker.speak(" ".join(clause.words), voice, LogMels.sample_rate)
            frames = (sound_frames(spoken.audio) * _STEPS).round().clamp(0, 255).byte()
            for word in spoken.words:
                first = round(word.start_s * FRAME_HZ)
                stop = max(round(word.end_s * FRAME_HZ), first + 1)
                have = own.setdefault(word.text, [])
                if len(have) < most_takes and stop <= len(frames):
                    stored.append(frames[first:stop])
                    have.append((number, number + stop - first))
                    number += stop - first
    return WordBank(torch.cat(stored), takes)
