"""Phrases as codes of a codec, with the frames of their words: synthesised, or read from a file.

A file of phrases lets a machine without voices make the same training data as one with voices.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.speech.codec import Codec
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Speaker, Voice

_FORMAT = {"format": "counterpoint-phrases", "version": "1"}


class WordFrames(NamedTuple):
    """A word of a phrase.

    Attributes:
        text: The word.
        first: Its first frame.
        stop: The frame after its last one.
    """

    text: str
    first: int
    stop: int


class Phrase(NamedTuple):
    """A phrase as it is spoken.

    Attributes:
        text: Its words.
        codes: Its frames.
        audio: Samples at the rate of the codec, as many as the frames hold.
        words: The words that have a sound, in order.
    """

    text: str
    codes: Int[Tensor, "T K"]
    audio: Float[Tensor, " N"]
    words: tuple[WordFrames, ...]


class Utterance(NamedTuple):
    """Something that the model says.

    Attributes:
        text: The words.
        codes: Their T frames.
        audio: The sound that was encoded, at the codec's rate.
    """

    text: str
    codes: Int[Tensor, "T K"]
    audio: Float[Tensor, " N"]


@runtime_checkable
class Phrases(Protocol):
    """Gives phrases; equal texts give equal codes."""

    def phrase(self, text: str) -> Phrase:
        """Return a phrase."""


class SynthesisedPhrases:
    """Phrases that a voice speaks and a codec encodes."""

    def __init__(self, codec: Codec, speaker: Speaker, voice: Voice) -> None:
        self._codec = codec
        self._speaker = speaker
        self._voice = voice

    def phrase(self, text: str) -> Phrase:
        """Speak a phrase and encode it; see `Phrases.phrase`."""
        spoken = self._speaker.speak(text, self._voice, self._codec.sample_rate)
        audio = F.pad(spoken.audio, (0, -len(spoken.audio) % self._codec.frame_samples))
        codes = self._codec.encode(audio[None])[0]
        rate_hz = self._codec.frame_rate_hz
        found = (_word_frames(word, rate_hz, len(codes)) for word in spoken.words)
        return Phrase(text, codes, audio, tuple(word for word in found if word is not None))


class StoredPhrases:
    """Phrases of a file that `write_phrases` wrote; their sound is decoded from their codes.

    Raises:
        UserError: The file is none, or its codes are of another codec.
    """

    def __init__(self, path: str | Path, codec: Codec) -> None:
        self._path = Path(path).expanduser()
        self._codec = codec
        try:
            with safe_open(self._path, "pt") as kept:
                about = kept.metadata() or {}
                codes = kept.get_tensor("codes").long()
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"A file of phrases must be one that was written for this: got {path} ({error})."
            ) from error
        if about.get("format") != _FORMAT["format"] or about.get("codes") != _kind(codec):
            raise UserError(
                f"Phrases of {path} must be codes of {_kind(codec)}: got codes of "
                f"{about.get('codes', 'nothing that is known')}."
            )
        self._entries: dict[str, tuple[int, int, list[list[int]]]] = json.loads(about["phrases"])
        self._codes = codes

    def phrase(self, text: str) -> Phrase:
        """Read a phrase and decode it; see `Phrases.phrase`.

        Raises:
            UserError: The file does not hold it.
        """
        if text not in self._entries:
            raise UserError(
                f"{self._path} must hold all {len(self._entries)} phrases of the data and more: "
                f"{text!r} is missing. Write the file for this data."
            )
        first, stop, spans = self._entries[text]
        codes = self._codes[first:stop]
        words = text.split()
        return Phrase(
            text,
            codes,
            self._codec.decode(codes[None])[0],
            tuple(WordFrames(words[number], begin, end) for number, begin, end in spans),
        )


def write_phrases(path: str | Path, phrases: Iterable[Phrase], codec: Codec) -> None:
    """Write phrases to a file for `StoredPhrases`; it holds codes and words, and no sound.

    Args:
        path: The file.
        phrases: The phrases; of equal texts the last is kept.
        codec: The codec that encoded them.
    """
    entries = {}
    codes = []
    position = 0
    for phrase in phrases:
        stop = position + len(phrase.codes)
        words = phrase.text.split()
        spans = []
        number = 0
        for word in phrase.words:
            number = words.index(word.text, number)
            spans.append([number, word.first, word.stop])
            number += 1
        entries[phrase.text] = (position, stop, spans)
        codes.append(phrase.codes.to(torch.int16))
        position = stop
    about = {**_FORMAT, "codes": _kind(codec), "phrases": json.dumps(entries)}
    write_tensors(Path(path), {"codes": torch.cat(codes)}, about)


def _word_frames(word: SpokenWord, rate_hz: float, num_frames: int) -> WordFrames | None:
    """Return the frames that lie nearest to a word; ``None`` if it has no sound."""
    first = min(round(word.start_s * rate_hz), num_frames - 1)
    stop = min(round(word.end_s * rate_hz), num_frames)
    if word.end_s <= word.start_s:
        return None
    return WordFrames(word.text, first, max(stop, first + 1))


def _kind(codec: Codec) -> str:
    """Return what codes must have in common with those of a codec; its version is left out."""
    return f"{list(codec.codebook_sizes)} ids at {codec.frame_rate_hz:g} Hz"
