"""The voice detector hears a voice, and neither silence nor noise."""

import pytest
import torch

from counterpoint.evaluate.duplex.detectors import voice_detector
from counterpoint.speech.augment import pink_noise
from counterpoint.speech.engines import ENGINES
from counterpoint.speech.voices import Synthesizer, available_voices


def test_the_voice_detector_hears_a_voice_and_nothing_else() -> None:
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    if not any(kind.names() for kind in ENGINES.values()):
        pytest.skip("no voice is installed")
    said = Synthesizer().speak("could you stop for a moment", available_voices()[0], 16_000).audio
    heard = torch.cat((torch.zeros(16_000), said * 0.5))
    first = voice_detector(heard)
    stop_s = first.stop_s(0.5, 10.0)
    assert stop_s is not None
    assert 1.0 < stop_s < 1.4
    assert voice_detector(0.01 * pink_noise(32_000, 0)).stop_s(0.5, 10.0) is None
    again = voice_detector(heard)  # it has forgotten the other recordings
    assert torch.equal(again.scores, first.scores)
