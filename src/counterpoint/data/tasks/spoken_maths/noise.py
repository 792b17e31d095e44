"""Noise beside a speaker of spoken maths, mixed with the sound before its log-mels.

A problem has one noise, at a place of it that its seed and number choose. Problems to learn from
and held-out problems have different noises: no recording is in both.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from counterpoint.data.making.order_wordings import Split
from counterpoint.data.making.sounds import RATE, load_noises
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.speech.spoken_words import SpokenWord

_MOST_DB = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """How noisy it is where a problem is said.

    Attributes:
        snr_db: Power of the voice over that of the noise while words are said, in dB; ``None`` for
            no noise.
        folder: Folder with ``noise.jsonl``, a line ``{"path"}`` for each recording; see
            `SoundsConfig`. Empty for pink noise, which is made.
    """

    snr_db: float | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        if self.snr_db is None and self.folder:
            raise UserError(f"Noises of {self.folder} are heard at a ratio: give `snr_db` too.")
        if self.snr_db is not None and not abs(self.snr_db) <= _MOST_DB:
            raise UserError(
                f"`snr_db` must be -{_MOST_DB} to {_MOST_DB}, or None for no noise: got "
                f"{self.snr_db}."
            )

    def facts(self, samples: Shaped[Tensor, "..."] | None) -> dict[str, Any]:
        """Return what tells noisy problems to learn from others, as JSON.

        Args:
            samples: Those of the bank, to which the noise is added.

        Returns:
            Nothing if there is no noise.
        """
        if self.snr_db is None:
            return {}
        sounds = [*_noises(self.folder, "train"), *([] if samples is None else [samples])]
        digests = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in sounds]
        return {"noise": [self.snr_db, json_digest(digests)]}

    def beside(
        self,
        voice: Float[Tensor, " N"],
        voiced: Bool[Tensor, " N"],
        seed: int,
        number: int,
        *,
        held_out: bool = False,
    ) -> Float[Tensor, " N"]:
        """Return the noise beside a voice at 16 kHz: zeros if there is none.

        Args:
            voice: What the speaker says.
            voiced: Samples that belong to words; only there is the power of both compared.
            seed: Seed of the problem.
            number: Number of the problem.
            held_out: Whether the noise is one of those that are held out.

        Raises:
            UserError: There is no such noise, or nothing is voiced.
        """
        if self.snr_db is None:
            return torch.zeros_like(voice)
        noises = _noises(self.folder, "held_out" if held_out else "train")
        rng = Random(f"noise {seed} {number}")
        noise = rng.choice(noises)
        noise = noise.roll(-rng.randrange(len(noise)))
        noise = noise.repeat(-(-len(voice) // len(noise)))[: len(voice)]
        powers = [one[voiced].double().square().mean() for one in (voice, noise)]
        if not all(one > 0 for one in powers):
            raise UserError(
                "A voice and its noise must both sound while words are said: one of them is "
                f"silent there, in problem {number} of seed {seed}."
            )
        ratio = float(powers[0] / powers[1])
        return noise * (ratio / 10 ** (self.snr_db / 10)) ** 0.5


def voiced_samples(words: Sequence[SpokenWord], num_samples: int) -> Bool[Tensor, " N"]:
    """Return which samples at 16 kHz belong to words."""
    voiced = torch.zeros(num_samples, dtype=torch.bool)
    for word in words:
        voiced[round(word.start_s * RATE) : round(word.end_s * RATE)] = True
    return voiced


@cache
def _noises(folder: str, split: Split) -> tuple[Float[Tensor, " _N"], ...]:
    """Return the noises of a split, which are read once.

    Raises:
        UserError: There is none.
    """
    noises = load_noises(Path(folder).expanduser() if folder else None, split)
    if not noises:
        raise UserError(
            f"A folder of noise must have recordings of the split {split!r} in noise.jsonl: "
            f"{folder} has none. Add some, or leave the folder out for noise that is made."
        )
    return noises
