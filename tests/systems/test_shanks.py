"""What only SHANKS promises: its core is a plain language model that also hears."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.config_json import encode
from counterpoint.data.tasks.spoken_maths.words import Words
from counterpoint.errors import UserError
from counterpoint.runtime.save import write_checkpoint
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import build_system, shanks
from counterpoint.systems.shanks import HEARD, THOUGHT, Shanks, ShanksConfig
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.fine_tuning import begun_system
from tests.systems import tiny_models
from tests.systems.contract_models import batch_of

TOWER = tiny_models.tower(12, 2, 2, 30)


def test_the_interleaved_core_is_a_plain_language_model() -> None:
    """Ids that are written and projected features go through one tower, in the order of places."""
    model = Shanks(ShanksConfig(tower=TOWER, vocab_size=tiny_models.VOCAB, heard_width=3))
    tiny_models.randomised(model)
    plain = SingleStream(SingleStreamConfig(tower=TOWER, vocab_size=tiny_models.VOCAB + 4))
    weights = {name.removeprefix("thinker."): own for name, own in model.state_dict().items()}
    features = torch.randn(4, 3)
    table = torch.cat((weights["embedding.weight"], features @ weights.pop("project.weight").T))
    head = torch.cat((weights["head.weight"], torch.zeros(4, 12)))
    plain.load_state_dict({**weights, "embedding.weight": table, "head.weight": head})
    no = UNSET_ID
    ids = torch.tensor([[no, no, 5, 7, no, no, 6, 2]])
    heard = torch.zeros(1, 8, 3)
    heard[0, [0, 1, 4, 5]] = features
    at = torch.tensor([[13, 14, 5, 7, 15, 16, 6, 2]])
    with torch.no_grad():
        ours = model(batch_of(model, {THOUGHT: ids, HEARD: heard}))[THOUGHT]
        theirs = plain(batch_of(plain, {"part": at}))["part"][..., : tiny_models.VOCAB]
    torch.testing.assert_close(ours, theirs)


def test_a_word_that_is_heard_is_not_one_that_is_written() -> None:
    model = Shanks(ShanksConfig(tower=TOWER, vocab_size=13))
    tiny_models.randomised(model)
    word = torch.tensor([[4]])
    none = torch.full_like(word, UNSET_ID)
    with torch.no_grad():
        written = model(batch_of(model, {THOUGHT: word, HEARD: none}))[THOUGHT]
        heard = model(batch_of(model, {THOUGHT: none, HEARD: word}))[THOUGHT]
    assert not torch.allclose(written, heard)


def test_presets_fit_the_words_of_spoken_maths() -> None:
    assert shanks.tiny().vocab_size == shanks.tiny_parallel().vocab_size == len(Words())


def test_a_listening_tower_must_fit() -> None:
    with pytest.raises(UserError, match="as wide as the thinking tower, 12"):
        ShanksConfig(tower=TOWER, vocab_size=5, listener=tiny_models.tower(8, 1, 2, 5))


def test_a_model_of_words_goes_on_with_new_ears(tmp_path: Path) -> None:
    """What it hears with begins at random, and nothing else may differ."""
    words = Shanks(ShanksConfig(tower=TOWER, vocab_size=13))
    tiny_models.randomised(words)
    folder = tmp_path / "words"
    write_checkpoint(folder, "Shanks", encode(words.config), words.state_dict(), None)
    begin = FineTuneConfig(init_from=str(folder))
    config = replace(words.config, heard_width=3)
    found = begun_system(config, begin, seed=5).state_dict()
    fresh = build_system(config, 5).state_dict()
    assert torch.equal(found.pop("project.weight"), fresh["project.weight"])
    own = words.state_dict()
    del own["heard_mark"]
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    random = begun_system(config, FineTuneConfig(), seed=5).state_dict()
    assert all(torch.equal(random[name], fresh[name]) for name in fresh)
    with pytest.raises(UserError, match="differs in config.conv_taps"):
        begun_system(replace(config, conv_taps=2), begin, seed=5)
    with pytest.raises(UserError, match="must name the weights below adapters"):
        FineTuneConfig(low_rank=LowRankConfig())
