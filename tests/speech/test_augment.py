from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.speech.augment import (
    Augmentation,
    augment_user,
    echo,
    noise_sections,
    pink_noise,
)

RATE = 1000
NOTHING: dict[str, Any] = {"gain_probability": 0, "noise_probability": 0, "echo_probability": 0}


def rms(audio: Tensor) -> float:
    return audio.square().mean().sqrt().item()


def augmented(seed: int, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    user, agent = torch.randn(2, 4 * RATE, generator=torch.Generator().manual_seed(9))
    changed = augment_user(user, agent, RATE, Augmentation(**{**NOTHING, **changes}), seed)
    return user, agent, changed


def test_nothing_happens_unless_asked() -> None:
    user, _, changed = augmented(0)
    assert torch.equal(user, changed)


def test_gain_is_within_its_range() -> None:
    gains = []
    for seed in range(200):
        user, _, changed = augmented(seed, gain_probability=1.0)
        gain = 20 * torch.log10(changed / user)
        assert gain.max() - gain.min() < 1e-3
        gains.append(gain.mean().item())
    assert -24.01 < min(gains) < -22
    assert 13 < max(gains) < 15.01


def test_echo_is_the_agent_weaker_and_later() -> None:
    delays, gains = set(), []
    for seed in range(100):
        user, agent, changed = augmented(seed, echo_probability=1.0)
        rest = changed - user
        delay = int(rest.abs().gt(1e-6).nonzero()[0]) if rms(rest) > 1e-3 else None
        if delay is not None:
            delays.add(delay)
            gain = rms(rest[delay:]) / rms(agent[: 4 * RATE - delay])
            gains.append(gain)
            assert torch.allclose(rest[delay:], gain * agent[: len(agent) - delay], atol=1e-4)
    assert 100 <= min(delays) < 120
    assert 480 < max(delays) <= 500
    assert 0.19 < max(gains) <= 0.2001


def test_echo_later_than_the_end_is_silent() -> None:
    assert echo(torch.ones(5), 0.5, 2).tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert echo(torch.ones(5), 0.5, 5).tolist() == [0] * 5
    assert echo(torch.ones(5), 0.5, 9).tolist() == [0] * 5
    assert echo(torch.ones(5), 0.5, 0).tolist() == [0.5] * 5


def test_noise_level_is_relative_to_the_user() -> None:
    levels = []
    for seed in range(200):
        user, _, changed = augmented(seed, noise_probability=1.0)
        background = changed - user
        heard = background[background != 0]
        if len(heard) == len(user):  # one section of noise that outlasts the recording
            levels.append(20 * torch.log10(torch.tensor(rms(heard) / rms(user))).item())
    assert len(levels) > 50
    assert -30.1 < min(levels) < -27
    assert 4 < max(levels) < 6.1


def test_noise_and_silence_take_turns() -> None:
    sections = noise_sections(100 * RATE, RATE, (0.5, 1.5), seed=3)
    sounding = (sections != 0).long()
    turns = sounding.diff().nonzero()[:, 0]
    lengths = turns.diff()
    assert len(turns) > 60
    assert lengths.min() >= 490
    assert lengths.max() <= 1510
    assert 0.4 < sounding.double().mean() < 0.6


def test_noise_can_be_a_recording() -> None:
    recording = torch.tensor([3.0, -3.0, 3.0, -3.0, 1.0])
    sections = noise_sections(1000, RATE, (0.1, 0.1), 1, recording)
    heard = sections[sections != 0] * rms(recording)
    assert len(heard) == 500
    assert set(heard.round(decimals=3).tolist()) == {3.0, -3.0, 1.0}
    for silent in (torch.zeros(0), torch.zeros(9)):
        with pytest.raises(ValueError, match="not all zero"):
            noise_sections(10, RATE, (1.0, 1.0), 1, silent)


def test_noise_is_pink() -> None:
    noise = pink_noise(1 << 16, 0)
    power = torch.fft.rfft(noise).abs().square()
    octaves = [power[1 << k : 2 << k].sum() for k in range(8, 15)]
    assert max(octaves) / min(octaves) < 1.3  # equal power in every octave
    assert rms(noise) == pytest.approx(1, abs=1e-4)
    assert pink_noise(1, 0).tolist() == [0.0]


def test_how_often_things_happen() -> None:
    user, agent = torch.randn(2, 400)
    changed = {"gain": 0, "echo": 0}
    for seed in range(400):
        louder = augment_user(
            user, agent, RATE, Augmentation(**{**NOTHING, "gain_probability": 0.5}), seed
        )
        echoed = augment_user(
            user, agent, RATE, Augmentation(**{**NOTHING, "echo_probability": 0.3}), seed
        )
        changed["gain"] += not torch.equal(user, louder)
        changed["echo"] += not torch.equal(user, echoed)
    assert 160 < changed["gain"] < 240
    assert 50 < changed["echo"] < 150  # 0.3 of 400, less echoes that come after the end


def test_equal_seeds_give_equal_audio() -> None:
    everything = dict.fromkeys(NOTHING, 1.0)
    one, again, other = (augmented(seed, **everything)[2] for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_silence_stays_silent_but_for_the_echo() -> None:
    everything = Augmentation(gain_probability=1, noise_probability=1, echo_probability=1)
    assert not augment_user(torch.zeros(900), torch.zeros(900), RATE, everything, 0).any()
    assert len(augment_user(torch.zeros(0), torch.zeros(0), RATE, everything, 0)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain_probability": 1.5},
        {"gain_db": (3.0, -3.0)},
        {"noise_s": (0.0, 0.0)},
        {"echo_delay_s": (-0.1, 0.5)},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Augmentation(**wrong)
