"""The kernels of Multi-Token Attention, in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from counterpoint.blocks import multi_token_attention_fused as fused
from counterpoint.blocks import multi_token_attention_kernels as kernels
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from tests.blocks.multi_token_cases import CASES

has_triton = find_spec("triton") is not None


@pytest.mark.skipif(not has_triton, reason="needs Triton")
@pytest.mark.parametrize(
    ("name", "num_steps", "window"),
    [
        ("conv_before", 21, 21),
        ("conv_before", 21, 5),
        pytest.param("wide", 19, 19, marks=pytest.mark.slow),
        pytest.param("wide", 33, 12, marks=pytest.mark.slow),
        *(
            pytest.param(name, 53, window, marks=pytest.mark.slow)
            for name in ("plain", "conv_before", "conv_after", "mixing", "all")
            for window in (53, 20)
        ),
        # Blocks without masks beside others that the window's start cuts.
        pytest.param("conv_before", 80, 64, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_the_kernels_and_their_gradients_are_those_of_the_naive_form(
    name: str, num_steps: int, window: int
) -> None:
    run_interpreted(name, num_steps, window)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not has_triton, reason="needs Triton")
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_the_kernels_and_their_gradients_are_those_of_every_pair_of_options(number: int) -> None:
    """The norm comes after the kernels."""
    run_interpreted(str(number), 21, CASES[number]["window"])


def run_interpreted(name: str, num_steps: int, window: int) -> None:
    """Compare in a process of its own, which sets Triton up for its interpreter."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.blocks.interpreted_attention"),
            *(name, str(num_steps), str(window)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["equal", name], done.stderr


ONE_PART: list[dict[str, Any]] = [
    {"mix_before": False, "mix_after": False, "conv_after": False},
    {"conv_before": False, "conv_after": False},
    {"conv_before": False, "conv_after": False, "mix_before": False, "mix_after": False},
]


def read_fused(parts: dict[str, Any]) -> None:
    mixer = MultiTokenConfig(conv_every=1, form="fused", **parts)
    config = TowerConfig(width=16, num_layers=1, num_heads=4, mlp_hidden=5, window=80, mixer=mixer)
    tower = Tower(config)
    tower(torch.randn(1, 70, 16), tower.reach(torch.zeros(1, 70, dtype=torch.long)))


@pytest.mark.skipif(has_triton, reason="has Triton")
@pytest.mark.parametrize("parts", [{}, *ONE_PART], ids=str)
def test_without_triton_it_says_so(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="`form` 'fused' needs Triton"):
        read_fused(parts)


def test_kernels_of_a_gpu_are_not_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(kernels.read_kernel)
    monkeypatch.setattr(fused, "triton", SimpleNamespace(JITFunction=kind))
    with pytest.raises(UserError, match="`form` 'fused' needs a GPU, or TRITON_INTERPRET=1"):
        read_fused({})
