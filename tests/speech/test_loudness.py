import math

import pytest
import torch
from torch import Tensor

from counterpoint.speech.loudness import loudness_lufs, normalise_loudness, weighting_filters


def tone(hz: float, sample_rate: int, seconds: float, level_db: float = 0.0) -> Tensor:
    time_s = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return 10 ** (level_db / 20) * torch.sin(2 * torch.pi * hz * time_s)[None]


def test_filters_are_the_tables_of_the_standard() -> None:
    """BS.1770-4, tables 1 and 2, for 48 kHz."""
    expected = [
        [
            [1.53512485958697, -2.69169618940638, 1.19839281085285],
            [1.0, -1.69065929318241, 0.73248077421585],
        ],
        [[1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621]],
    ]
    assert (weighting_filters(48000) - torch.tensor(expected).double()).abs().max() < 1e-7


@pytest.mark.parametrize("sample_rate", [8000, 24000, 44100, 48000])
def test_full_scale_tone_is_what_the_standard_says(sample_rate: int) -> None:
    """997 Hz at full scale in one channel is -3.01 LUFS, whatever the rate."""
    assert loudness_lufs(tone(997, sample_rate, 2), sample_rate) == pytest.approx(-3.01, abs=0.03)


def test_channels_add_up() -> None:
    mono = tone(997, 24000, 2, -20)
    one = loudness_lufs(mono, 24000)
    assert loudness_lufs(mono.expand(2, -1), 24000) - one == pytest.approx(3.01, abs=1e-3)


def test_filter_is_that_of_the_difference_equation() -> None:
    """The response on a circle equals the recursion, sample by sample."""
    audio = torch.randn(1, 12000, dtype=torch.float64)
    y = audio[0].tolist()
    for (b0, b1, b2), (_, a1, a2) in weighting_filters(24000).tolist():
        x, y, x1, x2, y1, y2 = y, [], 0.0, 0.0, 0.0, 0.0
        for value in x:
            out = b0 * value + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
            x1, x2, y1, y2 = value, x1, out, y1
            y.append(out)
    # Blocks of 400 ms, the next one 100 ms later; noise as steady as this passes both gates.
    blocks = torch.tensor(y).square().unfold(0, 9600, 2400).mean(1)
    expected = -0.691 + 10 * blocks.mean().log10()
    assert loudness_lufs(audio, 24000) == pytest.approx(expected.item(), abs=1e-6)


def test_gates_leave_out_pauses() -> None:
    """EBU Tech 3341, case 3: 10 s at -36, 60 s at -23, 10 s at -36 dBFS give -23 LUFS."""
    quiet, loud = tone(1000, 8000, 10, -36), tone(1000, 8000, 60, -23)
    stereo = torch.cat((quiet, loud, quiet), 1).expand(2, -1)
    assert loudness_lufs(stereo, 8000) == pytest.approx(-23.0, abs=0.1)
    silence = torch.zeros(2, 80000, dtype=torch.float64)
    assert loudness_lufs(torch.cat((stereo, silence), 1), 8000) == pytest.approx(-23.0, abs=0.1)


def test_normalising_meets_the_target() -> None:
    audio = tone(300, 24000, 1.5, -40) + 0.001 * torch.randn(1, 36000)
    scaled = normalise_loudness(audio, 24000, -24.0)
    assert loudness_lufs(scaled, 24000) == pytest.approx(-24.0, abs=1e-6)
    assert torch.allclose(scaled / scaled.norm(), audio / audio.norm())


def test_short_and_silent_recordings() -> None:
    short = tone(997, 24000, 0.1)
    assert loudness_lufs(short, 24000) == pytest.approx(-3.01 - 10 * math.log10(4), abs=0.2)
    assert loudness_lufs(torch.zeros(1, 48000), 24000) == -math.inf
    with pytest.raises(ValueError, match="got silence"):
        normalise_loudness(torch.zeros(1, 48000), 24000, -24.0)
    for wrong in (torch.zeros(3, 100), torch.zeros(1, 0)):
        with pytest.raises(ValueError, match="one or two channels with samples"):
            loudness_lufs(wrong, 24000)
