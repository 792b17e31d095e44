"""The kernels of Multi-Token Attention, in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from counterpoint.blocks.multi_token_attention_lifted import attend_lifted
from counterpoint.blocks.multi_token_attention_rows import Kernels
from counterpoint.errors import UserError

PROGRAM = Path(__file__).with_name("interpreted_attention.py")
has_triton = find_spec("triton") is not None


@pytest.mark.skipif(not has_triton, reason="needs Triton")
@pytest.mark.parametrize(
    ("name", "num_steps"),
    [
        ("conv_before", 21),
        pytest.param("wide", 19, marks=pytest.mark.slow),
        *(
            pytest.param(name, 53, marks=pytest.mark.slow)
            for name in ("plain", "conv_before", "conv_after", "mixing", "all")
        ),
    ],
)
def test_the_kernels_and_their_gradients_are_those_of_the_naive_form(
    name: str, num_steps: int
) -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, str(PROGRAM), name, str(num_steps)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.stdout.split() == ["equal", name], done.stderr


@pytest.mark.skipif(has_triton, reason="has Triton")
def test_without_triton_it_says_so() -> None:
    from counterpoint.blocks.multi_token_attention_fused import FUSED

    x = torch.randn(1, 2, 3, 4)
    start = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(UserError, match="`form` 'fused' needs Triton"):
        attend_lifted(x, x, x, Kernels(), start, FUSED)
