"""A codec whose sound is exact to the sample, and a hand-made model that repeats what it hears."""

import torch
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.speech.monologue import PAD_ID
from counterpoint.data.speech.words import ByteWords
from counterpoint.runtime.talk import Talker
from counterpoint.speech.codec import Decoder, Encoder, decode_whole, encode_whole
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig

LEVELS = 5


class LevelCodec:
    """A frame is its mean in quarters of full scale, and sounds as that level."""

    name = "levels"
    codebook_sizes: tuple[int, ...] = (LEVELS,)
    sample_rate = 200

    def __init__(self, frame_samples: int = 8) -> None:
        self.frame_samples = frame_samples
        self.frame_rate_hz = self.sample_rate / frame_samples

    def encode(self, audio: Tensor) -> Tensor:
        return encode_whole(self, audio)

    def decode(self, codes: Tensor) -> Tensor:
        return decode_whole(self, codes)

    def encoder(self, num_rows: int = 1) -> Encoder:
        return Encoder(_ToLevels(self.frame_samples), num_rows, self.frame_samples, 1)

    def decoder(self, num_rows: int = 1) -> Decoder:
        return Decoder(_FromLevels(self.frame_samples), num_rows, self.codebook_sizes)


class _ToLevels:
    def __init__(self, frame_samples: int) -> None:
        self._frame_samples = frame_samples

    def reset(self, row: int) -> None: ...

    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        means = frames.unflatten(1, (-1, self._frame_samples)).mean(2)
        return (means * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)[..., None]


class _FromLevels(_ToLevels):
    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        return (frames[..., 0] / (LEVELS - 1)).repeat_interleave(self._frame_samples, 1)


def echo_config(agent_delay: int = 1, user_delay: int = 0, tick_hz: float = 25.0) -> MoshiConfig:
    width = 16
    return MoshiConfig(
        temporal=TowerConfig(width=width, num_layers=1, num_heads=2, mlp_hidden=8, window=64),
        depth=DepthConfig(width=width, num_layers=1, num_heads=2, mlp_hidden=8),
        audio=(
            AudioStream(name="agent", role=Role.SPOKEN, depth=1, delay_ticks=agent_delay),
            AudioStream(name="user", role=Role.HEARD, depth=1, delay_ticks=user_delay),
        ),
        num_predicted=1,
        text_vocab_size=256,
        audio_vocab_size=LEVELS,
        tick_hz=tick_hz,
    )


@torch.no_grad()
def echo(config: MoshiConfig, letters: str = "") -> Moshi:
    """Says the level that it has just heard; and writes the letter of that level, if it has one."""
    model = Moshi(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()  # layers pass on what they get
    for level in range(LEVELS):
        model.audio_embedding.table.weight[LEVELS + 1 + level, level] = 1.0
        model.depth.head.weight[level, level] = 1.0
        letter = ord(letters[level]) if level < len(letters) else PAD_ID
        model.head.weight[letter, level] = 1.0
    model.depth.project.weight.copy_(torch.eye(config.temporal.width))
    return model.eval()


def echo_speaker(agent_delay: int = 1, user_delay: int = 0, letters: str = "") -> Talker:
    model = echo(echo_config(agent_delay, user_delay), letters)
    return Talker(system=model, codec=LevelCodec(), tokenizer=ByteWords())
