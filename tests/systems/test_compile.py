"""Systems compile without graph breaks, and compiled ones do what they did before.

In processes of their own: the compiler cannot look through run-time type checks.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHAPES = [
    ("single_stream", "full"),
    ("single_stream", "windowed"),
    ("two_stream", "attention_lag0"),
    ("two_stream", "wavelet_lag1"),
    ("moshi", "unlike_codebooks"),
]


def run(check: str, system: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.systems.compiled", check, system, name],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("system", "name"), SHAPES)
def test_forward_and_loss_compile_without_breaks(system: str, name: str) -> None:
    run("forward_and_loss", system, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("system", "name"), SHAPES)
def test_extend_compiles_without_breaks(system: str, name: str) -> None:
    run("read", system, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("system", "name"), [SHAPES[1], SHAPES[3], SHAPES[4]])
def test_training_step_compiles_to_kernels(system: str, name: str) -> None:
    run("training_step", system, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("system", "name"), [SHAPES[1], SHAPES[4], ("two_stream", "wavelet_early_lag0")]
)
def test_compiled_ticks_equal_the_whole_row(system: str, name: str) -> None:
    run("ticks", system, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_in_stages_compiles_once_in_each() -> None:
    run("stages", "two_stream", "ramp")
