"""Speakers that decide to stop without a model of speech: controls of tests of interruptions.

Each function returns the stop scores of what is heard at 16 kHz. A measure of interruptions is
useful if the constant policies fail it, and a model is useful if it is better than a detector.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.evaluate.duplex.interruptions import StopScores
from counterpoint.speech.detector import DETECTOR_BLOCK, DETECTOR_HZ, SpeechDetector

_RATE = 16_000
_FRAME_S = 0.04


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


def voice_detector(heard: Float[Tensor, " N"]) -> StopScores:
    """Return the probability of speech in each 32 ms, by Silero's network.

    Raises:
        MissingPackageError: The extra `offline` is not installed.
    """
    detector = SpeechDetector()  # a new one, because it remembers what it has heard
    whole = len(heard) // DETECTOR_BLOCK * DETECTOR_BLOCK
    found = [detector(block) for block in heard[:whole].split(DETECTOR_BLOCK)]
    return _every(DETECTOR_BLOCK / DETECTOR_HZ, torch.tensor(found))


def _every(step_s: float, scores: Float[Tensor, " T"]) -> StopScores:
    """Return scores that are known at the ends of steps."""
    return StopScores(step_s * torch.arange(1, len(scores) + 1), scores)
