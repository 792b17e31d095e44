import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from counterpoint.errors import UserError
from counterpoint.train.checkpoint import checkpoint_paths, load_weights, read_manifest
from counterpoint.train.distributed import World, pick_device, process_group, shard
from tests.train.phased import train_kept_rounds, train_phased
from tests.train.tiny import rows, states_equal
from tests.train.two_processes import (
    bigrams,
    moshi,
    part_and_whole,
    plan,
    run,
    shared_levels,
    transformer,
)

ROOT = Path(__file__).parents[2]
# Whichever test is first waits for the two processes, on a busy machine for minutes.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes; one of them goes on from what one process began."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "begun_by_one", bigrams(), plan(3, accumulation=2))
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*command, Path(__file__).with_name("two_processes.py"), folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


def numbers(folder: Path) -> torch.Tensor:
    steps = [row for row in rows(folder) if "loss" in row]
    return torch.tensor([(row["loss"], row["grad_norm"], row["size"]) for row in steps])


def assert_same_run(a: Path, b: Path) -> None:
    torch.testing.assert_close(numbers(a), numbers(b), rtol=1e-5, atol=0)
    torch.testing.assert_close(load_weights(a), load_weights(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "system", "parts"),
    [
        ("bigrams", bigrams, 2),
        ("transformer", transformer, 1),
        ("part_and_whole", part_and_whole, 2),
        ("shared_levels", shared_levels, 2),
        ("moshi", moshi, 2),
    ],
)
def test_two_processes_train_like_one(
    runs: Path, tmp_path: Path, name: str, system: Callable[[], nn.Module], parts: int
) -> None:
    """With noise in the model too, when one process computes the same parts."""
    run(tmp_path, system(), plan(4, parts))
    assert_same_run(runs / name, tmp_path)


def test_unlike_parts_train_like_one(runs: Path, tmp_path: Path) -> None:
    """The loss is made of sums: however a batch is cut, its gradient is the same."""
    for accumulation in (1, 2):
        run(tmp_path / str(accumulation), moshi(), plan(4, accumulation))
    assert_same_run(tmp_path / "1", tmp_path / "2")
    assert_same_run(tmp_path / "1", runs / "moshi")


def test_two_processes_have_the_ledger_of_one(runs: Path, tmp_path: Path) -> None:
    train_phased(tmp_path)
    assert_same_run(runs / "phased", tmp_path)
    one, two = (read_manifest(checkpoint_paths(f)[0]) for f in (tmp_path, runs / "phased"))
    assert one["num_processes"] == 1
    assert two["num_processes"] == 2
    assert one["ledger"] == two["ledger"]
    assert len(one["ledger"]) == 6


def test_two_processes_are_rewarded_like_one(runs: Path, tmp_path: Path) -> None:
    """Each writes one of two groups; stopped within a round, they end like those that went on."""
    train_kept_rounds(tmp_path)
    assert_same_run(runs / "rewarded", tmp_path)
    assert rows(runs / "stopped") == rows(runs / "rewarded")
    folders = (tmp_path, runs / "rewarded", runs / "stopped")
    one, two, stopped = (read_manifest(checkpoint_paths(folder)[0]) for folder in folders)
    for found in (two, stopped):
        assert found["num_processes"] == 2
        assert found["ledger"] == one["ledger"]
        assert found["progress"] == one["progress"]
        assert found["counters"]["flops"] == one["counters"]["flops"]
    assert states_equal(load_weights(runs / "stopped"), load_weights(runs / "rewarded"))
    terms = [
        [row["terms"] for row in rows(folder) if "reward" in row.get("terms", {})]
        for folder in folders
    ]
    for name in ("reward", "policy", "kl"):
        curves = [[own[name] for own in every] for every in terms]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4, abs=1e-6)
        assert any(curves[0])
    entry = one["ledger"][-1]
    assert (entry["source"], entry["rows"], entry["unique_items"]) == ("rollouts", 32, 16)
    assert 0 < entry["targets"] < entry["tokens"]
    assert one["progress"][1] == [[1, [0, 0]]]


def test_noise_of_another_number_of_parts_is_noted(runs: Path, tmp_path: Path) -> None:
    run(tmp_path, bigrams(), plan(1, accumulation=2))
    note = "2 processes compute 2 parts of each batch and `accumulation` is 1. Make it a multiple"
    assert note in (runs / "transformer" / "screen.txt").read_text()
    for folder in (runs / "part_and_whole", tmp_path):  # the same parts, hence the same noise
        assert "Noise" not in (folder / "screen.txt").read_text()


def test_two_processes_go_on_from_one(runs: Path, tmp_path: Path) -> None:
    run(tmp_path, bigrams(), plan(5, accumulation=2))
    assert_same_run(runs / "begun_by_one", tmp_path)
    counts = [read_manifest(p)["num_processes"] for p in checkpoint_paths(runs / "begun_by_one")]
    assert counts == [2, 1]


def test_one_process_goes_on_from_two(runs: Path, tmp_path: Path) -> None:
    run(runs / "bigrams", bigrams(), plan(6, accumulation=2))
    run(tmp_path, bigrams(), plan(6, accumulation=2))
    assert_same_run(runs / "bigrams", tmp_path)
    assert read_manifest(checkpoint_paths(runs / "bigrams")[0])["num_processes"] == 1


def test_checkpoint_of_two_processes_is_sharded_and_free_of_pickle(runs: Path) -> None:
    path = checkpoint_paths(runs / "transformer")[0]
    files = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())
    assert len([name for name in files if name.startswith("optimizer/shard-")]) == 2
    assert {name.rpartition(".")[2] for name in files} == {"json", "safetensors"}
    shapes = {name: p.shape for name, p in transformer().state_dict().items()}
    assert {name: w.shape for name, w in load_weights(path).items()} == shapes


def test_one_process_needs_no_group() -> None:
    with process_group("cpu") as world:
        assert world == World()
        system = bigrams()
        assert shard(system, world) is system
        assert type(system).__name__ == "Noisy"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "no device has this name"),
        ("", "no device has this name"),
        ("meta", "Tensor.item() cannot be called on meta tensors"),
        pytest.param(
            "cuda:1",
            f"torch {torch.__version__} finds no CUDA GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param(
            "mps",
            "torch finds no Apple GPU here",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        pick_device(name)
    assert str(caught.value) == (
        "`--device` must be auto, cpu, cuda, mps, or one of several GPUs such as cuda:1: got "
        f"{name!r} ({reason}). Leave it out to use the best device there is."
    )
