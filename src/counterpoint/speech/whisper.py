"""The encoder of Whisper, and a listener that hears chunk by chunk as SHANKS does.

For every chunk the whole speech so far goes through the encoder, and only the frames of that chunk
are kept: later features know the earlier speech, and earlier features are not changed.

Source: Whisper (arXiv:2212.04356), section 2.2; SHANKS (arXiv:2510.06917), section 2.1. Weights are
read by `counterpoint.formats.whisper`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.errors import UserError

SAMPLE_RATE = 16_000
WINDOW_S = 30
"""Seconds of speech that the encoder sees at once."""

_HOP = 160
_FFT = 400
_FRAME = 2 * _HOP  # samples of an encoder frame


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperConfig:
    """Shape of an encoder; the defaults are those of Whisper tiny.

    Attributes:
        num_bands: Number of mel bands.
        width: Number of features of a frame.
        num_layers: Number of layers.
        num_heads: Number of heads; must divide ``width``.
        num_frames: Frames of a window of 30 seconds.
    """

    num_bands: int = 80
    width: int = 384
    num_layers: int = 4
    num_heads: int = 6
    num_frames: int = 1500

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"`num_heads` must divide the width {self.width}: got {self.num_heads}."
            )


class WhisperLayer(nn.Module):
    """Pre-norm layer with attention to the whole window."""

    def __init__(self, config: WhisperConfig) -> None:
        """Make random weights."""
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the layer."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class WhisperEncoder(nn.Module):
    """Log-mels of 30 seconds to 1,500 frames."""

    def __init__(self, config: WhisperConfig | None = None) -> None:
        """Make random weights."""
        super().__init__()
        self.config = config = config or WhisperConfig()
        self.conv1 = nn.Conv1d(config.num_bands, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.places = nn.Parameter(torch.zeros(config.num_frames, config.width))
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, mels: Float[Tensor, "B bands hops"]) -> Float[Tensor, "B T D"]:
        """Return the frames of a window of log-mels (`log_mels`)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)
        x = x + self.places[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def log_mels(audio: Float[Tensor, "B N"], num_bands: int = 80) -> Float[Tensor, "B bands hops"]:
    """Return Whisper's log-mels of audio at 16 kHz, one for every 10 ms."""
    window = torch.hann_window(_FFT, device=audio.device)
    spectrum = torch.stft(audio, _FFT, _HOP, window=window, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    mels = (mel_filters(num_bands).to(power) @ power).clamp(min=1e-10).log10()
    mels = torch.maximum(mels, mels.amax((1, 2), keepdim=True) - 8)
    return (mels + 4) / 4


def mel_filters(num_bands: int) -> Float[Tensor, "bands bins"]:
    """Return triangles of equal area on Slaney's mel scale, up to 8 kHz."""
    linear = 200 / 3  # Hz a mel below 1 kHz; above it, mels are logarithmic
    step = math.log(6.4) / 27
    most = 15 + math.log(SAMPLE_RATE / 2 / 1000) / step
    mels = torch.linspace(0, most, num_bands + 2, dtype=torch.float64)
    hz = torch.where(mels < 15, mels * linear, 1000 * ((mels - 15) * step).exp())
    bins = torch.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1, dtype=torch.float64)
    low = hz[:-2, None]
    middle = hz[1:-1, None]
    high = hz[2:, None]
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return (triangles.clamp(min=0) * 2 / (high - low)).float()


class WhisperListener:
    """Hears speech chunk by chunk; its state is the speech so far, at most the last 30 seconds.

    Args:
        encoder: The encoder, in evaluation mode.
        pool: Number of encoder frames, of 20 ms, whose mean is one frame.
    """

    def __init__(self, encoder: WhisperEncoder, pool: int = 4) -> None:
        self.encoder = encoder
        self.frame_samples = pool * _FRAME
        self.width = encoder.config.width
        self._pool = pool

    def initial_state(self) -> Float[Tensor, " N"]:
        """Return the state before any speech."""
        return torch.zeros(0)

    def hear(
        self, chunk: Float[Tensor, " n"], state: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, " M"]]:
        """Return the frames of the next chunk, and the new state.

        The last frame is completed with silence. When more than 30 seconds have been heard, the
        oldest speech is forgotten.

        Args:
            chunk: Samples at 16 kHz, at most 30 seconds.
            state: From `initial_state` or from the call before.

        Raises:
            UserError: The chunk is empty or too long.
        """
        most = WINDOW_S * SAMPLE_RATE
        if not 0 < len(chunk) <= most:
            raise UserError(
                f"A chunk must have 1 to {most} samples, 30 seconds: got {len(chunk)}. Cut it."
            )
        missing = -len(chunk) % self.frame_samples
        chunk = F.pad(chunk, (0, missing))
        kept = (most - len(chunk)) // self.frame_samples * self.frame_samples
        state = torch.cat((state[max(len(state) - kept, 0) :], chunk))
        window = F.pad(state, (0, most - len(state)))
        with torch.no_grad():
            frames = self.encoder(log_mels(window[None], self.encoder.config.num_bands))[0]
        first = (len(state) - len(chunk)) // _FRAME
        own = frames[first : len(state) // _FRAME]
        return own.unflatten(0, (-1, self._pool)).mean(1), state
