"""Multi-Token Attention where values must not be read: compiled, or mapped over lanes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.blocks.traced_attention import (
    gradients,
    kept_bytes,
    lanes_of,
    read_in_turn,
    read_mapped,
)


@pytest.mark.parametrize("window", [30, 500])
def test_lanes_of_a_map_read_what_they_read_alone(window: int) -> None:
    lanes = lanes_of(140, window)
    alone = read_in_turn(lanes)
    mapped = read_mapped(lanes)
    torch.testing.assert_close(mapped, alone, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(lanes, mapped), gradients(lanes, alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_map_keeps_memory_that_grows_with_the_steps() -> None:
    few, many = (kept_bytes(partial(read_mapped, lanes_of(n, 500))) for n in (150, 300))
    assert many <= 2 * few
    assert many == kept_bytes(partial(read_in_turn, lanes_of(300, 500)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_graph_keeps_memory_that_grows_with_the_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.blocks.traced_attention"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("linear"), done.stderr
