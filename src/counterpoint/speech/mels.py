"""Log-mels: what a listening network hears, computed from whole recordings or as they come."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.speech.codec import check_channel, check_samples
from counterpoint.speech.ears import HeardChunk
from counterpoint.streams.seconds import border_s, exact, num_begun, num_complete

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
        steps: Steps of a feature between 0 and 1, if it is rounded to what 8 bits can store; 0 for
            features that are not rounded.

    Raises:
        UserError: A frame has no whole number of hops, or there is no band.
    """

    sample_rate = _SAMPLE_RATE

    def __init__(self, frame_rate_hz: float, num_bands: int = 40, steps: int = 0) -> None:
        hops = _SAMPLE_RATE / _HOP / frame_rate_hz
        if hops < 1 or abs(hops - round(hops)) > 1e-6 or num_bands < 1:
            raise UserError(
                "A frame must have a whole number of 10 ms hops and at least one band: got "
                f"{frame_rate_hz} frames a second and {num_bands} bands."
            )
        self.frame_rate_hz = frame_rate_hz
        self.frame_samples = round(hops) * _HOP
        self.num_bands = num_bands
        self.steps = steps
        self.width = round(hops) * num_bands
        self._bands = _mel_bands(num_bands)
        self._shape = torch.hann_window(_WINDOW)

    @property
    def settings(self) -> dict[str, float]:
        """Numbers on which the frames depend before they are rounded, by their names."""
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
        if self.steps:
            frames = (frames * self.steps).round().clamp(0, 255) / self.steps
        return frames, audio[:, audio.shape[1] - past.shape[1] :]


class ChunkedMels:
    """Frames of one recording, which comes piece by piece, in equal chunks; a `ChunkEar`.

    A frame belongs to the chunk in which it ends. A chunk is given out when a sample after it has
    come: only then is it known not to be the last, which ends with the recording and may be shorter
    (its last frame is completed with silence). How the recording is cut into pieces changes
    nothing.

    Args:
        mels: The frames.
        chunk_s: Seconds of a chunk.
        overlap_frames: Number of frames before a chunk that are heard again with it.

    Raises:
        UserError: A chunk is no time.
    """

    def __init__(self, mels: LogMels, chunk_s: float, overlap_frames: int = 0) -> None:
        if not chunk_s > 0:
            raise UserError(f"`chunk_s` must be positive: got {chunk_s}.")
        self.mels = mels
        self._chunk_s = exact(chunk_s)
        self._frame_s = 1 / exact(mels.frame_rate_hz)
        self._overlap = overlap_frames
        self._past = mels.initial_past(1)
        self._waiting = torch.zeros(0)  # samples of which there are no frames yet
        self._before = torch.zeros(0, mels.width)  # the frames that are heard again
        self._num_samples = 0
        self._num_frames = 0
        self._num_chunks = 0

    @property
    def sample_rate(self) -> int:
        """Samples a second; see `ChunkEar.sample_rate`."""
        return self.mels.sample_rate

    @property
    def heard_s(self) -> float:
        """Seconds that have been heard."""
        return self._num_samples / self.mels.sample_rate

    def push(self, samples: Float[Tensor, " N"]) -> list[HeardChunk]:
        """Hear any number of samples, and return the chunks that are now known.

        Raises:
            UserError: The samples are not valid (see `check_channel`). Then nothing was heard.
        """
        check_channel(samples)
        self._waiting = torch.cat((self._waiting, samples))
        self._num_samples += len(samples)
        known = []
        while self.heard_s > (end_s := border_s(self._num_chunks + 1, self._chunk_s)):
            known.append(self._cut(end_s, num_complete(end_s, self._frame_s)))
        return known

    def finish(self) -> HeardChunk:
        """Return the last chunk: the recording is over."""
        return self._cut(self.heard_s, num_begun(self.heard_s, self._frame_s))

    def _cut(self, end_s: float, stop: int) -> HeardChunk:
        """Return the next chunk, which ends with the frame before the one of number ``stop``."""
        length = (stop - self._num_frames) * self.mels.frame_samples
        samples, self._waiting = self._waiting[:length], self._waiting[length:]
        frames = self._before[:0]
        if length:
            samples = F.pad(samples, (0, length - len(samples)))
            found, self._past = self.mels.extend(samples[None], self._past)
            frames = found[0]
        frames = torch.cat((self._before, frames))
        self._before = frames[max(len(frames) - self._overlap, 0) :]
        chunk = HeardChunk(border_s(self._num_chunks, self._chunk_s), end_s, frames)
        self._num_frames = stop
        self._num_chunks += 1
        return chunk


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
