"""Defect 7 of PersonaPlex's published code, second half; the others: `test_personaplex_defects.py`.

Its server has a second Mimi that encodes and decodes every frame again, and throws it away.
"""

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.words import ByteWords
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Conversation, Talker, converse
from counterpoint.speech.codec import Decoder, Encoder, FrameCoder
from tests.runtime.talking import LevelCodec, echo, echo_config

FRAME, NUM_FRAMES = 8, 12
GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))


class Counted:
    """A coder that keeps how many frames each of its calls coded."""

    def __init__(self, coder: FrameCoder, frame_length: int) -> None:
        self.coder, self.frame_length, self.calls = coder, frame_length, list[int]()

    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        self.calls.append(len(rows) * frames.shape[1] // self.frame_length)
        return self.coder.code(rows, frames)

    def reset(self, row: int) -> None:
        self.coder.reset(row)


class CountedCodec(LevelCodec):
    """Keeps every coder that it was asked for."""

    def __init__(self) -> None:
        super().__init__(FRAME)
        self.encoders, self.decoders = list[Counted](), list[Counted]()

    def encoder(self, num_rows: int = 1) -> Encoder:
        encoder = super().encoder(num_rows)
        encoder._coder = Counted(encoder._coder, FRAME)
        self.encoders.append(encoder._coder)
        return encoder

    def decoder(self, num_rows: int = 1) -> Decoder:
        decoder = super().decoder(num_rows)
        decoder._coder = Counted(decoder._coder, 1)
        self.decoders.append(decoder._coder)
        return decoder


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_7_every_frame_of_a_talk_is_encoded_and_decoded_once(delay: int) -> None:
    codec = CountedCodec()
    speaker = Talker(system=echo(echo_config(delay)), codec=codec, tokenizer=ByteWords())
    user = torch.rand(1, NUM_FRAMES * FRAME)
    blocks = user.split([1, FRAME - 1, 3 * FRAME, 5, FRAME, 7 * FRAME - 5], 1)
    both = torch.cat(list(converse(Conversation(speaker, GREEDY), blocks)), 1)
    assert torch.equal(both[1], user[0])  # the user's own samples, not decoded again
    # Of a model of delay m, frame 0 is complete m - 1 frames after the first one is heard.
    num_said = NUM_FRAMES + 1 - delay
    assert [encoder.calls for encoder in codec.encoders] == [[1] * NUM_FRAMES]
    assert [decoder.calls for decoder in codec.decoders] == [[1] * num_said]
