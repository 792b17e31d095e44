"""Checkpoints for inference: small weights, and everything that belongs to them beside them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from counterpoint.config_json import encode
from counterpoint.digests import sealed
from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json
from counterpoint.runtime.choices import FrameSampling, SpeechChoices
from counterpoint.runtime.compact import export_checkpoint
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.save import save
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.tensor_files import Stored, compacted, expanded
from tests.cli.talkers import write_run

OWN = FrameSampling(text=Sampling(temperature=0.0), padding_bias=3.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that talks, its tokeniser and how it talks best."""
    folder = tmp_path_factory.mktemp("talker")
    write_run(folder)
    (folder / "sampling.json").write_text(json.dumps(encode(OWN)))
    return folder


@pytest.mark.parametrize(
    ("stored", "times_smaller", "error"),
    [("float32", 0.99, 0.0), ("bfloat16", 1.9, 2**-8), ("int8", 3.0, 0.5 / 127)],
)
def test_weights_get_smaller_and_stay_near(
    run: Path, tmp_path: Path, stored: Stored, times_smaller: float, error: float
) -> None:
    export_checkpoint(run, tmp_path / "small", stored)
    before = load_weights(run)
    after = load_weights(tmp_path / "small")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        limit = error * weight.abs().amax(-1, keepdim=True) * 1.001
        assert ((after[name].float() - weight).abs() <= limit).all(), name
    sizes = [
        next(folder.rglob("weights.safetensors")).stat().st_size
        for folder in (run, tmp_path / "small")
    ]
    assert sizes[0] / sizes[1] > times_smaller


def test_exported_model_is_whole_where_it_is_moved(run: Path, tmp_path: Path) -> None:
    export_checkpoint(run, tmp_path / "small")
    shutil.move(tmp_path / "small", tmp_path / "elsewhere")
    found = sorted(file.name for file in (tmp_path / "elsewhere").rglob("*"))
    assert found == ["manifest.json", "sampling.json", "weights.safetensors"]
    loaded = load(tmp_path / "elsewhere")
    assert loaded.sampling == OWN == load(run).sampling
    assert loaded.trained_by == load(run).trained_by


def test_tokeniser_and_codec_go_with_the_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["digest"]
    manifest["format"] = 1
    files = {"tokenizer": tmp_path / "words.model", "codec": tmp_path / "mimi.safetensors"}
    manifest["run"]["data"] |= {field: str(file) for field, file in files.items()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for field, file in files.items():
        with pytest.raises(UserError, match=rf"must still be where they were: .*{file.name} is mi"):
            export_checkpoint(tmp_path / "run", tmp_path / "small")
        file.write_text(field)
    export_checkpoint(tmp_path / "run", tmp_path / "small")
    save(load(tmp_path / "run"), tmp_path / "saved")
    for name in ("small", "saved"):
        (tmp_path / name).rename(tmp_path / f"{name}_moved")
    for file in files.values():
        file.unlink()
    for folder in (tmp_path / "small_moved", tmp_path / "saved_moved"):
        data = load(folder).trained_by.speech_data
        for field, file in files.items():
            assert Path(getattr(data, field)) == folder / file.name
            assert (folder / file.name).read_text() == field
        written = json.loads((folder / "manifest.json").read_text())["run"]["data"]
        assert (written["tokenizer"], written["codec"]) == ("words.model", "mimi.safetensors")


def test_whole_numbers_stay_and_zero_rows_are_zero() -> None:
    weights = {"count": torch.tensor([[3]]), "zero": torch.zeros(2, 3), "norm": torch.ones(3)}
    small = compacted(weights, "int8")
    assert small["zero"].dtype == torch.int8
    after = expanded(small)
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def test_choices_go_over_what_the_model_has() -> None:
    chosen = SpeechChoices(seed=7, audio_top_k=9).over(OWN)
    assert chosen.text == Sampling(temperature=0.0, seed=7)
    assert (chosen.audio.top_k, chosen.audio.temperature) == (9, OWN.audio.temperature)
    assert chosen.padding_bias == 3.0
    assert SpeechChoices.of(chosen).over(FrameSampling()) == chosen


def test_a_run_of_another_version_is_named_with_what_is_unknown(run: Path, tmp_path: Path) -> None:
    export_checkpoint(run, tmp_path / "old")
    manifest = read_json(tmp_path / "old" / "manifest.json")
    manifest["run"]["data"]["hears"] = "sound"
    write_json(tmp_path / "old" / "manifest.json", sealed(manifest))
    with pytest.raises(UserError, match=r"old must hold a run .*no field 'hears'.* train again"):
        load(tmp_path / "old")
