import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.digests import sealed
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.train.checkpoint import (
    CheckpointError,
    check_origin,
    checkpoint_paths,
    load_system,
    load_weights,
    newest_checkpoint,
    read_manifest,
    remove_old_checkpoints,
)
from tests.train.tiny import (
    Letters,
    Noisy,
    NoisyConfig,
    build,
    rows,
    run_here,
    settings,
    states_equal,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 3 and 5."""
    run_here(tmp_path, settings(5))
    return tmp_path


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write further than this into any file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "flipped":
        content[-3] ^= 1
    elif how == "missing":
        file.unlink()
        return
    file.write_bytes(content)


def test_checkpoint_holds_no_pickle(folder: Path) -> None:
    files = {str(f.relative_to(folder / "checkpoints")) for f in folder.rglob("checkpoints/*/**/*")}
    names = ("manifest.json", "optimizer", "optimizer/state.safetensors", "weights.safetensors")
    assert files == {f"step_{step:08d}/{name}" for step in (3, 5) for name in names}


def test_checkpoint_loads_without_its_optimizer(folder: Path) -> None:
    newest = checkpoint_paths(folder)[0]
    (newest / "optimizer" / "state.safetensors").unlink()
    (newest / "optimizer").rmdir()
    for path in (folder, newest):
        system = load_system(path, {"Noisy": Noisy})
        assert not system.training
        assert states_equal(system.state_dict(), load_weights(newest))


def test_checkpoint_restores_a_published_system(tmp_path: Path) -> None:
    tower = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=32, window=8)
    torch.manual_seed(0)
    system = SingleStream(SingleStreamConfig(tower=tower, vocab_size=17))
    from counterpoint.train.loop import train

    train(system, Letters(), settings(2), tmp_path)
    loaded = load_system(tmp_path, {"SingleStream": SingleStream})
    assert isinstance(loaded, SingleStream)
    assert loaded.config == system.config
    batch = Letters().batch(0)
    assert torch.equal(loaded(batch)["part"], system.eval()(batch)["part"])


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer/state.safetensors"])
def test_damaged_checkpoint_is_refused_and_the_previous_used(
    folder: Path, file: str, how: str
) -> None:
    damage(checkpoint_paths(folder)[0] / file, how)
    notes: list[str] = []
    found = newest_checkpoint(folder, build(), notes.append)
    assert found == checkpoint_paths(folder)[1]
    assert len(notes) == 1
    assert "The checkpoint is damaged; use an older one." in notes[0]
    assert "\n" not in notes[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_foreign_manifest_is_refused(folder: Path, content: str) -> None:
    (checkpoint_paths(folder)[0] / "manifest.json").write_text(content)
    assert newest_checkpoint(folder, build()) == checkpoint_paths(folder)[1]
    with pytest.raises(CheckpointError, match=r"must (hold a readable|have format 1)"):
        read_manifest(checkpoint_paths(folder)[0])


def test_damaged_checkpoint_is_overwritten_on_the_way(folder: Path, tmp_path: Path) -> None:
    expected = rows(folder)
    damage(checkpoint_paths(folder)[0] / "weights.safetensors", "truncated")
    run_here(folder, settings(5))
    assert rows(folder) == expected
    assert newest_checkpoint(folder, build()) == checkpoint_paths(folder)[0]


def test_refused_newer_checkpoint_does_not_displace_the_good_one(tmp_path: Path) -> None:
    run_here(tmp_path, settings(4, checkpoint_every=2))
    damage(checkpoint_paths(tmp_path)[0] / "weights.safetensors", "truncated")
    # Left behind by a deletion that was cut short.
    (tmp_path / "checkpoints" / ".step_00000004.old" / "optimizer").mkdir(parents=True)
    run_here(tmp_path, settings(3, checkpoint_every=0, keep_checkpoints=1))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    assert newest_checkpoint(tmp_path, build()) == checkpoint_paths(tmp_path)[0]


def test_checkpoint_that_cannot_be_deleted_is_one_line(folder: Path) -> None:
    saved = checkpoint_paths(folder)[0]
    # A file where the renamed folder would go stays where it is: `rmtree` deletes folders only.
    (folder / "checkpoints" / ".step_00000003.old").write_text("")
    with pytest.raises(CheckpointError, match=r"_00000003 is not \(Not a dir.*_00000005") as error:
        remove_old_checkpoints(folder, 1, saved)
    assert "\n" not in str(error.value)
    assert newest_checkpoint(folder, build()) == saved


class Other(Noisy):
    pass


class Wider(Noisy):
    """Calls itself Noisy with the same config, and has another shape."""

    def __init__(self, config: NoisyConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.width, 18, bias=False)


Wider.__name__ = "Noisy"


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Other(NoisyConfig()), "must be a checkpoint of Other: it is one of Noisy"),
        (Noisy(NoisyConfig(dropout=0.3)), r"differs in config\.dropout \(0\.2, here 0\.3\)"),
        (Wider(NoisyConfig()), r"'head.weight' has shape \(17, 8\) there and \(18, 8\) here"),
    ],
)
def test_checkpoint_of_another_system_is_refused(
    folder: Path, system: nn.Module, message: str
) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError, match=message) as error:
        newest_checkpoint(folder, system)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_checkpoint_from_before_a_config_had_a_field_goes_on(folder: Path) -> None:
    """Then it had the default."""
    newest = checkpoint_paths(folder)[0]
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["config"]["dropout"]
    (newest / "manifest.json").write_text(json.dumps(sealed(manifest)))
    check_origin(newest, build())
    with pytest.raises(CheckpointError, match=r"config\.dropout \(0\.2, here 0\.3\)"):
        check_origin(newest, Noisy(NoisyConfig(dropout=0.3)))


def test_unknown_system_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'Noisy' is not one of SingleStream"):
        load_system(folder, {"SingleStream": SingleStream})


def test_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="none found"):
        load_weights(tmp_path)


def test_disk_full_keeps_older_checkpoints(tmp_path: Path) -> None:
    width = 64
    config = settings(3, evaluate_every=0)
    run_here(tmp_path, config, width=width)
    older = newest_checkpoint(tmp_path, build(width))
    assert older is not None
    weights = load_weights(older)
    for limit in (20_000, 60_000):  # the weights do not fit; they do, but the optimiser does not
        with (
            file_size_limit(limit),
            pytest.raises(CheckpointError, match=r"File too large.*The last good one is .*00003"),
        ):
            run_here(tmp_path, settings(6, evaluate_every=0), width=width)
        assert not list((tmp_path / "checkpoints").glob(".step_*"))
        assert newest_checkpoint(tmp_path, build(width)) == older
        assert states_equal(load_weights(older), weights)
    assert run_here(tmp_path, settings(6, evaluate_every=0), width=width).finished


def test_full_disk_under_the_metrics_is_one_line(tmp_path: Path) -> None:
    with (
        file_size_limit(300),
        pytest.raises(CheckpointError, match=r"metrics\.jsonl must be writable") as error,
    ):
        run_here(tmp_path, settings(checkpoint_every=0))
    assert "\n" not in str(error.value)


def test_manifest_carries_the_run(tmp_path: Path) -> None:
    run_here(tmp_path, settings(1), run={"name": "first"})
    manifest = read_manifest(checkpoint_paths(tmp_path)[0])
    assert manifest["run"] == {"name": "first"}
    assert manifest["counters"]["step"] == 1
    assert manifest["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_refused_newer_checkpoint_does_not_outlive_the_good_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 7):
        (tmp_path / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    # Left behind by a deletion that was cut short.
    (tmp_path / "checkpoints" / ".step_00000007.old" / "remains").mkdir(parents=True)
    remove_old_checkpoints(tmp_path, 1, tmp_path / "checkpoints" / "step_00000003")
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step_00000003"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
