"""A run on text goes on with the text that it began with, or says what changed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterpoint.data.text.corpus import DataConfig, Folder, prepare
from counterpoint.digests import sealed
from counterpoint.recipes.learned import FILE, keep_or_check_learned
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


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "rename", "delete", "copy"]),
        st.integers(0, 8),
        st.text("ab", min_size=1, max_size=4),
    ),
    max_size=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_a_run_goes_on_with_equal_text_and_no_other(changes: list[tuple[str, int, str]]) -> None:
    """Whatever is done to the files: what counts is which texts there are by which names."""
    folder = Path("c")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    texts = dict(before)
    for what, number, word in changes:
        name = sorted(texts)[number % len(texts)]
        if what == "write":
            texts[name] = f"Document number {number}." if word == "a" else word
        elif what == "copy":
            texts[f"{word}.txt"] = texts[name]
        elif what == "rename" and len(texts) > 2:
            texts[f"{word}.txt"] = texts.pop(name)
        elif what == "delete" and len(texts) > 2:
            del texts[name]
    lay_out(folder, texts)
    for file in folder.iterdir():
        file.touch()
    try:
        data = run(2).text_data
        fingerprint = prepare(data, 1).fingerprint
        if texts == before:
            keep_or_check_learned(data, fingerprint, Path("run"), World())
        else:
            with pytest.raises(CheckpointError, match="text it began with") as caught:
                keep_or_check_learned(data, fingerprint, Path("run"), World())
            assert "\n" not in str(caught.value)
    finally:
        lay_out(folder, before)


def lay_out(folder: Path, texts: dict[str, str]) -> None:
    """Make a folder hold these texts and no others."""
    for file in folder.iterdir():
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)


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
