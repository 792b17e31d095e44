"""What is no sound is refused before a codec hears it.

Functions are called without the checks of types and shapes that only the tests have.
"""

import inspect

import numpy as np
import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Conversation, talk
from counterpoint.speech.codec import LOUDEST, Encoder, check_channel, check_samples
from tests.runtime.talking import LevelCodec, echo_speaker

GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))

NO_SOUND = {
    "a row of channels": (torch.zeros(1, 11), r"one dimension: got \(1, 11\)"),
    "a number": (torch.tensor(0.0), r"one dimension: got \(\)"),
    "a list": ([0.0] * 11, "one dimension: got list"),
    "an array": (np.zeros(11, "f4"), "one dimension: got ndarray"),
    "nothing": (None, "one dimension: got NoneType"),
    "int16": (torch.ones(11, dtype=torch.int16), "floats with full scale at 1: got torch.int16"),
    "int64": (torch.ones(11, dtype=torch.int64), "got torch.int64"),
    "bool": (torch.ones(11, dtype=torch.bool), "got torch.bool"),
    "uint8": (torch.ones(11, dtype=torch.uint8), "got torch.uint8"),
    "complex": (torch.ones(11, dtype=torch.complex64), "got torch.complex64"),
    "a huge sample": (torch.tensor([0.0] * 10 + [1e25]), "none be beyond 16: got 1e"),
    "samples of 16 bits": (torch.tensor([0.0, -14_492.0]), "none be beyond 16: got 14492"),
    "nan": (torch.tensor([0.0] * 10 + [torch.nan]), "1 that are NaN or infinite"),
    "infinite": (torch.tensor([0.0, -torch.inf, torch.inf]), "2 that are NaN or infinite"),
}


@pytest.mark.parametrize("name", NO_SOUND)
def test_what_is_no_sound_is_refused_and_not_heard(name: str) -> None:
    """The conversation goes on as if it had never come, in the middle of a frame too."""
    wrong, message = NO_SOUND[name]
    audio = torch.rand(45)
    conversation, encoder = Conversation(echo_speaker(), GREEDY), LevelCodec().encoder()
    sound, codes = [conversation.hear(audio[:11])], [encoder.push({0: audio[:11]})[0]]
    with pytest.raises(UserError, match=message):
        inspect.unwrap(Conversation.hear)(conversation, wrong)
    with pytest.raises(UserError, match=message):
        inspect.unwrap(Encoder.push)(encoder, {0: wrong})
    sound.append(conversation.hear(audio[11:]))
    codes.append(encoder.push({0: audio[11:]})[0])
    assert torch.equal(torch.cat(sound), talk(echo_speaker(), audio, GREEDY)[0][0])
    assert torch.equal(torch.cat(codes), LevelCodec().encoder().push({0: audio})[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_up_to_the_loudest_are_sound(dtype: torch.dtype) -> None:
    check_channel(torch.tensor([-LOUDEST, 0.5, LOUDEST], dtype=dtype))
    check_channel(torch.zeros(0, dtype=dtype))
    check_samples(torch.zeros(2, 3, 4, dtype=dtype))
