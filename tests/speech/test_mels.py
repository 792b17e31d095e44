"""Log-mels: silence is zero, the future is unknown, and streaming equals whole recordings."""

import math

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.speech import mels
from counterpoint.speech.mels import ChunkedMels, LogMels

MELS = LogMels(25.0)


def tone(hz: float, level: float, seconds: float = 0.4) -> torch.Tensor:
    time = torch.arange(round(seconds * MELS.sample_rate)) / MELS.sample_rate
    return level * torch.sin(2 * math.pi * hz * time)[None]


def test_silence_is_zero() -> None:
    assert MELS.width == 160
    assert not MELS.encode(torch.zeros(2, 1000)).any()
    assert MELS.encode(torch.zeros(2, 1000)).shape == (2, 2, 160)


def test_a_tone_is_in_its_band_and_louder_by_its_level() -> None:
    """Ten times the level is 20 dB: the logarithm to base ten of its power grows by two."""
    bands = {}
    for level in (0.01, 0.1):
        frames = MELS.encode(tone(1000, level)).unflatten(2, (4, 40))
        bands[level] = frames[0, 5, 0]
    mel = 2595 * math.log10(1 + 1000 / 700)
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (60, 7600))
    expected = (mel - low) / (high - low) * 41 - 1
    assert abs(int(bands[0.1].argmax()) - expected) <= 1
    loudest = int(bands[0.1].argmax())
    assert bands[0.1][loudest] - bands[0.01][loudest] == pytest.approx(1.0, abs=0.01)


def test_a_frame_does_not_depend_on_what_comes_after_it() -> None:
    audio = torch.randn(1, 6400) * 0.1
    changed = audio.clone()
    changed[:, 3 * MELS.frame_samples :] = 0.3
    before, after = MELS.encode(audio), MELS.encode(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3] != after[:, 3]).any()


def test_streaming_in_any_pieces_equals_whole_recordings() -> None:
    audio = torch.randn(2, 9 * MELS.frame_samples) * 0.1
    past = MELS.initial_past(2)
    pieces = []
    for piece in audio.split([MELS.frame_samples * n for n in (1, 3, 1, 4)], 1):
        frames, past = MELS.extend(piece, past)
        pieces.append(frames)
    torch.testing.assert_close(torch.cat(pieces, 1), MELS.encode(audio), rtol=0, atol=1e-5)


def test_frames_must_be_whole_hops() -> None:
    with pytest.raises(UserError, match="whole number of 10 ms hops"):
        LogMels(12.0)


def test_settings_name_every_constant_on_which_frames_depend() -> None:
    constants = {
        name: value for name, value in vars(mels).items() if isinstance(value, int | float)
    }
    found = MELS.settings
    assert found == {
        **{name.strip("_").lower(): value for name, value in constants.items()},
        "frame_rate_hz": 25.0,
        "num_bands": 40,
    }
    assert found != LogMels(12.5).settings != LogMels(12.5, 20).settings


@pytest.mark.parametrize("overlap", [0, 6])
@pytest.mark.parametrize("chunk_s", [0.1, 0.3, 0.4, 2.0])
@pytest.mark.parametrize("num_samples", [1, 640, 641, 6400, 6401, 20_000])
def test_chunks_of_a_recording_in_pieces_are_those_of_the_whole(
    num_samples: int, chunk_s: float, overlap: int
) -> None:
    audio = torch.randn(num_samples, generator=torch.Generator().manual_seed(0)) * 0.1
    frames = MELS.encode(audio[None])[0]
    whole = ChunkedMels(MELS, chunk_s, overlap)
    found = [*whole.push(audio), whole.finish()]
    assert len(found) == max(math.ceil(num_samples / MELS.sample_rate / chunk_s - 1e-9), 1)
    for number, chunk in enumerate(found):
        assert chunk.start_s == pytest.approx(number * chunk_s)
        is_last = number == len(found) - 1
        assert chunk.end_s == pytest.approx(
            num_samples / MELS.sample_rate if is_last else (number + 1) * chunk_s
        )
        first = max(math.floor(chunk.start_s * 25 + 1e-9) - overlap, 0)
        stop = len(frames) if is_last else math.floor(chunk.end_s * 25 + 1e-9)
        torch.testing.assert_close(chunk.content, frames[first:stop], rtol=0, atol=1e-5)
    for length in (1, 159, 641, 9000):
        ear = ChunkedMels(MELS, chunk_s, overlap)
        pieces = audio.split(length) if num_samples < 7000 or length > 1 else (audio[:1], audio[1:])
        chunks = [chunk for piece in pieces for chunk in ear.push(piece)]
        for one, other in zip([*chunks, ear.finish()], found, strict=True):
            assert one[:2] == other[:2]
            torch.testing.assert_close(one.content, other.content, rtol=0, atol=0)


def test_a_chunk_is_known_when_a_sample_after_it_has_come_and_not_before() -> None:
    """Then nothing that comes later can change it, nor whether it is the last."""
    ear = ChunkedMels(MELS, 0.4, 2)
    assert ear.push(torch.ones(6399)) == []
    assert ear.push(torch.ones(1)) == []  # it may be the last
    (chunk,) = ear.push(torch.zeros(1))
    assert (chunk.start_s, chunk.end_s, len(chunk.content)) == (0, 0.4, 10)
    assert chunk.end_s < ear.heard_s == 6401 / 16_000
    assert (ear.finish().end_s, ear.heard_s) == (6401 / 16_000,) * 2
    with pytest.raises(UserError, match="`chunk_s` must be positive"):
        ChunkedMels(MELS, 0.0)
    with pytest.raises(UserError, match="NaN"):
        ear.push(torch.full((1,), math.nan))


def test_features_may_be_rounded_to_what_eight_bits_store() -> None:
    audio = torch.randn(1, 6400)
    rounded = LogMels(25.0, steps=64).encode(audio)
    assert torch.equal(rounded * 64, (rounded * 64).byte().float())
    assert float((rounded - MELS.encode(audio)).abs().max()) <= 1 / 128 + 1e-6
