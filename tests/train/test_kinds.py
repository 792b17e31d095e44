"""Runs whose batches are of two kinds: speech, and text alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.train.checkpoint import checkpoint_paths, load_weights
from counterpoint.train.loop import train
from tests.train.kinds_of_two_processes import begin
from tests.train.tiny import rows, states_equal
from tests.train.tiny_frames import ROWS, TICKS, Frames, model, plan

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> list[dict[str, torch.Tensor]]:
    path = checkpoint_paths(folder)[0]
    names = ("weights.safetensors", "optimizer/state.safetensors")
    return [load_file(path / name) for name in names]


@pytest.mark.parametrize("muon_lr", [None, 0.01])
def test_run_of_two_kinds_goes_on_bit_for_bit(tmp_path: Path, muon_lr: float | None) -> None:
    """Stopped after each of its first steps, before and after moments of text are there."""
    optimizer = {"muon_lr": muon_lr}
    for folder, stops in (("whole", [5]), ("stopped", [1, 2, 3, 5])):
        for num_steps in stops:
            config = plan(num_steps, optimizer=optimizer)
            train(model(), Frames(), config, tmp_path / folder)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    for a, b in zip(files(tmp_path / "stopped"), files(tmp_path / "whole"), strict=True):
        assert states_equal(a, b)


def test_kinds_without_a_name_are_one(tmp_path: Path) -> None:
    """And whoever names a kind changes the moments, not the first step."""
    for name, kind in (("unnamed", ""), ("named", "text")):
        train(
            model(), Frames(text=kind), plan(4, optimizer={"kind_lr_factors": ()}), tmp_path / name
        )
    unnamed, named = (rows(tmp_path / name) for name in ("unnamed", "named"))
    assert unnamed[:2] == named[:2]
    assert unnamed[2]["loss"] != named[2]["loss"]
    moments = files(tmp_path / "named")[1]
    assert not any("/" in key for key in files(tmp_path / "unnamed")[1])
    assert moments["text/step.head.weight"] == 1
    assert moments["step.head.weight"] == 3
    assert "text/step.depth.head.weight" not in moments


def test_kinds_have_their_factor_of_the_learning_rate(tmp_path: Path) -> None:
    train(model(), Frames(), plan(3), tmp_path)
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([1e-2, 0.5e-2, 1e-2])


def test_flops_are_those_of_the_kind(tmp_path: Path) -> None:
    """Text alone needs no depth transformer: neither is it computed nor counted."""
    system = model()
    train(system, Frames(), plan(2), tmp_path)
    first, second = (row["flops"] for row in rows(tmp_path))
    both, alone = (
        system.flops_per_tick(TICKS, training=True, predicted=predicted)
        for predicted in (None, ("text",))
    )
    assert first == both * ROWS * TICKS
    assert second - first == alone * ROWS * TICKS
    assert alone < 0.9 * both


def test_counted_flops_are_computed_flops() -> None:
    """By the products that torch counts, forward and backward."""
    system = model()
    for step in (0, 1):
        batch = Frames().batch(step)
        with FlopCounterMode(display=False) as counter:
            system.loss(batch).total.backward()
        counted = system.flops_per_tick(TICKS, training=True, predicted=batch.targets)
        assert counter.get_total_flops() == pytest.approx(counted * ROWS * TICKS, rel=0.1)


@pytest.mark.slow
def test_two_processes_keep_the_kinds_apart(tmp_path: Path) -> None:
    """AdamW and Muon, all weights and adapters, begun by one process and by two."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    begin(tmp_path / "together")
    done = subprocess.run(
        [*command, Path(__file__).with_name("kinds_of_two_processes.py"), tmp_path / "together"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    begin(tmp_path / "alone", num_steps=5)
    for alone in sorted(path for path in (tmp_path / "alone").iterdir() if path.name != "base"):
        together = tmp_path / "together" / alone.name
        found, expected = (
            torch.tensor([(row["loss"], row["grad_norm"]) for row in rows(folder)])
            for folder in (together, alone)
        )
        # Muon orthogonalises in bfloat16.
        rtol, atol = (1e-3, 2e-3) if alone.name == "muon" else (1e-5, 1e-5)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(
            load_weights(together), load_weights(alone), rtol=rtol, atol=atol
        )
        names = {
            key
            for file in (checkpoint_paths(together)[0] / "optimizer").glob("*.safetensors")
            for key in load_file(file)
        }
        assert any(name.startswith("text/") for name in names)
        assert names == set(files(alone)[1])
