"""Runs of a SHANKS that begin with a language model, as published or trained here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.low_rank import FrozenType, LowRankConfig
from counterpoint.config_json import encode
from counterpoint.errors import UserError
from counterpoint.formats.llama import load_llama, save_llama
from counterpoint.runtime.save import write_checkpoint
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.systems.shanks import HEARD, THOUGHT, Shanks, ShanksConfig
from counterpoint.systems.single_stream import SingleStream
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.fine_tuning import begin_from, begun_system, fresh_names
from tests.formats.test_llama import KINDS, llama, saved
from tests.formats.test_smollm2 import file_of_the_package
from tests.systems.contract_models import batch_of
from tests.systems.scoring import extend

NEW = 3


def on(path: Path, **changes: Any) -> ShanksConfig:
    """The shape of a SHANKS on the backbone of a folder or a file."""
    single = load_llama(path).config
    return replace(
        ShanksConfig(
            tower=replace(single.tower, window=70),  # which may be another
            vocab_size=single.vocab_size + NEW,
            conv_taps=0,
            tied_head=single.tied_head,
            new_ids=NEW,
        ),
        **changes,
    )


def written(model: Shanks, ids: Tensor) -> dict[str, Tensor]:
    """Ticks in which something is written and nothing heard."""
    if model.config.heard_width:
        heard = torch.zeros(*ids.shape, model.config.heard_width)
    else:
        heard = torch.full_like(ids, UNSET_ID)
    return {THOUGHT: ids, HEARD: heard}


@torch.no_grad()
def check_scores(model: System, ids: Tensor, expected: Tensor, chunks: list[int]) -> None:
    """The old ids have the expected scores, offline and streamed."""
    assert isinstance(model, Shanks)
    ticks = written(model, ids)
    state = model.initial_state(len(ids))
    streamed = []
    begin = 0
    for length in chunks:
        chunk = {name: x[:, begin : begin + length] for name, x in ticks.items()}
        scores, state = extend(model, chunk, state)
        streamed.append(scores[THOUGHT])
        begin += length
    for found in (model(batch_of(model, ticks))[THOUGHT], torch.cat(streamed, 1)):
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=0, atol=1e-4)
        assert found.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heard_width", [0, 5])
@torch.no_grad()
def test_words_alone_are_scored_as_by_the_backbone(
    kind: str, heard_width: int, tmp_path: Path
) -> None:
    theirs = saved(tmp_path, llama(**KINDS[kind]))
    config = on(tmp_path, heard_width=heard_width)
    model = begun_system(config, FineTuneConfig(init_from=str(tmp_path)), seed=4)
    ids = torch.randint(0, 97, (2, 60))
    check_scores(model, ids, theirs(ids).logits, [60])
    check_scores(model, ids, theirs(ids).logits, [7, 1, 1, 51])


def test_new_weights_are_named_and_all_others_equal(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    told: list[str] = []
    config = on(tmp_path, heard_width=5)
    begin = FineTuneConfig(init_from=str(tmp_path))
    model = begun_system(config, begin, seed=4, note=told.append)
    fresh = {"new_embedding.weight": (3, 32), "project.weight": (32, 5), "new_head.weight": (3, 32)}
    named = "new_embedding.weight (3, 32), project.weight (32, 5), new_head.weight (3, 32)"
    assert told == [f"the run begins with {tmp_path}; only these weights are new: {named}"]
    state = {name.removeprefix("thinker."): own for name, own in model.state_dict().items()}
    for name, weight in load_llama(tmp_path).state_dict().items():
        assert torch.equal(state.pop(name), weight)
    assert {name: tuple(own.shape) for name, own in state.items()} == fresh
    again = begun_system(config, begin, seed=4).state_dict()
    assert all(torch.equal(again[name], own) for name, own in model.state_dict().items())


def test_new_weights_are_as_large_as_those_of_the_backbone(tmp_path: Path) -> None:
    """A new id is near the mean of the old ones, and what is heard is read as what is written."""
    theirs = llama()
    saved(tmp_path, theirs)
    with torch.no_grad():
        theirs.model.embed_tokens.weight.mul_(0.01).add_(torch.randn(32))
    theirs.save_pretrained(tmp_path)
    table = theirs.model.embed_tokens.weight
    model = begun_system(on(tmp_path), FineTuneConfig(init_from=str(tmp_path)), seed=4)
    state = model.state_dict()
    assert (state["new_embedding.weight"] - table.mean(0)).abs().max() < 5 * table.std(0).max()
    assert not state["heard_mark"].any()
    config = on(tmp_path, heard_width=5)
    ears = begun_system(config, FineTuneConfig(init_from=str(tmp_path)), seed=4)
    assert ears.state_dict()["project.weight"].abs().max() < table.std(0).max()


def test_a_text_model_of_ours_is_a_backbone_too(tmp_path: Path) -> None:
    saved(tmp_path / "llama", llama())
    single = load_llama(tmp_path / "llama")
    folder = tmp_path / "ours"
    write_checkpoint(folder, "SingleStream", encode(single.config), single.state_dict(), None)
    begin = FineTuneConfig(init_from=str(folder))
    model = begun_system(on(tmp_path / "llama"), begin, seed=4)
    ids = torch.randint(0, 97, (1, 9))
    single_ids = {"part": ids}
    with torch.no_grad():
        expected = single(batch_of(single, single_ids))["part"]
    check_scores(model, ids, expected, [4, 5])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": 90}, r"there embedding.weight is \(97, 32\), and here it is \(87, 32\)"),
        ({"conv_taps": 2}, "differs in config.conv_taps"),
        ({"tied_head": True}, "differs in config.tied_head"),
        ({"num_layers": 2}, "differs in config.tower.num_layers"),
        ({"num_heads": 8}, "differs in config.tower.num_heads"),  # of the same shapes
    ],
)
def test_another_shape_is_one_line(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    saved(tmp_path, llama())
    config = on(tmp_path)
    inner = {name: changes[name] for name in changes if hasattr(config.tower, name)}
    outer = {name: changes[name] for name in changes.keys() - inner.keys()}
    config = replace(config, tower=replace(config.tower, **inner), **outer)
    with pytest.raises(UserError, match=told) as caught:
        begun_system(config, FineTuneConfig(init_from=str(tmp_path)), seed=4)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Change `system`, or name another.")


def test_a_backbone_is_not_a_model_of_any_system(tmp_path: Path) -> None:
    other = Shanks(on(_tiny(tmp_path)))
    write_checkpoint(tmp_path / "x", "Shanks", encode(other.config), other.state_dict(), None)
    single = SingleStream(load_llama(tmp_path).config)
    with pytest.raises(UserError, match="weights of SingleStream: .* has those of Shanks"):
        begin_from(single, FineTuneConfig(init_from=str(tmp_path / "x")), seed=0)
    folder = tmp_path / "moshi"
    write_checkpoint(folder, "Moshi", {}, {}, None)
    with pytest.raises(UserError, match="weights of Shanks or SingleStream: .* those of Moshi"):
        begin_from(other, FineTuneConfig(init_from=str(folder)), seed=0)


def _tiny(path: Path) -> Path:
    saved(path, llama())
    return path


@pytest.mark.parametrize("frozen", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_new_is_trained_beside_adapters(
    frozen: FrozenType, tied: bool, tmp_path: Path
) -> None:
    saved(tmp_path, llama(tie_word_embeddings=tied))
    config = on(tmp_path, heard_width=5)
    low_rank = LowRankConfig(rank=2, frozen=frozen)
    begin = FineTuneConfig(init_from=str(tmp_path), low_rank=low_rank)
    model = begun_system(config, begin, seed=4)
    plain = begun_system(config, FineTuneConfig(init_from=str(tmp_path)), seed=4)
    trained = {name for name, own in model.named_parameters() if own.requires_grad}
    new = {"new_embedding.weight", "project.weight"} | (set() if tied else {"new_head.weight"})
    assert {name for name in trained if "lora" not in name} == new
    assert set(fresh_names(config, begin)) == new
    assert not any("lora" in name for name in trained if name.startswith(("project", "new")))
    assert sum("lora_A" in name for name in trained) == 4 * 3 + (not tied)
    for name in new:
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name])
        assert model.state_dict()[name].dtype == torch.float32
    ids = torch.randint(0, 97 + NEW, (2, 9))
    assert isinstance(model, Shanks)
    batch = batch_of(model, written(model, ids) | {HEARD: torch.randn(2, 9, 5)})
    model.loss(batch).total.backward()
    moved = {name for name, own in model.named_parameters() if own.grad is not None}
    assert moved == trained
    if frozen == "float32":
        with torch.no_grad():
            torch.testing.assert_close(model(batch)[THOUGHT], plain(batch)[THOUGHT])


def test_new_ears_are_trained_beside_adapters(tmp_path: Path) -> None:
    """Not only a backbone has fresh weights: a model of words goes on with sound, too."""
    words = build_system(on(_tiny(tmp_path)), 1)
    folder = tmp_path / "words"
    write_checkpoint(folder, "Shanks", encode(words.config), words.state_dict(), None)
    begin = FineTuneConfig(init_from=str(folder), low_rank=LowRankConfig(rank=2))
    hearing = replace(words.config, heard_width=3)
    model = begun_system(hearing, begin, seed=5)
    assert fresh_names(hearing, begin) == ("project.weight",)
    assert fresh_names(words.config, begin) == ()
    trained = {name for name, own in model.named_parameters() if own.requires_grad}
    assert {name for name in trained if "lora" not in name} == {"project.weight"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@torch.no_grad()
def test_smollm2_scores_words_as_in_its_own_system(tmp_path: Path) -> None:
    from counterpoint.systems.shanks import smollm, smollm_words

    path = file_of_the_package()
    single = load_llama(path)
    save_llama(single, tmp_path / "folder")
    ids = torch.randint(0, 49_152, (1, 40))
    expected = single(batch_of(single, {"part": ids}))["part"]
    for config, base in ((smollm_words(), path), (smollm(), tmp_path / "folder")):
        model = begun_system(config, FineTuneConfig(init_from=str(base)), seed=0)
        check_scores(model, ids, expected, [30, *[1] * 10])
