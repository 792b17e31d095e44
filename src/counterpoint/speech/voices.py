"""Text to speech with local voices; utterances have the times of their words and are cached.

One network gives several speakers: speech that is made k times as long and then played k times as
fast keeps its length, while pitch and formants are k times as high (`Voice.formant`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int16
from safetensors import SafetensorError, safe_open
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.literals import literals_checked
from counterpoint.speech.audio import resample
from counterpoint.speech.engines import ENGINES, SpeechEngine, digest
from counterpoint.speech.loudness import normalise_loudness
from counterpoint.speech.sayable import check_sayable, sayable_pieces
from counterpoint.speech.spoken_words import SpokenWord

JOE_FORMANTS = (0.88, 1.0, 1.15, 1.3, 1.45)
"""Formants that make five speakers of one voice."""

SLOW = ("kokoro",)
"""Engines whose voices must be named, because they take nearly as long to speak as a person."""

_LOUDNESS_LUFS = -24.0
_FORMAT = {"format": "counterpoint-utterance", "version": "1"}
_FRAME_S = 0.005
_QUIET_DB = -45.0
_MARGIN_S = 0.01
_HISS_S = 0.03
_BREATH_S = 0.2


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A voice.

    Attributes:
        engine: Program that speaks.
        name: Name of one of its voices.
        formant: Factor of pitch and formants.
        pace: Factor of all durations.
    """

    engine: Literal["piper", "flite", "espeak", "kokoro"] = "piper"
    name: str = "joe"
    formant: float = 1.0
    pace: float = 1.0

    def __post_init__(self) -> None:
        for field, value in (("formant", self.formant), ("pace", self.pace)):
            if not 0.5 <= value <= 2:
                raise UserError(f"`{field}` of a voice must be 0.5 to 2: got {value}.")

    @property
    def label(self) -> str:
        """Name of the voice without its pace, such as "piper joe 1.15"."""
        return f"{self.engine} {self.name} {self.formant:g}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spoken:
    """An utterance without silence around it.

    Attributes:
        audio: Samples, each a multiple of 2^-15.
        words: One for each blank-separated piece of the text, in order; a piece without sound has
            no duration.
    """

    audio: Float[Tensor, " N"]
    words: tuple[SpokenWord, ...]


@runtime_checkable
class Speaker(Protocol):
    """Speaks texts; equal arguments give equal samples. Other processes get a pickled copy."""

    def speak(self, text: str, voice: Voice, sample_rate: int) -> Spoken:
        """Speak a text.

        Args:
            text: At least one word.
            voice: Who speaks.
            sample_rate: Samples a second of the result.
        """


class Synthesizer:
    """Speaks with the installed engines; each is started when it is first needed.

    Args:
        cache_folder: Folder of the cached utterances; ``None`` caches none.
        loudness_lufs: Loudness of every utterance. The default is that of PersonaPlex's voice
            samples.
        engines: Functions that start the engines, by name.
    """

    def __init__(
        self,
        cache_folder: str | Path | None = None,
        loudness_lufs: float = _LOUDNESS_LUFS,
        engines: Mapping[str, Callable[[], SpeechEngine]] = ENGINES,
    ) -> None:
        self._cache = None if cache_folder is None else Path(cache_folder).expanduser()
        self._loudness_lufs = loudness_lufs
        self._kinds = dict(engines)
        self._engines = dict[str, SpeechEngine]()

    def __getstate__(self) -> dict[str, object]:
        """Leave the engines out: another process starts its own."""
        return {**self.__dict__, "_engines": {}}

    def speak(self, text: str, voice: Voice, sample_rate: int) -> Spoken:
        """Speak a text, or return the cached utterance.

        Args:
            text: Text with at least one letter or digit; see `check_sayable`. A long text is spoken
                in pieces, 0.2 s apart.
            voice: The voice.
            sample_rate: Samples a second.

        Raises:
            UserError: The engine is missing, or it cannot speak the text.
            OSError: The cache cannot be written.
        """
        text = " ".join(text.split())
        if voice.engine not in self._engines:
            self._engines[voice.engine] = self._kinds[voice.engine]()
        engine = self._engines[voice.engine]
        check_sayable(text, engine.alphabet)
        pieces = [" ".join(words) for words in sayable_pieces(text.split())]
        if len(pieces) > 1:
            spoken = [self.speak(piece, voice, sample_rate) for piece in pieces]
            return join_utterances(spoken, round(_BREATH_S * sample_rate), sample_rate)
        if self._cache is None:
            return _kept(*self._say(engine, text, voice, sample_rate))
        key = digest(_FORMAT, engine.version, asdict(voice), text, sample_rate, self._loudness_lufs)
        file = self._cache / key[:2] / f"{key}.safetensors"
        if (kept := _read(file)) is not None:
            return kept
        samples, words = self._say(engine, text, voice, sample_rate)
        _write(file, samples, words)
        return _kept(samples, words)

    def _say(
        self, engine: SpeechEngine, text: str, voice: Voice, sample_rate: int
    ) -> tuple[Int16[Tensor, " N"], list[SpokenWord]]:
        said = engine.say(text, voice.name, voice.pace * voice.formant)
        rate = round(said.sample_rate * voice.formant)
        audio = resample(said.audio[None], rate, sample_rate)
        if not audio.any():
            raise UserError(f"{voice.label} must say something for {text!r}: it is silent.")
        audio = normalise_loudness(audio, sample_rate, self._loudness_lufs)[0]
        # Times of the words at this sample rate.
        timed = [
            SpokenWord(word.text, *(time * said.sample_rate / rate for time in word[1:]))
            for word in said.words
        ]
        first, stop = _voiced(audio, timed, sample_rate)
        samples = (audio[first:stop] * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
        start_s = first / sample_rate
        length_s = (stop - first) / sample_rate
        words = [
            SpokenWord(word.text, *(min(max(time - start_s, 0.0), length_s) for time in word[1:]))
            for word in timed
        ]
        return samples, words


def how_spoken(voices: Sequence[Voice]) -> dict[str, Any]:
    """Return JSON values on which what voices say depends, besides the text.

    It is what a `Synthesizer` caches by: the version of each engine by its name, which is empty if
    the engine is not installed here, and what happens to its speech.
    """
    names = sorted({voice.engine for voice in voices})
    return {
        "voices": [asdict(voice) for voice in voices],
        "engines": {name: ENGINES[name].installed_version() for name in names},
        "loudness_lufs": _LOUDNESS_LUFS,
        **_FORMAT,
    }


def join_utterances(parts: Sequence[Spoken], silence: int, sample_rate: int) -> Spoken:
    """Join utterances into one, with ``silence`` samples of silence between them.

    All have the same ``sample_rate``, in samples a second.
    """
    audio = list[Tensor]()
    words = list[SpokenWord]()
    first = 0
    for part in parts:
        start_s = first / sample_rate
        words += [
            SpokenWord(word.text, word.start_s + start_s, word.end_s + start_s)
            for word in part.words
        ]
        audio += [part.audio, torch.zeros(silence)]
        first += len(part.audio) + silence
    return Spoken(audio=torch.cat(audio[:-1]), words=tuple(words))


def available_voices(*, also_slow: bool = False) -> tuple[Voice, ...]:
    """Return the speakers of the installed engines, Piper's five first.

    Args:
        also_slow: Whether those of engines are among them that speak hardly faster than a person
            does, and must be named to be used.
    """
    return tuple(
        Voice(engine=engine, name=name, formant=formant)  # type: ignore[arg-type]
        for engine, kind in ENGINES.items()
        if also_slow or engine not in SLOW
        for name in kind.names()
        for formant in (JOE_FORMANTS if engine == "piper" else (1.0,))
    )


def find_voices(names: Sequence[str]) -> tuple[Voice, ...]:
    """Return installed voices by name.

    Args:
        names: Names such as "piper:joe" or "piper:joe:1.15": engine, name and formant.

    Raises:
        UserError: There is no such voice here, or the formant is no number.
    """
    known: dict[tuple[str, str], Voice] = {
        (voice.engine, voice.name): voice for voice in available_voices(also_slow=True)
    }
    voices = []
    for text in names:
        engine, _, rest = text.partition(":")
        name, _, formant = rest.partition(":")
        voice = known.get((engine, name))
        if voice is None:
            choices = ", ".join(":".join(key) for key in known) or "none is installed"
            raise UserError(
                f"A voice must be engine:name or engine:name:formant: got {text!r}. "
                f"Here: {choices}."
            )
        try:
            factor = float(formant or 1.0)
        except ValueError:
            raise UserError(f"The formant of a voice must be a number: got {text!r}.") from None
        voices.append(replace(voice, formant=factor))
    return tuple(voices)


def _voiced(
    audio: Float[Tensor, " N"], words: list[SpokenWord], sample_rate: int
) -> tuple[int, int]:
    """Return the first and last sample of what is not quiet, with a small margin.

    Some voices breathe or hiss before and after they speak: that counts as quiet, too.
    """
    size = max(1, round(_FRAME_S * sample_rate))
    frames = torch.nn.functional.pad(audio, (0, -len(audio) % size)).unflatten(0, (-1, size))
    power = frames.double().square().mean(1)
    loud = (power > power.max() * 10 ** (_QUIET_DB / 10)).nonzero()[:, 0]
    margin = round(_MARGIN_S * sample_rate)
    first = int(loud[0]) * size - margin
    stop = (int(loud[-1]) + 1) * size + margin
    hiss = round(_HISS_S * sample_rate)
    first = max(first, round(words[0].start_s * sample_rate) - hiss, 0)
    return first, min(stop, round(words[-1].end_s * sample_rate) + hiss, len(audio))


def _kept(samples: Int16[Tensor, " N"], words: list[SpokenWord]) -> Spoken:
    return Spoken(audio=samples.float() / 2**15, words=tuple(words))


def _read(file: Path) -> Spoken | None:
    """Return the utterance of a file; ``None`` if there is none, or a broken one."""
    try:
        with safe_open(file, "pt") as kept:
            words = [SpokenWord(*word) for word in json.loads(kept.metadata()["words"])]
            return _kept(kept.get_tensor("samples"), words)
    except (OSError, SafetensorError):
        return None


def _write(file: Path, samples: Int16[Tensor, " N"], words: list[SpokenWord]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, {"samples": samples}, {**_FORMAT, "words": json.dumps(words)})
