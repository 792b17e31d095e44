"""Log-mels: what a listening network hears, computed from whole recordings or as they come."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.speech.codec import check_samples

_SAMPLE_RATE = 16_000
_HOP = 160
_WINDOW = 400
_FFT = 512
_LOWEST_HZ = 60.0
_HIGHEST_HZ = 7600.0
_FLOOR = 1e-7  # mean square of a band that counts as quiet, 70 dB below full scale


class LogMels:
    """Log-mels of 10 ms hops at 16 kHz, some hops a frame.

    A hop is seen through a window of 25 ms that ends with it, so a frame depends on nothing after
    its end. Silence gives zeros, and so does what comes before a recording.

    Args:
        frame_rate_hz: Frames a second; a frame must have a whole number of hops.
        num_bands: Number of mel bands.

    Raises:
        UserError: A frame has no whole number of hops, or there is no band.
    """

    sample_rate = _SAMPLE_RATE

    def __init__(self, frame_rate_hz: float, num_bands: int = 40) -> None:
        hops = _SAMPLE_RATE / _HOP / frame_rate_hz
        if hops < 1 or abs(hops - round(hops)) > 1e-6 or num_bands < 1:
            raise UserError(
                "A frame must have a whole number of 10 ms hops and at least one band: got "
                f"{frame_rate_hz} frames a second and {num_bands} bands."
            )
        self.frame_rate_hz = frame_rate_hz
        self.frame_samples = round(hops) * _HOP
        self.num_bands = num_bands
        self.width = round(hops) * num_bands
        self._bands = _mel_bands(num_bands)
        self._shape = torch.hann_window(_WINDOW)

    @property
    def settings(self) -> dict[str, float]:
        """Numbers on which the frames depend, by their names."""
        return {
            "sample_rate": _SAMPLE_RATE,
            "hop": _HOP,
            "window": _WINDOW,
            "fft": _FFT,
            "lowest_hz": _LOWEST_HZ,
            "highest_hz": _HIGHEST_HZ,
            "floor": _FLOOR,
            "frame_rate_hz": self.frame_rate_hz,
            "num_bands": self.num_bands,
        }

    def encode(self, audio: Float[Tensor, "B N"]) -> Float[Tensor, "B T F"]:
        """Return the frames of whole recordings; the last frame is completed with silence.

        Raises:
            UserError: The samples are not valid (see `check_samples`).
        """
        check_samples(audio)
        audio = F.pad(audio, (0, -audio.shape[1] % self.frame_samples))
        return self.extend(audio, self.initial_past(len(audio)))[0]

    def initial_past(self, num_rows: int) -> Float[Tensor, "B P"]:
        """Return what comes before recordings: silence."""
        return torch.zeros(num_rows, _WINDOW - _HOP)

    def extend(
        self, audio: Float[Tensor, "B N"], past: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B P"]]:
        """Return the next frames of recordings, and the past for the call after this one.

        Args:
            audio: The next samples, a whole number of frames.
            past: From `initial_past` or from the call before.
        """
        audio = torch.cat((past, audio), 1)
        windows = audio.unfold(1, _WINDOW, _HOP) * self._shape
        spectrum = torch.fft.rfft(windows, _FFT).abs().square()
        bands = (1 + spectrum @ self._bands / _FLOOR).log10() / 2
        frames = bands.unflatten(1, (-1, self.frame_samples // _HOP)).flatten(2)
        return frames, audio[:, audio.shape[1] - past.shape[1] :]


def _mel_bands(num_bands: int) -> Float[Tensor, "bins bands"]:
    """Return triangles that overlap by half, so that band powers are mean squares of samples."""

    def mel(hz: Tensor) -> Tensor:
        return 2595 * (1 + hz / 700).log10()

    limits = mel(torch.tensor([_LOWEST_HZ, _HIGHEST_HZ]))
    edges = torch.linspace(float(limits[0]), float(limits[1]), num_bands + 2)
    place = mel(torch.arange(_FFT // 2 + 1) * (_SAMPLE_RATE / _FFT))[:, None]
    rising = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    power = torch.hann_window(_WINDOW).square().sum() * _FFT / 2
    return torch.minimum(rising, falling).clamp(min=0) / power
