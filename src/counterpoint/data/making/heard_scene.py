"""What a speaking model hears: noise, an interruption, a backchannel, and an echo of its own voice.

Source: LSLM (arXiv:2408.02622), section 5.1, for noise and interruptions. The levels are ours: the
paper gives none.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.sounds import RATE, Sounds
from counterpoint.errors import UserError
from counterpoint.speech.augment import Range

_LEAST_ROOM_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class HeardConfig:
    """What may be heard while the model speaks. Values are drawn uniformly; levels are in dB.

    Attributes:
        noise: Probability of noise.
        interruption: Probability of an interruption.
        backchannel: Probability of a backchannel, which never follows an interruption.
        echo: Probability of an echo of the own voice.
        voice_db: Range of the root mean square of interruptions and backchannels, in dB of full
            scale.
        noise_db: Range of that of noise.
        echo_gain: Range of the factor of the echo.
        echo_delay_s: Range of its delay.
        stop_after_s: Seconds from the onset of an interruption to the stop.
    """

    noise: float = 0.5
    interruption: float = 0.5
    backchannel: float = 0.3
    echo: float = 0.3
    voice_db: Range = (-32.0, -20.0)
    noise_db: Range = (-56.0, -32.0)
    echo_gain: Range = (0.05, 0.3)
    echo_delay_s: Range = (0.1, 0.4)
    stop_after_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise", "interruption", "backchannel", "echo"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` must be 0 to 1: got {getattr(self, name)}.")


class Placed(NamedTuple):
    """A sound that is heard from a time on; its samples have their level already."""

    start_s: float
    audio: Float[Tensor, " _N"]


class HeardScene(NamedTuple):
    """What is heard during an utterance.

    Attributes:
        noise: Noise without an end; ``None`` for none.
        interruption: What stops the model.
        backchannel: What does not.
        echo_gain: Factor of the own voice; 0 for no echo.
        echo_delay_s: Delay of the echo.
    """

    noise: Float[Tensor, " _N"] | None
    interruption: Placed | None
    backchannel: Placed | None
    echo_gain: float
    echo_delay_s: float

    def heard(self, num_samples: int) -> Float[Tensor, " N"]:
        """Return what others sound like in so many samples at 16 kHz, without the echo."""
        heard = torch.zeros(num_samples)
        if self.noise is not None:
            heard += self.noise.repeat(-(-num_samples // len(self.noise)))[:num_samples]
        for placed in (self.interruption, self.backchannel):
            if placed is not None:
                first = round(placed.start_s * RATE)
                piece = placed.audio[: max(num_samples - first, 0)]
                heard[first : first + len(piece)] += piece
        return heard


def draw_scene(
    heard: HeardConfig, sounds: Sounds, duration_s: float, rng: random.Random
) -> HeardScene:
    """Draw what is heard during an utterance; an interruption leaves room for the stop.

    Args:
        heard: Probabilities and levels.
        sounds: The sounds.
        duration_s: Seconds of the utterance.
        rng: Source of randomness.
    """
    # Everything is drawn even if it is not used, so one probability changes no other draw.
    noisy, interrupted, encouraged, echoes = (rng.random() for _ in range(4))
    noise = rng.choice(sounds.noises).roll(-rng.randrange(RATE))
    noise = noise * _factor(rng, heard.noise_db)
    latest_s = max(duration_s - heard.stop_after_s - _LEAST_ROOM_S, _LEAST_ROOM_S)
    voices = [
        Placed(
            rng.uniform(_LEAST_ROOM_S, latest_s),
            rng.choice(kind) * _factor(rng, heard.voice_db),
        )
        for kind in (sounds.interruptions, sounds.backchannels)
    ]
    gain = rng.uniform(*heard.echo_gain)
    delay_s = rng.uniform(*heard.echo_delay_s)
    interruption = voices[0] if interrupted < heard.interruption else None
    backchannel = voices[1] if encouraged < heard.backchannel else None
    if interruption is not None and backchannel is not None:
        ends_s = backchannel.start_s + len(backchannel.audio) / RATE
        backchannel = backchannel if ends_s < interruption.start_s else None
    return HeardScene(
        noise=noise if noisy < heard.noise else None,
        interruption=interruption,
        backchannel=backchannel,
        echo_gain=gain if echoes < heard.echo else 0.0,
        echo_delay_s=delay_s,
    )


def _factor(rng: random.Random, range_db: Range) -> float:
    return 10 ** (rng.uniform(*range_db) / 20)
