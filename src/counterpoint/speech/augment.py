"""What a microphone adds to a voice: another level, noise, and an echo of the other speaker.

Moshi trains its hearing on such audio, so that it does not answer its own echo.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How often and how strongly the user's audio is changed. Values are drawn uniformly.

    Attributes:
        gain_probability: Probability of a changed level.
        gain_db: Range of the change in decibels.
        noise_probability: Probability of noise.
        noise_db: Range of the noise level relative to the user's, both as root mean squares.
        noise_s: Range of the durations of noise and of silence, which alternate.
        echo_probability: Probability that the agent is heard in the user's microphone.
        echo_gain: Range of the factor of the echo.
        echo_delay_s: Range of the delay of the echo.

    Source: Moshi (arXiv:2410.00037), section 4.4. Deviation: the reverberation that it applies to
    echo and user together is left out.
    """

    gain_probability: float = 0.5
    gain_db: Range = (-24.0, 15.0)
    noise_probability: float = 0.3
    noise_db: Range = (-30.0, 6.0)
    noise_s: Range = (0.0, 30.0)
    echo_probability: float = 0.3
    echo_gain: Range = (0.0, 0.2)
    echo_delay_s: Range = (0.1, 0.5)

    def __post_init__(self) -> None:
        for name in ("gain_probability", "noise_probability", "echo_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` must be 0 to 1, got {getattr(self, name)}.")
        for name in ("gain_db", "noise_db", "noise_s", "echo_gain", "echo_delay_s"):
            low, high = getattr(self, name)
            if not low <= high:
                raise UserError(f"`{name}` must be (low, high), got {(low, high)}.")
        if self.noise_s[1] <= 0 or self.noise_s[0] < 0 or self.echo_delay_s[0] < 0:
            raise UserError(
                "`noise_s` and `echo_delay_s` must be >= 0, and `noise_s` not always 0: got "
                f"noise_s={self.noise_s}, echo_delay_s={self.echo_delay_s}."
            )


def augment_user(
    user: Float[Tensor, " N"],
    agent: Float[Tensor, " N"],
    sample_rate: int,
    augmentation: Augmentation,
    seed: int,
    noise: Float[Tensor, " M"] | None = None,
) -> Float[Tensor, " N"]:
    """Return the user's audio as a poorer microphone hears it; equal seeds give equal audio.

    Args:
        user: The user's channel.
        agent: What the agent says at the same time.
        sample_rate: Samples a second.
        augmentation: Ranges and probabilities of the changes.
        seed: Seed of the changes.
        noise: A recording from which noise is taken; ``None`` makes pink noise.
    """
    generator = torch.Generator().manual_seed(seed)
    # Everything is drawn even if it is not used, so one setting does not change other draws.
    gain = 10 ** (_uniform(generator, augmentation.gain_db) / 20)
    noise_level = 10 ** (_uniform(generator, augmentation.noise_db) / 20)
    echo_gain = _uniform(generator, augmentation.echo_gain)
    echo_samples = round(_uniform(generator, augmentation.echo_delay_s) * sample_rate)
    noise_seed = _seed(generator)
    louder, noisy, echoes = (_uniform(generator, (0.0, 1.0)) for _ in range(3))
    heard = user
    if louder < augmentation.gain_probability:
        heard = heard * gain
    if noisy < augmentation.noise_probability and len(user):
        background = noise_sections(len(user), sample_rate, augmentation.noise_s, noise_seed, noise)
        heard = heard + background * noise_level * heard.square().mean().sqrt()
    if echoes < augmentation.echo_probability:
        heard = heard + echo(agent, echo_gain, echo_samples)
    return heard


def echo(agent: Float[Tensor, " N"], gain: float, delay_samples: int) -> Float[Tensor, " N"]:
    """Return the agent's audio, multiplied by ``gain`` and late; it keeps its length."""
    late = torch.zeros_like(agent)
    late[delay_samples:] = agent[: max(len(agent) - delay_samples, 0)]
    return gain * late


def noise_sections(
    num_samples: int,
    sample_rate: int,
    section_s: Range,
    seed: int,
    noise: Float[Tensor, " M"] | None = None,
) -> Float[Tensor, " N"]:
    """Make alternating noise and silence of random durations; noise has root mean square 1.

    Args:
        num_samples: Number of samples (N).
        sample_rate: Samples a second.
        section_s: Range of the duration of a section.
        seed: Seed of the durations, of what comes first, and of the noise.
        noise: A recording from which noise is taken, at random places and repeated as needed;
            ``None`` makes pink noise.

    Raises:
        UserError: ``noise`` is empty or silent.
    """
    generator = torch.Generator().manual_seed(seed)
    if noise is None:
        noise = pink_noise(num_samples, _seed(generator))
    elif not len(noise) or not noise.any():
        raise UserError("`noise` must hold samples that are not all zero. Choose a recording.")
    unit = noise / noise.square().mean().sqrt()
    sections = torch.zeros(num_samples)
    sounds = _uniform(generator, (0.0, 1.0)) < 0.5
    start = 0
    while start < num_samples:
        length = max(1, round(_uniform(generator, section_s) * sample_rate))
        stop = min(start + length, num_samples)
        offset = int(_uniform(generator, (0.0, float(len(unit)))))
        if sounds:
            place = (offset + torch.arange(stop - start)) % len(unit)
            sections[start:stop] = unit[place]
        sounds = not sounds
        start = stop
    return sections


def pink_noise(num_samples: int, seed: int) -> Float[Tensor, " N"]:
    """Make noise whose power falls by half with every doubling of the frequency."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=generator))
    spectrum[0] = 0
    spectrum[1:] /= torch.arange(1, len(spectrum)).sqrt()
    pink = torch.fft.irfft(spectrum, num_samples)
    return pink / pink.square().mean().sqrt().clamp(min=1e-12)


def _uniform(generator: torch.Generator, limits: Range) -> float:
    low, high = limits
    return low + (high - low) * torch.rand((), generator=generator).item()


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(1 << 62, (), generator=generator))
