"""Speakers that decide to stop without a model of speech: controls of tests of interruptions.

Each function returns the stop scores of what is heard at 16 kHz. A measure of interruptions is
useful if the constant policies fail it, and a model is useful if it is better than a detector.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.evaluate.duplex.interruptions import StopScores
from counterpoint.packages import optional_module

_RATE = 16_000
_FRAME_S = 0.04
_VAD_SAMPLES = 512


def always_stop(heard: Float[Tensor, " N"]) -> StopScores:
    """Return scores of a speaker that stops at once."""
    return _every(_FRAME_S, torch.ones(max(round(len(heard) / _RATE / _FRAME_S), 1)))


def never_stop(heard: Float[Tensor, " N"]) -> StopScores:
    """Return scores of a speaker that never stops."""
    return _every(_FRAME_S, torch.zeros(max(round(len(heard) / _RATE / _FRAME_S), 1)))


def energy_gate(heard: Float[Tensor, " N"]) -> StopScores:
    """Return the level of each 40 ms, in dB of full scale."""
    size = round(_FRAME_S * _RATE)
    power = heard[: len(heard) // size * size].unflatten(0, (-1, size)).square().mean(1)
    return _every(_FRAME_S, 10 * power.clamp(min=1e-10).log10())


class VoiceDetector:
    """Silero's detector of speech, of the package `silero-vad`.

    Raises:
        UserError: The package is missing.
    """

    def __init__(self) -> None:
        self._model: Any = optional_module("silero_vad").load_silero_vad()

    @torch.no_grad()
    def __call__(self, heard: Float[Tensor, " N"]) -> StopScores:
        """Return the probability of speech in each 32 ms."""
        self._model.reset_states()
        whole = len(heard) // _VAD_SAMPLES * _VAD_SAMPLES
        found = [float(self._model(piece, _RATE)) for piece in heard[:whole].split(_VAD_SAMPLES)]
        return _every(_VAD_SAMPLES / _RATE, torch.tensor(found))


class WakeWordDetector:
    """A detector of the word "alexa", of the package `pymicro-wakeword`.

    Its score is the mean of the newest probabilities, as the package computes it.

    Raises:
        UserError: The package is missing.
    """

    def __init__(self) -> None:
        self._package: Any = optional_module("pymicro_wakeword")
        self._model: Any = None

    def __call__(self, heard: Float[Tensor, " N"]) -> StopScores:
        """Return a score for each 10 ms in which there is one, at their ends."""
        # A new one for each recording: there is no reset of the network's own state.
        kind = self._package.Model.ALEXA
        model = self._package.MicroWakeWord.from_builtin(kind)
        features = self._package.MicroWakeWordFeatures()
        levels = (heard.clamp(-1, 1) * (2**15 - 1)).to(torch.int16).numpy()
        times = [0.0]
        scores = [0.0]
        size = _RATE // 100
        for first in range(0, len(levels) - size + 1, size):
            for frame in features.process_streaming(levels[first : first + size].tobytes()):
                times.append((first + size) / _RATE)
                scores.append(float(model.process_streaming_prob(frame) or 0.0))
        model.close()
        return StopScores(torch.tensor(times), torch.tensor(scores))


def _every(step_s: float, scores: Float[Tensor, " T"]) -> StopScores:
    """Return scores that are known at the ends of steps."""
    return StopScores(step_s * torch.arange(1, len(scores) + 1), scores)
