"""Text and speech are two implementations of one protocol."""

from pathlib import Path

import pytest

from counterpoint.data.source import DataSource, Preparation, PreparedSource
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.systems import sketch
from counterpoint.systems.moshi import tiny
from tests.cli import examples
from tests.evaluate.tiny import two_config


def test_each_source_knows_whom_it_fits() -> None:
    text = sketch(two_config()).layout
    speech = sketch(tiny()).layout
    assert DataConfig().fits(text)
    assert SpeechData(train="a.jsonl").fits(speech)
    assert not DataConfig().fits(speech)
    assert not SpeechData(train="a.jsonl").fits(text)
    assert DataConfig(row_ticks=48).num_ticks(text) == 48
    assert SpeechData(train="a.jsonl", row_s=4.0).num_ticks(speech) == 50


def test_text_is_prepared_for_a_system(tmp_path: Path) -> None:
    examples.write(tmp_path)
    config = DataConfig(
        source=Folder(path=str(tmp_path / "texts")),
        row_ticks=64,
        held_out=0.4,
        cache_folder=str(tmp_path / "cache"),
    )
    assert isinstance(config, DataSource)
    system = sketch(two_config())
    data = config.prepare(system)
    assert isinstance(data, PreparedSource)
    assert data.train.block_ticks == system.layout.block_ticks
    assert config.prepare(system, Preparation(block_ticks=8)).train.block_ticks == 8
    units = data.held_out_units()
    assert units is not None
    assert f"{len(units)} held-out units" in data.describe()
    for index, unit in enumerate(data.held_out):
        (batch,) = units.batches(index)
        assert (units.title(index), batch.size, batch.unit) == (unit.title, unit.num_bytes, "byte")
    assert set(data.fingerprint) == {"text"}
    assert data.batches(2, seed=0).batch(0).document_start.shape == (2, 64)


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path: Path) -> None:
    examples.write(tmp_path)
    source = Folder(path=str(tmp_path / "texts"))
    config = DataConfig(source=source, held_out=(), cache_folder=str(tmp_path / "cache"))
    assert config.prepare(sketch(two_config())).held_out_units() is None


def test_dialogues_have_no_blocks() -> None:
    with pytest.raises(ValueError, match="systems without blocks: got `block_ticks` 4"):
        SpeechData(train="a.jsonl").prepare(sketch(tiny()), Preparation(block_ticks=4))
