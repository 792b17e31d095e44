"""Changes of a config against what the published programs compute."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.formats.moshi.parity import moshi_finetune_losses, personaplex_window
from counterpoint.systems import moshi
from counterpoint.systems.moshi import Moshi, two_speakers
from counterpoint.systems.personaplex import personaplex_7b
from tests.systems.tiny_models import randomised
from tests.systems.tiny_moshi import random_codes

PAD, EPAD = 3, 0


def their_mean(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The loss of moshi-finetune: a weighted mean over the targets that are there."""
    weights = weights * (targets >= 0)
    nats = F.cross_entropy(logits.flatten(0, -2), targets.clamp(min=0).flatten(), reduction="none")
    return (nats * weights.flatten()).sum() / weights.sum()


@torch.no_grad()
@pytest.mark.parametrize("num_predicted", [4, 8])
def test_losses_are_those_of_moshi_finetune(num_predicted: int) -> None:
    """Both paddings weigh 0.5, and of all predicted codebooks the first 100, the others 1."""
    config = replace(moshi.tiny(), num_predicted=num_predicted)
    model = randomised(Moshi(moshi_finetune_losses(config)))
    assert isinstance(model, Moshi)
    codes = random_codes(model, 2, 40)
    codes["text"] = torch.randint(0, 6, codes["text"].shape)
    codes["agent_acoustic"][:, 5:9] = -1
    batch = model.lay_out(codes)
    logits, loss = model(batch), model.loss(batch)

    text = batch.targets["text"]
    is_light = (text == PAD) | (text == EPAD)
    assert 0 < is_light.float().mean() < 1
    expected = their_mean(logits["text"], text, torch.where(is_light, 0.5, 1.0))
    torch.testing.assert_close(loss.terms["text"], expected)

    names = [stream.name for stream in model.predicted]
    assert len(names) == num_predicted // 2
    audio = torch.cat([batch.targets[name] for name in names], 2)
    audio = audio.masked_fill(audio >= config.audio_vocab_size, -1)  # before a stream begins
    weights = torch.ones(num_predicted)
    weights[0] = 100.0
    expected = their_mean(torch.cat([logits[name] for name in names], 2), audio, weights)
    torch.testing.assert_close(loss.terms["audio"], expected)


def test_only_weights_of_the_loss_are_changed() -> None:
    config = personaplex_7b()
    changed = moshi_finetune_losses(config, epad_id=7)
    assert changed.text_light_ids == (3, 7)
    assert changed.text_light_weight == 0.5
    assert [stream.loss_weight for stream in changed.audio] == [100.0, 1.0, 1.0, 1.0]
    back = replace(
        changed,
        audio=config.audio,
        text_light_ids=config.text_light_ids,
        text_light_weight=config.text_light_weight,
    )
    assert back == config


def test_a_first_stream_of_several_codebooks_has_no_first_codebook() -> None:
    config = moshi.tiny()
    joined = replace(config, audio=two_speakers(3)[1::2], num_predicted=3)
    with pytest.raises(UserError, match="'agent_acoustic' has 3. Split it"):
        moshi_finetune_losses(joined)


def test_window_of_personaplex_is_a_frame_shorter() -> None:
    config = personaplex_7b()
    shorter = personaplex_window(config)
    assert (config.temporal.window, shorter.temporal.window) == (3000, 2999)
    assert replace(shorter, temporal=config.temporal) == config
    single = replace(config, temporal=replace(config.temporal, window=1))
    with pytest.raises(UserError, match="at least 2 frames to be shortened: got 1"):
        personaplex_window(single)
