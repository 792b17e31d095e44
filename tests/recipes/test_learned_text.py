"""A run on text goes on with the text that it began with, or says what changed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.digests import sealed
from counterpoint.recipes.learned import FILE
from counterpoint.recipes.training import train_run
from counterpoint.systems import single_stream
from counterpoint.train.checkpoint import MANIFEST, CheckpointError, checkpoint_paths
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.run import Run


def write(first: int, stop: int) -> None:
    Path("c").mkdir(exist_ok=True)
    for i in range(first, stop):
        Path(f"c/doc{i}.txt").write_text(f"Document number {i}.")


def run(num_steps: int) -> Run:
    return Run(
        name="r",
        system=single_stream.tiny(),
        train=TrainConfig(num_steps=num_steps, batch_rows=2),
        data=DataConfig(source=Folder(path="c"), row_ticks=64, cache_folder="cache"),
    )


@pytest.fixture(autouse=True)
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(0, 9)
    train_run(run(1), Path("run"), World())


def test_more_documents_are_refused(tmp_path: Path) -> None:
    write(9, 40)
    with pytest.raises(CheckpointError, match=r"text it began with.*units.*here") as caught:
        train_run(run(2), Path("run"), World())
    assert "\n" not in str(caught.value)
    for i in range(9, 40):
        Path(f"c/doc{i}.txt").unlink()
    assert train_run(run(2), Path("run"), World()).counters.step == 2


def test_a_change_of_equal_size_and_time_is_refused() -> None:
    file = Path("c/doc3.txt")
    before = file.stat()
    file.write_text("Document numbre 3.")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match="text it began with"):
        train_run(run(2), Path("run"), World())


def test_a_renamed_document_is_refused() -> None:
    """Titles decide what is held out."""
    Path("c/doc3.txt").rename("c/other.txt")
    with pytest.raises(CheckpointError, match="text it began with"):
        train_run(run(2), Path("run"), World())


def test_the_same_text_elsewhere_is_a_change_of_the_config(tmp_path: Path) -> None:
    Path("c").rename("d")
    moved = replace(run(2), data=replace(run(2).text_data, source=Folder(path="d")))
    with pytest.raises(CheckpointError, match=r"another data\.source\.path"):
        train_run(moved, Path("run"), World())


def forget(file: Path, *place: str) -> None:
    """Write a record as an earlier version did, whose config had a field less."""
    content = json.loads(file.read_text())
    *outer, name = place
    holder = content
    for key in outer:
        holder = holder[key]
    del holder[name]
    file.write_text(json.dumps(sealed(content) if file.name == MANIFEST else content))


def test_a_run_of_an_earlier_version_goes_on_and_keeps_its_text() -> None:
    """Fields that a config has got since then have their defaults."""
    (checkpoint,) = checkpoint_paths(Path("run"))
    forget(checkpoint / MANIFEST, "run", "data", "held_out")
    forget(Path("run") / FILE, "data", "held_out")
    document = Path("c/doc3.txt")
    text = document.read_text()
    document.write_text("Document numbre 3.")
    with pytest.raises(CheckpointError, match="text it began with"):
        train_run(run(2), Path("run"), World())
    document.write_text(text)
    assert train_run(run(2), Path("run"), World()).counters.step == 2
