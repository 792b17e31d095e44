import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from counterpoint.train import precision
from counterpoint.train.checkpoint import checkpoint_paths, read_manifest
from counterpoint.train.distributed import World
from counterpoint.train.muon import Muon
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.precision import ProductTimes, choose_precision, settle_precision
from tests.train.tiny import run_here, settings

time_products = precision.time_products  # before the fixture of `conftest.py` takes its place


def times(slower: float) -> ProductTimes:
    return ProductTimes(shape=(16, 8, 32), float32_s=1e-4, bfloat16_s=slower * 1e-4)


def machine(monkeypatch: pytest.MonkeyPatch, slower: float) -> None:
    """A machine on which bfloat16 takes so many times as long."""
    monkeypatch.setattr(precision, "time_products", lambda systems, device: times(slower))


@pytest.mark.parametrize(
    ("wanted", "begun", "slower", "chosen", "why"),
    [
        ("auto", None, 0.1, "bfloat16", "bfloat16: a product 16 x 8 x 32 takes 0.1 ms in float32"),
        ("auto", None, 0.9, "float32", "computing in float32: a product"),  # no gain is left
        ("auto", None, 40.0, "float32", "0.1 ms in float32 and 4 ms in bfloat16"),
        ("auto", None, math.inf, "float32", "this device has no bfloat16"),
        ("auto", "bfloat16", 1.5, "bfloat16", "as the run began"),
        ("auto", "bfloat16", 40.0, "float32", "began in bfloat16 and continues in float32: a prod"),
        ("auto", "float32", 0.1, "float32", "as the run began"),
        ("bfloat16", None, 0.1, "bfloat16", ""),
        ("bfloat16", None, 40.0, "bfloat16", "as the config says, but a product"),
        ("float32", "bfloat16", 0.1, "float32", ""),
    ],
)
def test_the_faster_type_is_taken_and_kept(
    wanted: str, begun: str | None, slower: float, chosen: str, why: str
) -> None:
    found = choose_precision(wanted, begun, lambda: times(slower))
    assert found.precision == chosen
    assert why in found.why
    assert bool(why) == bool(found.why)


def test_a_measurement_is_of_the_product_that_has_most_parameters() -> None:
    system = nn.Sequential(
        nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 32), nn.Embedding(9, 99)
    )
    threads = torch.get_num_threads()
    found = time_products([system], torch.device("cpu"))
    assert found.shape[1:] == (8, 32)
    assert 0 < found.float32_s < 1
    assert 0 < found.bfloat16_s < 1
    assert torch.get_num_threads() == threads


def test_a_system_on_no_device_can_be_measured() -> None:
    with torch.device("meta"):
        system = nn.Linear(8, 32)
    assert time_products([system], torch.device("cpu")).shape[1:] == (8, 32)


def test_a_run_keeps_its_type_or_says_that_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Notes:
        def step(self, report: object) -> None: ...
        def part(self, step: int, num_steps: int, part: int, num_parts: int) -> None: ...
        def note(self, text: str) -> None:
            told.append(text)

        def close(self) -> None: ...

    def types() -> list[str]:
        return [read_manifest(path)["train"]["precision"] for path in checkpoint_paths(tmp_path)]

    config = settings(2, precision="auto", keep_checkpoints=9)
    machine(monkeypatch, 0.1)
    run_here(tmp_path, config, reporter=Notes())
    assert types()[0] == "bfloat16"
    assert told[0].startswith("computing in bfloat16: a product")
    machine(monkeypatch, 1.5)  # slower, but not so much that the run should change
    run_here(tmp_path, replace(config, num_steps=3))
    assert types()[0] == "bfloat16"
    machine(monkeypatch, 40.0)
    told.clear()
    run_here(tmp_path, replace(config, num_steps=4), reporter=Notes())
    assert types()[0] == "float32"
    assert told[0].startswith("the run began in bfloat16 and continues in float32: a product")
    assert any("changed train config" in text for text in told)


def test_a_folder_without_checkpoints_has_no_type(tmp_path: Path) -> None:
    found = settle_precision("auto", [nn.Linear(2, 2)], [tmp_path], World())
    assert found.precision == "float32"


def test_muon_multiplies_in_the_type_of_the_run() -> None:
    config = settings().optimizer
    linear = nn.Linear(8, 8)
    system = nn.Sequential(linear)
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        nn.init.normal_(linear.weight)
        optimizer = KindOptimizers(system, replace(config, muon_lr=0.1), dtype).for_kind("")
        assert [part._dtype for part in optimizer.parts if isinstance(part, Muon)] == [dtype]
        linear.weight.grad = torch.randn(8, 8)
        optimizer.set_lr(1.0)
        optimizer.step()
        weights.append(linear.weight.detach().clone())
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=0.01)
