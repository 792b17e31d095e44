"""A damaged manifest is named and passed over; what is not finite is never called good."""

import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.digests import sealed
from counterpoint.train.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    load_system,
    load_weights,
    newest_checkpoint,
    read_manifest,
)
from counterpoint.train.config import OptimizerConfig, ScheduleConfig
from counterpoint.train.metrics import MetricsFile, read_metrics
from tests.train.tiny import Noisy, build, rows, run_here, settings, states_equal

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 3 and 5."""
    folder = tmp_path_factory.mktemp("run")
    run_here(folder, settings(5))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


CHANGES: dict[str, Change] = {
    "another step": lambda m: m["counters"].update(step=3),
    "no files": lambda m: m.update(files={}),
    "no weights": lambda m: m["files"].pop("weights.safetensors"),
    "no optimizer": lambda m: m["files"].pop("optimizer/state.safetensors"),
    "renamed files": lambda m: m.update(Files=m.pop("files")),
    "no system": lambda m: m.pop("system"),
    "no config": lambda m: m.pop("config"),
    "no counters": lambda m: m.pop("counters"),
    "counters of text": lambda m: m["counters"].update(size="5"),
    "a negative step": lambda m: m["counters"].update(step=-1),
    "a step that is true": lambda m: m["counters"].update(step=True),
    "a foreign file": lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
}


@pytest.mark.parametrize(
    ("change", "seal"),
    # A config that somebody has sealed is a config, so that one is only changed under a kept seal.
    [*product(CHANGES, ["kept", "new", "none"]), ("another config", "kept")],
)
def test_changed_manifest_is_named_and_passed_over(folder: Path, change: str, seal: str) -> None:
    newest, older = checkpoint_paths(folder)
    manifest = json.loads((newest / "manifest.json").read_text())
    if change == "another config":
        manifest["config"]["dropout"] = 0.1
    else:
        CHANGES[change](manifest)
    if seal == "new":
        manifest = sealed(manifest)
    elif seal == "none":
        del manifest["digest"]
        manifest["format"] = 1
    (newest / "manifest.json").write_text(json.dumps(manifest))
    notes: list[str] = []
    assert newest_checkpoint(folder, build(), notes.append) == older
    assert len(notes) == 1
    assert str(newest) in notes[0]
    assert "\n" not in notes[0]
    if change != "no optimizer" or seal == "kept":
        with pytest.raises(CheckpointError):
            load_system(newest, {"Noisy": Noisy})


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"", b"null", b'{"format": true}']
)
def test_what_is_no_manifest_is_passed_over(folder: Path, content: bytes) -> None:
    newest, older = checkpoint_paths(folder)
    (newest / "manifest.json").write_bytes(content)
    assert newest_checkpoint(folder, build()) == older
    with pytest.raises(CheckpointError, match="must (hold a readable|have format)"):
        read_manifest(newest)


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(folder: Path) -> None:
    newest, older = checkpoint_paths(folder)
    content = (newest / "manifest.json").read_bytes()
    draw = random.Random(0)
    for place in draw.sample(range(len(content)), 200):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        (newest / "manifest.json").write_bytes(flipped)
        found = newest_checkpoint(folder, build())
        if found != older:  # a blank became another blank
            assert json.loads(flipped) == json.loads(content)


def test_checkpoint_of_the_first_format_still_loads(folder: Path) -> None:
    expected = load_weights(folder)
    for path in checkpoint_paths(folder):
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["digest"]
        (path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    assert states_equal(load_system(folder, {"Noisy": Noisy}).state_dict(), expected)
    run_here(folder, settings(7))
    assert [row["step"] for row in rows(folder) if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert read_manifest(checkpoint_paths(folder)[0])["format"] == 2


def test_load_of_an_older_checkpoint_is_told(folder: Path) -> None:
    newest, older = checkpoint_paths(folder)
    (newest / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="Checkpoint refused: .*step_00000005"):
        assert states_equal(load_weights(folder), load_weights(older))


def test_checkpoint_may_be_kept_under_another_name(folder: Path) -> None:
    kept = checkpoint_paths(folder)[1].rename(folder / "best")
    assert states_equal(load_system(kept, {"Noisy": Noisy}).state_dict(), load_weights(kept))


def test_file_that_came_to_a_checkpoint_is_refused(folder: Path) -> None:
    newest, older = checkpoint_paths(folder)
    shutil.copy(newest / "weights.safetensors", newest / "optimizer" / "more.safetensors")
    notes: list[str] = []
    assert newest_checkpoint(folder, build(), notes.append) == older
    assert "more.safetensors must be in the manifest" in notes[0]


def test_weights_that_are_not_finite_are_never_good(tmp_path: Path) -> None:
    run_here(tmp_path, settings(3))
    schedule, optimizer = ScheduleConfig(warmup_steps=0), OptimizerConfig(lr=float("inf"))
    with pytest.raises(CheckpointError, match=r"must be finite.*after step 4.*step_00000003"):
        run_here(tmp_path, settings(4, schedule=schedule, optimizer=optimizer, checkpoint_every=1))
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step_00000003"]
    assert all(tensor.isfinite().all() for tensor in load_weights(tmp_path).values())


def test_weights_of_an_older_version_that_are_not_finite_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint_paths(folder)[0]
    weights = load_file(path / "weights.safetensors")
    weights["head.weight"][0, 0] = torch.nan
    save_file(weights, path / "weights.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    from counterpoint.digests import file_digest

    size = (path / "weights.safetensors").stat().st_size
    digest = file_digest(path / "weights.safetensors")
    manifest["files"]["weights.safetensors"] = {"bytes": size, "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match=r"must hold finite numbers: 'head\.weight'"):
        load_weights(path)


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run_here(tmp_path, settings(2))
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == dict.fromkeys(
        (file.name for file in files), "0o640"
    )


@pytest.mark.parametrize(
    "line", [b'{"step": 2, "loss"', b"\xff\xfe", b"[]", b'{"loss": 1}', b"{" * 9999]
)
def test_damaged_line_of_the_metrics_does_not_block_a_run(folder: Path, line: bytes) -> None:
    metrics = folder / "metrics.jsonl"
    expected = len(rows(folder))
    metrics.write_bytes(line + b"\n" + metrics.read_bytes())
    assert len(read_metrics(metrics)) == expected
    opened = MetricsFile(metrics, 5)
    opened.close()
    assert opened.num_damaged == 1
    assert len(rows(folder)) == expected


def test_metrics_hold_no_bare_nan(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1, "loss": float("nan"), "terms": {"a": float("inf"), "b": [1.0]}})
    metrics.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "terms": {"a": None, "b": [1.0]},
    }
